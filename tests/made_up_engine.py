"""An H200 that is made up: an engine whose steps take what a formula says, and its calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.core.model_spec import load_model_spec
from engine.core.plan import StepPlan
from engine.profiling.measuring import features_of
from engine.runtime.executor import StepOutput
from engine.runtime.runner_config import RunnerConfig
from simulator.cost_model import UNKNOWN, StepShape
from workbench.calibration import served_times
from workbench.calibration.calibrate import Calibration, calibrate

GRAPHS = (1, 2, 4, 8, 16)
CONFIG = RunnerConfig(
    model="Llama-3.1-8B", load_format="dummy", max_num_batched_tokens=512,
    max_running_requests=16, cuda_graph_batch_sizes=GRAPHS,
)  # fmt: skip


def true_ns(shape: StepShape) -> int:
    """What a step of the made-up engine takes."""
    s = shape
    if s.graph_batch:
        return 4_000_000 + 20_000 * s.graph_batch + 40 * s.decode_context
    tokens = s.prefill_tokens + s.decode_tokens
    work = 5_000_000 + 23_000 * tokens + 30 * s.prefill_context + 2 * s.prefill_pairs
    return work + 45 * s.decode_context + 9_000 * s.prefill_requests + 900 * s.sampled_tokens


class MadeUpStep:
    """A step that is done."""

    def __init__(self, plan: StepPlan, noise: float) -> None:
        self._rows = len(plan.sampling_requests())
        self._ns = round(true_ns(StepShape(*features_of(plan), UNKNOWN)) * noise)

    def is_done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return StepOutput(np.full(self._rows, 7, np.int32), None, None, 0, self._ns)


class MadeUpEngine:
    """An H200 whose steps take what `true_ns` says, give or take half a percent."""

    max_model_len = 32_768
    num_pages = 20_000

    def __init__(self, config: RunnerConfig) -> None:
        self.config, self.spec = config, load_model_spec(config.model)
        self.noisy = self.closed = False
        self._rng = np.random.default_rng(3)

    def facts(self) -> dict[str, Any]:
        return {
            "device": "NVIDIA H200", "dtype": "bfloat16", "page_size": 16,
            "cuda_graph_batch_sizes": list(GRAPHS), "cuda_graph_tokens": [],
            "kernels": {"linear": "triton"}, "torch": "2", "triton": None,
        }  # fmt: skip

    def launch(self, plan: StepPlan) -> MadeUpStep:
        return MadeUpStep(plan, 1 + 0.005 * self._rng.standard_normal())

    def register(self, request_id: int, params: Any) -> None:
        """Nothing to note."""

    def forget(self, request_id: int) -> None:
        """Nothing to forget."""

    def ceilings(self) -> dict[str, float]:
        return {"copy_tb_s": 4.0}

    def fill_cache_with_noise(self) -> None:
        self.noisy = True

    def close(self) -> None:
        self.closed = True


def calibrated(
    folder: Path, minutes: float = 5.0, config: RunnerConfig = CONFIG, **changes: Any
) -> tuple[Calibration, MadeUpEngine]:
    engine = MadeUpEngine(config)
    for name, value in changes.items():
        setattr(engine, name, value)
    build: Any = lambda *_: engine  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:  # a made-up engine needs no long rest
        patch.setattr(served_times, "_IDLE_MS", (0.5, 2.0, 10.0))
        return calibrate(config, folder, minutes, build=build), engine
