"""A bug that must be found, or the harness finds none: now and then a page in use is given away."""

from __future__ import annotations

import random
from typing import Final

from workbench.fuzz.explore import explore
from workbench.fuzz.machine import Operation
from workbench.fuzz.scheduler_machine import MACHINE, SchedulerTrial
from workbench.fuzz.scheduler_setup import Setup

MOST_RUNS: Final = 200


class CanaryDiedError(RuntimeError):
    """The harness did not notice a planted bug: whatever it says of others is worth nothing."""


class _SickTrial(SchedulerTrial):
    """A scheduler trial in whose pool somebody frees a page that a request holds."""

    def __init__(self, seed: int, setup: Setup) -> None:
        super().__init__(seed, setup)
        self._left = 10 + seed % 20

    def choose(self, rng: random.Random) -> Operation:
        self._left -= 1
        if self._left <= 0:
            for request in self.rig.scheduler.book.requests.values():
                own = request.pages[request.cached_depth // self.rig.config.page_size :]
                if own:
                    self._left = 1 << 30
                    self.rig.scheduler.kv.pool.free(own[:1])
                    break
        return super().choose(rng)


def runs_until_found(seed: int = 0) -> int:
    """How many runs it takes to find the planted bug.

    Raises:
        CanaryDiedError: more than `MOST_RUNS`.
    """
    from dataclasses import replace

    sick = replace(MACHINE, open=_SickTrial)
    for run in range(MOST_RUNS):
        if explore(sick, seed + run, frozenset()).failure is not None:
            return run + 1
    raise CanaryDiedError(
        f"a planted bug (a page in use is freed) was not found in {MOST_RUNS} runs: "
        "the fuzzer is broken, and its silence means nothing"
    )
