"""A place where loads are measured on a made-up H200, and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_executor import FakeClock, FakeRunner, FakeStep, Faults
from made_up_engine import GRAPHS, calibrated, true_ns
from msgspec.structs import replace

from engine.core.plan import StepPlan
from engine.profiling.measuring import features_of
from simulator.cost_model import UNKNOWN, StepShape
from simulator.profile_file import encode_profile
from workbench.fidelity.judge import Judgement
from workbench.fidelity.loads import Load
from workbench.fidelity.run import run_suite
from workbench.fidelity.suite import Basis, open_suite
from workbench.running.engine_setup import EngineOptions

TRACES = Path(__file__).parent / "fixtures" / "traces"
SHORT = """workload={kind: synthetic, num_requests: 40,
    prompt_len: {kind: uniform, min: 20, max: 300}, output_len: {kind: uniform, min: 5, max: 40}}"""
OFFLINE = Load("offline", SHORT)
HALF = Load("poisson 50 %", SHORT, "load={kind: poisson, request_rate: {rate}}", 0.5)
TRACED = Load("trace", "workload={kind: trace, path: {trace}}",
              "load={kind: trace, time_scale: {scale}}", 0.5)  # fmt: skip
LOADS = (OFFLINE, HALF, TRACED)
POOL = {"max_num_batched_tokens": 512, "max_running_requests": 16,
        "cuda_graph_batch_sizes": list(GRAPHS)}  # fmt: skip
BASIS = Basis("quickstart", (f"deployment.pools=[{json.dumps(POOL)}]",), LOADS)
DUMMY = EngineOptions(load_format="dummy")


class TimedEngine(FakeRunner):
    """An H200 whose steps take what `made_up_engine.true_ns` says."""

    device = "NVIDIA H200"

    def facts(self) -> dict[str, Any]:
        known = {"device": self.device, "dtype": "bfloat16", "page_size": 16}
        return {**super().facts(), **known}

    def launch(self, plan: StepPlan) -> FakeStep:
        if plan.plan_id == 0:
            self._free_ns = 0  # another run, another time
        return super().launch(plan)


class Place:
    """A folder, a profile, and engines that are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "measured"
        done, _ = calibrated(folder)
        self.profile, self.path = done.profile, done.path
        self.built: list[TimedEngine] = []
        self.faults: Faults | None = None

    def run(
        self, *loads: Load, repeats: int | None = None, trace: Path | None = None,
        options: EngineOptions | None = DUMMY, say: Any = lambda _: None,
    ) -> Judgement:  # fmt: skip
        suite = open_suite(
            self.folder, BASIS, self.profile, self.path, repeats=repeats, trace=trace,
            make=options is not None,
        )  # fmt: skip
        return run_suite(
            suite, loads or LOADS, self.profile, self.path, options, build=self._build,
            clock=FakeClock(), say=say,
        )  # fmt: skip

    def judge(self, *loads: Load) -> Judgement:
        return self.run(*loads, options=None)

    def replace(self, **changes: Any) -> None:
        """Another profile in the place of the first."""
        self.profile = replace(self.profile, **changes)
        self.path = self.path.with_name(f"{self.profile.name}.json")
        self.path.write_bytes(encode_profile(self.profile))

    def stamps(self) -> dict[str, int]:
        kept = (path for path in self.folder.iterdir() if not path.name.startswith("judged"))
        return {path.name: path.stat().st_mtime_ns for path in kept}

    def _build(self, config: Any, clock: Any, _: Any) -> TimedEngine:
        def step_ns(plan: StepPlan) -> int:
            return true_ns(StepShape(*features_of(plan), UNKNOWN))

        self.built.append(TimedEngine(config, clock, step_ns=step_ns, faults=self.faults))
        return self.built[-1]
