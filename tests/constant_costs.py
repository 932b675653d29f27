"""A cost model for checks against theory: every step takes the same time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cost_model import StepCosts, StepFeatures, StepShape
from simulator.power_state import PowerFit
from simulator.waking import WakeFit


@dataclass(frozen=True, slots=True)
class ConstantCosts:
    """Every step takes `gpu_ns` on the GPU and `host_ns` on the host."""

    gpu_ns: int
    host_ns: int = 0
    name: str = "constant"
    power: PowerFit | None = None
    wake: WakeFit | None = None

    def step_costs(self, features: StepFeatures) -> StepCosts:
        gpu_ns = np.full(len(features), self.gpu_ns, np.int64)
        host_ns = np.full(len(features), self.host_ns, np.int64)
        return StepCosts(gpu_ns, host_ns, {"step": gpu_ns}, np.zeros(len(features), np.bool_))

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        return self.gpu_ns, self.host_ns, False

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        return [self.gpu_ns] * num_steps, self.host_ns, False
