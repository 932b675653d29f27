"""`workbench calibrate` on a CPU: in little time, of small models, and for scenarios of a GPU."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import calibrate_cpu, invoke
from fake_executor import FakeClock
from made_up_engine import CONFIG, MadeUpEngine, MadeUpStep, calibrated, true_ns

from engine.core.plan import StepPlan
from engine.profiling import measuring
from engine.profiling.measuring import features_of
from engine.runtime.runner_config import RunnerConfig
from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import UNKNOWN, StepFeatures, StepShape
from simulator.profile_file import read_profile
from workbench.calibration import calibrate as calibration
from workbench.calibration import served_times
from workbench.calibration.calibrate import Calibration, calibrate
from workbench.record.run_record import RunReader
from workbench.scenario.source import load_scenario


def test_calibrate_on_a_cpu(tmp_path: Path) -> None:
    """The real engine, a tiny model: a profile with which a simulation runs."""
    result = calibrate_cpu(tmp_path)
    assert result.exit_code == 0, result.output
    path = tmp_path / "cpu-tiny-model-fp32-tp1.json"
    assert str(path) in result.stdout
    assert "error of the fit on steps that it had not seen" in result.stdout
    profile = read_profile(path)
    assert profile.fit.decode == ()
    assert json.loads(path.read_bytes())["schema"] == "profile/v5"
    result = invoke(
        "simulate", "engine_on_cpu", "--no-record", "--set", f"hardware.profile={path}",
        "--num-prompts", "20",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Step times: cpu-tiny-model-fp32-tp1\n" in result.output  # none outside its range


class MadeUpProcessor(MadeUpEngine):
    """The same without graphs, which calls itself a CPU."""

    device = "cpu"
    max_model_len, num_pages = 1024, 512

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "device": self.device, "cuda_graph_batch_sizes": []}


def test_a_scenarios_graphs_are_nothing_to_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its profile covers decode steps that a GPU would run as graphs; a GPU's without does not."""
    decode = StepShape(decode_requests=4, decode_tokens=4, decode_context=400,
                       decode_max_context=100, sampled_tokens=4)  # fmt: skip
    found = {}
    monkeypatch.setattr(served_times, "_IDLE_MS", (0.5, 2.0, 10.0))
    for device in ("cpu", "NVIDIA H200"):
        monkeypatch.setattr(MadeUpProcessor, "device", device)
        engine = MadeUpProcessor(replace(CONFIG, cuda_graph_batch_sizes=()))
        build: Any = lambda *_, engine=engine: engine  # noqa: E731
        done = calibrate(engine.config, tmp_path, 5.0, build=build)
        assert done.complete
        model = CalibratedCostModel(done.profile)
        plain, graphed = (model.step_cost(decode._replace(graph_batch=size)) for size in (0, 4))
        assert plain[:2] == graphed[:2]
        assert not plain[2]
        columns = model.step_costs(StepFeatures.from_shapes([decode._replace(graph_batch=4)]))
        assert columns.extrapolated.tolist() == [graphed[2]]
        found[device] = graphed[2]
    assert found == {"cpu": False, "NVIDIA H200": True}


def test_a_cpu_plans_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes while it launches: no plan is in flight when the next is made, nor in a fork."""
    result = calibrate_cpu(tmp_path, "-q")
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path)
    profile = f"hardware.profile={tmp_path}/cpu-tiny-model-fp32-tp1.json"
    assert invoke("simulate", "engine_on_cpu", "--set", profile, "-q").exit_code == 0
    changed = ("--set", "deployment.pools.0.max_running_requests=2")
    result = invoke("simulate", "--fork", "runs/engine_on_cpu-1@30", *changed, "-q")
    assert result.exit_code == 0, result.output
    runs = list(Path("runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        steps = RunReader(run).table("steps")
        assert len(steps["step"]) > 30
        assert (steps["plan_ns"][1:] >= steps["end_ns"][:-1]).all(), run


class SlowProcessor(MadeUpProcessor):
    """Its steps pass time: as much as `true_ns` says, or so many times more."""

    slower = 1.0

    def __init__(self, config: RunnerConfig) -> None:
        super().__init__(config)
        self.passed = PassingTime()

    def launch(self, plan: StepPlan) -> MadeUpStep:
        step = super().launch(plan)
        self.passed.now += round(self.slower * true_ns(StepShape(*features_of(plan), UNKNOWN)))
        return step


class PassingTime(FakeClock):
    """A clock of which all others are made; that one starts anew does not move it."""

    begin = 0

    def __call__(self) -> int:
        return self.now - self.begin

    def restart(self) -> None:
        self.begin = self.now

    def monotonic(self) -> float:
        """Now in s, as `time.monotonic`."""
        return self.now / 1e9


@pytest.mark.parametrize(
    ("minutes", "slower"), [(0.1, 1.0), (0.5, 1.0), (3.0, 1.0), (0.5, 5.0), (3.0, 20.0)]
)
def test_the_minutes_of_a_cpu_are_all_that_measuring_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, slower: float
) -> None:
    """Serving counts as well as single steps, on a slow machine too, if there is work enough."""
    engine = SlowProcessor(replace(CONFIG, cuda_graph_batch_sizes=()))
    engine.slower, passed = slower, engine.passed
    monkeypatch.setattr(calibration, "HostClock", lambda: passed)
    clocks = SimpleNamespace(monotonic=passed.monotonic, time=time.time)
    monkeypatch.setattr(calibration, "time", clocks)
    monkeypatch.setattr(measuring, "time", clocks)
    build: Any = lambda *_: engine  # noqa: E731
    done = calibrate(engine.config, tmp_path, minutes, build=build)
    taken = passed.monotonic() / 60 / minutes
    assert taken <= 1.1
    assert taken >= 0.9 or done.complete
    assert done.profile.fit.limits["prefill_tokens"] == CONFIG.max_num_batched_tokens
    assert done.profile.wake_samples is not None
    assert len(done.profile.wake_samples) > 10


def test_a_demo_model_is_calibrated_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limits of the scenarios for CPUs, so that minutes are minutes; under its name."""
    configs = []

    def made_up(config: RunnerConfig, *rest: Any, **more: Any) -> Calibration:
        configs.append(config)
        done, _ = calibrated(tmp_path)
        return done

    monkeypatch.setattr(calibration, "calibrate", made_up)
    arguments = ("--device", "cpu", "--output-dir", str(tmp_path), "-q")
    assert invoke("calibrate", "--model", "demo-dense", *arguments).exit_code == 0
    assert invoke("calibrate", "--cpu", "--output-dir", str(tmp_path), "-q").exit_code == 0
    for config, scenario in zip(configs, ("demo_model", "engine_on_cpu"), strict=True):
        (pool,) = load_scenario(scenario).scenario.deployment.pools
        assert config.device == "cpu"
        assert config.num_pages == pool.num_pages
        assert config.cuda_graph_batch_sizes == ()
        assert config.max_num_batched_tokens == pool.max_num_batched_tokens
        assert config.max_running_requests == pool.max_running_requests
