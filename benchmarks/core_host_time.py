"""CPU time that `engine.core` takes per step when an engine drives it, by batch size.

    python benchmarks/core_host_time.py [--json FILE] [--steps 400]

Needs numpy only. Two plans are in flight, the members of every plan are read, every commit brings
token ids: what a serving loop would ask for. Prints us per step (plan, read, commit) as the median
over the steps, for pure decode at several batch sizes and for a step that admits one prompt.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer

BATCHES = (1, 8, 32, 64, 128, 256)
PROMPT_TOKENS = 1024


def scheduler_for(batch: int) -> Scheduler:
    """A scheduler with room for `batch` requests and one more."""
    return Scheduler(
        SchedulerConfig(
            num_pages=(batch + 2) * 200,
            max_model_len=1 << 20,
            max_running_requests=batch + 1,
            max_num_batched_tokens=16384,
            cuda_graph_batch_sizes=(batch + 1,),
        )
    )


def new_request(request_id: int, rng: np.random.Generator) -> Request:
    """A prompt of random ids that may generate for long."""
    prompt = rng.integers(0, 100_000, PROMPT_TOKENS)
    return Request(
        request_id, PROMPT_TOKENS, 2000, tokens=TokenBuffer(prompt, PROMPT_TOKENS + 2000)
    )


class Loop:
    """A serving loop whose GPU is infinitely fast: one plan stays in flight."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._flying: tuple[StepPlan, list[int]] | None = None
        self._now = 0

    def turn(self) -> float:
        """Plan one step, commit the one before; returns the seconds both took."""
        self._now += 1
        started = time.perf_counter()
        plan = self.scheduler.plan(self._now)
        rows = len(plan.sampling_requests()) if plan is not None else 0
        planned = time.perf_counter()
        ids = np.arange(rows, dtype=np.int64).tolist()
        flying, self._flying = self._flying, (plan, ids) if plan is not None else None
        resumed = time.perf_counter()
        if flying is not None:
            self.scheduler.commit(flying[0].plan_id, StepResult(token_ids=flying[1]), self._now)
        return planned - started + time.perf_counter() - resumed


def measure(batch: int, steps: int) -> dict[str, float]:
    """us per decode step at `batch`, and per step that admits one more prompt."""
    rng = np.random.default_rng(batch)
    scheduler = scheduler_for(batch)
    loop = Loop(scheduler)
    for request_id in range(batch):
        scheduler.add(new_request(request_id, rng), 0)
    while len(scheduler.book.batch.members) < batch:
        loop.turn()
    loop.turn()
    decode = statistics.median(loop.turn() for _ in range(steps))
    admit = []
    for extra in range(20):
        scheduler.add(new_request(batch + extra, rng), 0)
        admit.append(loop.turn())
        for _ in range(3):
            loop.turn()
        scheduler.abort(batch + extra, 0)
        loop.turn()
    return {"batch": batch, "decode_us": decode * 1e6, "admit_us": statistics.median(admit) * 1e6}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--commit", help="of the tree, if git cannot tell")
    arguments = parser.parse_args()
    points = [measure(batch, arguments.steps) for batch in BATCHES]
    print("batch  decode us/step  us/step that admits a prompt")
    for point in points:
        print(f"{point['batch']:5.0f}  {point['decode_us']:14.1f}  {point['admit_us']:10.1f}")
    if arguments.json:
        facts = {
            "schema": "core-host-time/v1",
            "commit": arguments.commit,
            "python": platform.python_version(),
            "processor": _processor(),
            "points": points,
        }
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
