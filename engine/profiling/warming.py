"""What a GPU's clocks do: light steps that let them recover, and what steps take when they do not.

A GPU that computes a lot comes to its power limit and lowers its clocks; steps take longer then.
Calibration measures each step after light ones, as most are when serving, and the rest apart: steps
that compute among steps that read memory, more and more of them; and steps of all kinds right after
prompts, when clocks are as low as they get.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import cycle

from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import Features, features_of, repeat, run_in_turn
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served, hot_steps
from engine.runtime.executor import Executor

# How many steps of each kind take turns: prompts, decode steps.
PATTERNS = ((0, 1), (1, 16), (1, 8), (1, 5), (1, 3), (1, 2), (1, 1), (2, 1), (4, 1), (1, 0))
PATTERN_NS = 700_000_000  # of device time, for each
REST_NS = 50_000_000  # of light steps; `simulator.power_state` must know
_HEAT_NS = 100_000_000  # of prompts: by then the law has the load that they come to
_TURNS = 3  # of a step with cool clocks and one with low ones
_HOT_NS = 60_000_000  # of both, with making them; about
_LIGHT = StepDesign(decodes=as_served(16, 512, 4096))
_PROMPTS = (512, 1024, 2048, 4096)  # tokens; the first that computes about as much a token heats
_ABOUT = 1.2
_SHARE = 8  # of all pages at most, for light steps


@dataclass(frozen=True, slots=True)
class WarmingTimes:
    """Steps in the order in which they ran: the tokens of each, and its time on the device."""

    tokens: list[int] = field(default_factory=list)
    gpu_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HotTimes:
    """What steps take on the device after light steps, and right after prompts for a while.

    Attributes:
        shapes: of the steps.
        cool_ns, hot_ns: of each, medians.
        heat_ns: how long prompts ran before each, the median.
    """

    shapes: list[Features] = field(default_factory=list)
    cool_ns: list[int] = field(default_factory=list)
    hot_ns: list[int] = field(default_factory=list)
    heat_ns: list[int] = field(default_factory=list)


class SideSteps:
    """A light decode step and a prompt, with requests and pages of their own.

    Args:
        executor: of the engine.
        limits: of the engine.
        vocab_size: prompts are of random tokens below it.

    Attributes:
        rest: the light step as often as it takes for the clocks to recover; empty on an engine that
            is too small for it.
        heat: the prompt that heats, as often as it takes to; empty on such an engine.
        limits: what is left of the engine for other steps.
        seconds: that `measure_warming` and `measure_hot` take, about.
    """

    def __init__(self, executor: Executor, limits: EngineLimits, vocab_size: int) -> None:
        self.rest: list[StepPlan] = []
        self.heat: list[StepPlan] = []
        self.limits, self.seconds = limits, 0.0
        designs = [_LIGHT, *(StepDesign((Chunk(tokens),)) for tokens in _PROMPTS)]
        designs = [design for design in designs if limits.allows(design)]
        pages = sum(_pages(design, limits) for design in designs)
        if pages * _SHARE > limits.num_pages or _LIGHT not in designs or len(designs) < 2:
            return
        self.limits = replace(limits, num_pages=limits.num_pages - pages)
        request, page = limits.max_running_requests, self.limits.num_pages
        plans, times_ns = [], []
        for design in designs:
            own = replace(
                limits, num_pages=_pages(design, limits), max_running_requests=_requests(design)
            )
            maker = PlanMaker(own, vocab_size, first_request=request, first_page=page)
            before, plan = maker.make(design)
            if before is not None:
                executor.launch(before).result()
            plans.append(plan)
            times_ns.append(_median(repeat(executor, plan)))
            request, page = request + own.max_running_requests, page + own.num_pages
        (light, *prompts), (light_ns, *prompts_ns) = plans, times_ns
        self.rest = [light] * -(-REST_NS // light_ns)
        each_ns = [ns / plan.prefill_tokens for ns, plan in zip(prompts_ns, prompts, strict=True)]
        at = next(at for at, ns in enumerate(each_ns) if ns <= _ABOUT * each_ns[-1])
        self.heat = [prompts[at]] * -(-_HEAT_NS // prompts_ns[at])
        hot_ns = _TURNS * (REST_NS + len(self.heat) * prompts_ns[at] + _HOT_NS)
        self.seconds = (PATTERN_NS * len(PATTERNS) + hot_ns * len(hot_steps(self.limits))) / 1e9


def measure_warming(executor: Executor, side: SideSteps) -> WarmingTimes:
    """Run all patterns, one after the other.

    Args:
        executor: of the engine.
        side: steps; without any there are no times.
    """
    found = WarmingTimes()
    if not side.heat:
        return found
    for prompts, decodes in PATTERNS:
        turn, total = side.heat[:1] * prompts + side.rest[:1] * decodes, 0
        for plan, gpu_ns in run_in_turn(executor, cycle(turn)):
            found.tokens.append(plan.prefill_tokens + plan.decode_tokens)
            found.gpu_ns.append(gpu_ns)
            if (total := total + gpu_ns) >= PATTERN_NS:
                break
    return found


def measure_hot(executor: Executor, side: SideSteps, maker: PlanMaker) -> HotTimes:
    """Run steps of all kinds with cool clocks and with low ones, in turn.

    Args:
        executor: of the engine.
        side: steps; without any there are no times.
        maker: of plans beside them.
    """
    found = HotTimes()
    if not side.heat:
        return found
    for design in hot_steps(side.limits):
        before, plan = maker.make(design)
        if before is not None:
            executor.launch(before).result()
        executor.launch(plan).result()
        turn = [*side.rest, plan, *side.heat, plan]
        times = [ns for _, ns in run_in_turn(executor, turn * _TURNS)]
        turns = [times[at : at + len(turn)] for at in range(0, len(times), len(turn))]
        heat = slice(len(side.rest) + 1, -1)
        found.shapes.append(features_of(plan))
        found.cool_ns.append(_median(each[len(side.rest)] for each in turns))
        found.hot_ns.append(_median(each[-1] for each in turns))
        found.heat_ns.append(_median(sum(each[heat]) for each in turns))
    return found


def _median(times: Iterable[int]) -> int:
    return round(statistics.median(times))


def _pages(design: StepDesign, limits: EngineLimits) -> int:
    lengths = (*design.decodes, *(chunk.tokens for chunk in design.chunks))
    return sum(-(-length // limits.page_size) for length in lengths)


def _requests(design: StepDesign) -> int:
    return len(design.chunks) + len(design.decodes)
