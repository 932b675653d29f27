"""What a GPU's clocks do: light steps that let them recover, and what steps take when they do not.

A GPU that computes a lot comes to its power limit and lowers its clocks; steps take longer then.
Calibration measures each step after light ones, as most are when serving, and the rest apart: steps
that compute among steps that read memory, more and more of them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from itertools import cycle

from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import repeat, run_in_turn
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served
from engine.runtime.executor import Executor

# How many steps of each kind take turns: prompts, decode steps.
PATTERNS = ((0, 1), (1, 16), (1, 8), (1, 5), (1, 3), (1, 2), (1, 1), (2, 1), (4, 1), (1, 0))
PATTERN_NS = 700_000_000  # of device time, for each
REST_NS = 50_000_000  # of light steps; `simulator.power_state` must know
_LIGHT = StepDesign(decodes=as_served(16, 512, 4096))
_PROMPT = StepDesign((Chunk(512),))
_SHARE = 8  # of all pages at most, for light steps


@dataclass(frozen=True, slots=True)
class WarmingTimes:
    """Steps in the order in which they ran: the tokens of each, and its time on the device."""

    tokens: list[int] = field(default_factory=list)
    gpu_ns: list[int] = field(default_factory=list)


class LightSteps:
    """Decode steps with requests and pages of their own.

    Args:
        executor: of the engine.
        limits: of the engine.
        vocab_size: prompts are of random tokens below it.

    Attributes:
        rest: the same step as often as it takes for the clocks to recover; empty on an engine that
            is too small for it.
        limits: what is left of the engine for other steps.
    """

    def __init__(self, executor: Executor, limits: EngineLimits, vocab_size: int) -> None:
        own = replace(limits, num_pages=_pages(limits), max_running_requests=len(_LIGHT.decodes))
        self.rest: list[StepPlan] = []
        self.limits = limits
        if own.num_pages * _SHARE > limits.num_pages or not limits.allows(_LIGHT):
            return
        self.limits = replace(limits, num_pages=limits.num_pages - own.num_pages)
        maker = PlanMaker(
            own,
            vocab_size,
            first_request=limits.max_running_requests,
            first_page=self.limits.num_pages,
        )
        before, plan = maker.make(_LIGHT)
        if before is not None:
            executor.launch(before).result()
        count = -(-REST_NS // round(statistics.median(repeat(executor, plan))))
        self.rest = [plan] * count


def measure_warming(executor: Executor, light: LightSteps, maker: PlanMaker) -> WarmingTimes:
    """Run all patterns, one after the other.

    Args:
        executor: of the engine.
        light: steps; without any there are no times.
        maker: of plans beside them.
    """
    found = WarmingTimes()
    if not light.rest or not light.limits.allows(_PROMPT):
        return found
    _, prompt = maker.make(_PROMPT)
    executor.launch(prompt).result()  # the first may compile or allocate something
    for prompts, decodes in PATTERNS:
        turn, total = [prompt] * prompts + light.rest[:1] * decodes, 0
        for plan, gpu_ns in run_in_turn(executor, cycle(turn)):
            found.tokens.append(plan.prefill_tokens + plan.decode_tokens)
            found.gpu_ns.append(gpu_ns)
            if (total := total + gpu_ns) >= PATTERN_NS:
                break
    return found


def _pages(limits: EngineLimits) -> int:
    return sum(-(-length // limits.page_size) for length in _LIGHT.decodes)
