"""Steps that compute among steps that read memory, more and more of them, without a pause.

A GPU that computes a lot comes to its power limit and lowers its clocks: how much longer steps of
both kinds take then, and when, is what these measurements tell.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import cycle

from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served
from engine.runtime.executor import Executor, RunningStep

# How many steps of each kind take turns: prompts, decode steps.
PATTERNS = ((0, 1), (1, 16), (1, 8), (1, 5), (1, 3), (1, 2), (1, 1), (2, 1), (4, 1), (1, 0))
PATTERN_NS = 700_000_000  # of device time, for each
_PROMPT_TOKENS, _DECODES, _CONTEXT = 512, 16, 512
_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class WarmingTimes:
    """Steps in the order in which they ran: the tokens of each, and its time on the device."""

    tokens: list[int] = field(default_factory=list)
    gpu_ns: list[int] = field(default_factory=list)


def measure_warming(executor: Executor, limits: EngineLimits, vocab_size: int) -> WarmingTimes:
    """Run all patterns, one after the other.

    Args:
        executor: of the engine.
        limits: of the engine; one too small for such steps gives no times.
        vocab_size: prompts are of random tokens below it.
    """
    found = WarmingTimes()
    prompt = StepDesign((Chunk(_PROMPT_TOKENS),))
    decode = StepDesign(decodes=as_served(_DECODES, _CONTEXT, limits.max_model_len))
    if (
        not (limits.allows(prompt) and limits.allows(decode))
        or limits.max_running_requests < 2 * _DECODES
    ):
        return found
    plans: list[StepPlan] = []
    for number, design in enumerate((prompt, decode)):
        before, plan = PlanMaker(limits, vocab_size, part=(number, 2)).make(design)
        if before is not None:
            executor.launch(before).result()
        executor.launch(plan).result()  # the first may compile or allocate something
        plans.append(plan)
    for pattern in PATTERNS:
        turn = [plan for plan, count in zip(plans, pattern, strict=True) for _ in range(count)]
        _run(executor, turn, found)
    return found


def _run(executor: Executor, turn: list[StepPlan], found: WarmingTimes) -> None:
    """Repeat the steps of a turn for a while; they follow each other as when serving."""
    flying: deque[tuple[int, RunningStep]] = deque()
    total = 0
    for plan in cycle(turn):
        flying.append((plan.prefill_tokens + plan.decode_tokens, executor.launch(plan)))
        if len(flying) == _IN_FLIGHT or total >= PATTERN_NS:
            tokens, step = flying.popleft()
            total += (gpu_ns := step.result().gpu_ns)
            found.tokens.append(tokens)
            found.gpu_ns.append(gpu_ns)
        if total >= PATTERN_NS:
            break
    for tokens, step in flying:
        found.tokens.append(tokens)
        found.gpu_ns.append(step.result().gpu_ns)
