"""Step times without a meaning: a hash of the step's shape, coarse enough that many coincide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from simulator.cost_model import StepCosts, StepFeatures, StepShape
from simulator.power_state import PowerFit
from simulator.waking import WakeFit
from workbench.fuzz.draws import draw

_UNIT_NS = 250_000
_HOT = PowerFit(
    token_ns=_UNIT_NS / 8, load=(0.1, 0.5), slowdown=(0.0, 1.0), memory_share=0.5, light_busy=0.05
)

LEAST_HOST_NS: Final = 2 * _UNIT_NS  # what a busy GPU waits for at least, or for all there is
_SLEEPY = WakeFit(
    idle_ns=(_UNIT_NS, 40 * _UNIT_NS),
    gpu_ns=(0.0, _UNIT_NS),
    lead_ns=(-_UNIT_NS / 4, _UNIT_NS / 2),
    most_host_ns=LEAST_HOST_NS,
    result_ns=_UNIT_NS // 3,
)


@dataclass(frozen=True, slots=True)
class HashedCosts:
    """A cost model; `slow` is a factor on GPU times."""

    seed: int
    slow: int = 1
    name: str = "hashed"

    @property
    def power(self) -> PowerFit | None:
        """Every other seed has a GPU that comes to its power limit."""
        return _HOT if draw(self.seed, 1) % 2 else None

    @property
    def wake(self) -> WakeFit | None:
        """Every third seed has a host that sleeps."""
        return None if draw(self.seed, 2) % 3 else _SLEEPY

    def step_costs(self, features: StepFeatures) -> StepCosts:
        columns = [getattr(features, name).tolist() for name in StepShape._fields]
        costs = [self.step_cost(StepShape(*row)) for row in zip(*columns, strict=True)]
        gpu_ns = np.array([cost[0] for cost in costs], np.int64)
        host_ns = np.array([cost[1] for cost in costs], np.int64)
        return StepCosts(gpu_ns, host_ns, {"step": gpu_ns}, np.zeros(len(features), np.bool_))

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        luck = draw(self.seed, shape.prefill_tokens, shape.decode_context)
        host = draw(self.seed, shape.decode_requests)  # the same all through a decode run
        gpu_ns = (1, 1, 2, 4, 7)[luck % 5] * self.slow * _UNIT_NS
        return gpu_ns, (0, 0, 1, 3)[host % 4] * _UNIT_NS, False

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        if shape.prefill_tokens or not shape.decode_tokens:
            raise ValueError(f"not a pure decode step: {shape}")
        shapes = (
            shape._replace(decode_context=shape.decode_context + at * shape.decode_tokens)
            for at in range(num_steps)
        )
        return [self.step_cost(s)[0] for s in shapes], self.step_cost(shape)[1], False
