"""`workbench calibrate` on a CPU: in little time, of small models, and for scenarios of a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from made_up_engine import CONFIG, MadeUpEngine, calibrated

from engine.runtime.runner_config import RunnerConfig
from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import StepFeatures, StepShape
from simulator.profile_file import read_profile
from workbench import calibrate as calibration
from workbench.calibrate import Calibration, calibrate
from workbench.scenario_source import load_scenario


def test_calibrate_on_a_cpu(tmp_path: Path) -> None:
    """The real engine, a tiny model: a profile with which a simulation runs."""
    result = invoke("calibrate", "--cpu", "--minutes", "0.1", "--output-dir", str(tmp_path))
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
    demo, tiny = configs
    pool = load_scenario("demo_model").scenario.deployment.pools[0]
    for config in (demo, tiny):
        assert config.device == "cpu"
        assert config.cuda_graph_batch_sizes == ()
        assert config.max_num_batched_tokens == pool.max_num_batched_tokens
        assert config.max_running_requests == pool.max_running_requests
