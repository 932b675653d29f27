"""First steps after idle times: a short prompt arrives at an engine that had nothing to do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.core.config import SchedulerConfig
from engine.core.events import EventLog
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.profiling.measuring import FEATURES, Features, NoEnds
from engine.runtime.executor import Executor
from engine.runtime.serving_loop import ServingLoop, Turn

IDLE_MS = (0.5, 2, 10, 50, 250)
PROMPTS = (24, 60, 180)  # tokens; so few that clocks do not fall
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class IdleTimes:
    """One entry a step.

    Attributes:
        shapes: of the steps.
        idle_ns: how long the device had nothing to do when the step was planned.
        lead_ns: from the plan to the device's first work, and from its last until the host knows.
        gpu_ns: that the device worked.
    """

    shapes: list[Features] = field(default_factory=list)
    idle_ns: list[int] = field(default_factory=list)
    lead_ns: list[int] = field(default_factory=list)
    gpu_ns: list[int] = field(default_factory=list)


def measure_idling(
    executor: Executor, config: SchedulerConfig, clock: Callable[[], int], vocab_size: int
) -> IdleTimes:
    """Serve one prompt after each idle time, several times.

    Args:
        executor: of the engine.
        config: of its scheduler.
        clock: the executor's.
        vocab_size: prompts are of random tokens below it.
    """
    log = EventLog()
    loop = ServingLoop(Scheduler(config, log), executor, clock, NoEnds(), log)
    draw = random.Random(_REPEATS)  # noqa: S311 - prompts, no secret
    found, number = IdleTimes(), 0
    lengths = [length for length in PROMPTS if length < config.max_model_len]
    for idle_ms in (0.0, *IDLE_MS):  # the first is a rehearsal
        for length in lengths * _REPEATS:
            time.sleep(idle_ms / 1e3)
            prompt = [draw.randrange(vocab_size) for _ in range(length)]
            loop.add(Request(number, length, 1, tokens=TokenBuffer(prompt, length + 1)))
            number += 1
            while loop.has_work:
                if loop.turn() is Turn.WAIT:
                    loop.commit_oldest()
    steps = log.tables()["steps"]
    ends = steps["start_ns"] + steps["gpu_ns"]
    for at in range(len(lengths) * _REPEATS, len(ends)):
        found.shapes.append(tuple(int(steps[name][at]) for name in FEATURES))
        found.idle_ns.append(max(0, int(steps["plan_ns"][at] - ends[at - 1])))
        taken = int(steps["end_ns"][at] - steps["plan_ns"][at])
        found.lead_ns.append(max(0, taken - int(steps["gpu_ns"][at])))
        found.gpu_ns.append(int(steps["gpu_ns"][at]))
    return found
