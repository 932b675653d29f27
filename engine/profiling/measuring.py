"""How long an engine takes over steps of given shapes."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.step_shapes import StepDesign
from engine.runtime.executor import Executor, RunningStep

PASSES = 3  # over all steps, in another order each, so that a drift of the clocks hits none alone
_IN_FLIGHT = 2
_MOST_REPEATS, _LEAST_REPEATS = 10, 3
_PASS_SECONDS = 0.08  # of one step's repetitions
_SPARED = 0.5  # of its share of the time; one that is long takes more than its share
# Repetitions in each pass, where they need a rest before; steps that only decode repeat to 0.1 %.
_RESTED, _RESTED_LIGHT = (2, 2, 1), (2, 2)

Features = tuple[int, ...]
"""A step's shape as integers, in the order of `FEATURES`."""
FEATURES = (
    "prefill_tokens", "prefill_requests", "prefill_context", "prefill_pairs",
    "prefill_max_context", "decode_requests", "decode_tokens", "decode_context",
    "decode_max_context", "shared_context", "sampled_tokens", "graph_batch",
)  # fmt: skip


def features_of(plan: StepPlan) -> Features:
    """The shape of a plan."""
    return (
        plan.prefill_tokens, len(plan.prefills), plan.prefill_context, plan.prefill_pairs,
        plan.prefill_max_context, plan.decode_requests, plan.decode_tokens, plan.decode_context,
        plan.decode_max_context, plan.shared_context, plan.sampled_tokens, plan.graph_batch,
    )  # fmt: skip


@dataclass(slots=True)
class Measurements:
    """Times of the device in ns, one list a shape; what is here need not be measured again.

    Attributes:
        times: shape -> one time a repetition.
        passes: shape -> how often all its repetitions were made.
    """

    times: dict[Features, list[int]] = field(default_factory=dict)
    passes: dict[Features, int] = field(default_factory=dict)

    def add(self, shape: Features, times: Iterable[int]) -> None:
        """One more pass over a shape."""
        self.times.setdefault(shape, []).extend(times)
        self.passes[shape] = self.passes.get(shape, 0) + 1


def measure_steps(
    executor: Executor,
    maker: PlanMaker,
    designs: list[StepDesign],
    done: Measurements,
    *,
    deadline_s: float,
    measured: Callable[[Features, list[int], float], object],
    rest: Sequence[StepPlan] = (),
    paced: bool = False,
) -> bool:
    """Measure all steps in several passes, as far as time allows.

    The first pass goes by the order of `designs`, later ones by chance. Where clocks rest, the last
    is of steps with prompts only.

    Args:
        executor: to be measured.
        maker: of its plans.
        designs: what to run.
        done: what there is already; grows.
        deadline_s: on `time.monotonic`.
        measured: told (shape, times in ns, share of all passes that are done) after each.
        rest: steps that run before each that is measured, so that the clocks recover.
        paced: a step is repeated no longer than its share of the time that is left, but once: so
            that all passes are made if they can be.

    Returns:
        Whether all passes were made.
    """
    order = list(designs)
    passes = {design: _passes(design, rested=bool(rest)) for design in order}
    total = sum(passes.values())
    left = total - sum(done.passes.values())
    shuffle, at = random.Random(1), 0  # noqa: S311 - an order, no secret
    ran: set[Features] = set()
    for number in range(PASSES):
        for design in order:
            if number >= passes[design]:
                continue
            at += 1
            before, plan = maker.make(design)
            shape = features_of(plan)
            if done.passes.get(shape, 0) > number:
                continue
            seconds = deadline_s - time.monotonic()
            if seconds <= 0:
                return False
            if before is not None:
                executor.launch(before).result()
            if paced:
                share_s = seconds / max(1, left)
                times = repeat(executor, plan, within_s=_SPARED * share_s)
            elif rest:
                times = repeat_rested(executor, plan, rest, number, ran=shape in ran)
            else:
                times = repeat(executor, plan)
            ran.add(shape)
            left -= 1
            done.add(shape, times)
            measured(shape, times, at / total)
        shuffle.shuffle(order)
    return True


def _passes(design: StepDesign, *, rested: bool) -> int:
    if not rested:
        return PASSES
    return len(_RESTED if design.chunks else _RESTED_LIGHT)


def repeat(executor: Executor, plan: StepPlan, *, within_s: float | None = None) -> list[int]:
    """Times in ns of a plan, run again and again as steps follow each other when serving.

    The first is not among them: it may compile or allocate something.

    Args:
        executor: to be measured.
        plan: to run.
        within_s: that all may take, the first one too; there is at least one time, however long.
    """
    begin = time.monotonic()
    executor.launch(plan).result()
    if within_s is None:
        least, until = _LEAST_REPEATS, time.monotonic() + _PASS_SECONDS
    else:
        least, until = 1, begin + within_s
    flying: deque[RunningStep] = deque()
    times: list[int] = []
    launched = 0
    while launched < least or (launched < _MOST_REPEATS and time.monotonic() < until):
        flying.append(executor.launch(plan))
        launched += 1
        if len(flying) == _IN_FLIGHT:
            times.append(flying.popleft().result().gpu_ns)
    times += [step.result().gpu_ns for step in flying]
    return times


def repeat_rested(
    executor: Executor,
    plan: StepPlan,
    rest: Sequence[StepPlan],
    number: int = 0,
    *,
    ran: bool = False,
) -> list[int]:
    """Times in ns of a plan after steps that let the clocks recover; as `repeat`.

    One that only decodes does not heat the GPU for the next, so one rest serves all repetitions.

    Args:
        executor: to be measured.
        plan: to run.
        rest: before it.
        number: of the pass, from 0 on.
        ran: whether such a plan ran before; of prompts alone nothing is left to compile or to
            allocate then, and decoding requests show their pages to the executor.
    """
    if not ran or plan.decode_requests:
        executor.launch(plan).result()
    if plan.prefill_tokens == 0:
        turns = [*rest, *[plan] * _RESTED_LIGHT[number]]
    else:
        turns = [*rest, plan] * _RESTED[number]
    return [ns for step, ns in run_in_turn(executor, turns) if step is plan]


def run_in_turn(executor: Executor, plans: Iterable[StepPlan]) -> Iterator[tuple[StepPlan, int]]:
    """(plan, its time in ns), of steps that follow each other as when serving."""
    flying: deque[tuple[StepPlan, RunningStep]] = deque()
    for plan in plans:
        flying.append((plan, executor.launch(plan)))
        if len(flying) == _IN_FLIGHT:
            done, step = flying.popleft()
            yield done, step.result().gpu_ns
    for done, step in flying:
        yield done, step.result().gpu_ns
