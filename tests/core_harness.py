"""Seeded runs of a scheduler against fakes, with every law checked after every event."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.events import Detail, EventLog
from engine.core.journal import Journal
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.plan_laws import PlanLaw
from workbench.fuzz.rig import Rig
from workbench.fuzz.tiny import TICK_NS, random_asks, random_config


def machine_settings(max_examples: int, steps: int = 40) -> settings:
    """Settings of a state machine: the same examples on every run, no deadline, no database."""
    return settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        derandomize=True,
        report_multiple_bugs=False,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def fresh_seeds(count: int) -> list[int]:
    """Seeds that no run before has tried; pytest shows them when a test fails."""
    seeds = [random.SystemRandom().getrandbits(32) for _ in range(count)]
    print("fresh seeds:", seeds)
    return seeds


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong, per event."""

    abort: float = 0.0
    fail: float = 0.0
    reconfigure: float = 0.0
    transfers: bool = False
    nan: float = 0.0


NO_FAULTS = Faults()
ALL_FAULTS = Faults(abort=0.03, fail=0.02, reconfigure=0.01, transfers=True, nan=0.01)


class Run(Rig):
    """A rig driven by random events; `play` goes on until every request has ended."""

    def __init__(
        self,
        seed: int,
        config: SchedulerConfig,
        asks: Sequence[Ask],
        faults: Faults = NO_FAULTS,
        laws: Sequence[PlanLaw] = (),
        detail: Detail = Detail.PAGES,
    ) -> None:
        super().__init__(
            seed,
            config,
            laws=laws,
            log=EventLog(detail),
            journal=Journal(),
            transfer_faults=faults.transfers,
            nan_rate=faults.nan,
        )
        self.asks |= {ask.request_id: ask for ask in asks}
        self.rng = random.Random(seed)
        self.faults = faults
        self._to_send = list(asks)
        self._most_plans = 400 + 60 * sum(len(a.prompt) + a.max_tokens for a in asks)

    def play(self) -> Run:
        """Random events until everything has ended, then the checks of an idle scheduler."""
        while self._to_send or self.scheduler.has_work:
            self.event()
        self.quiesce()
        return self

    def event(self) -> None:
        """One random event and all checks."""
        rng, self.now = self.rng, self.now + TICK_NS
        if self._to_send and (rng.random() < 0.4 or not self.scheduler.has_work):
            self.send(self._to_send.pop(0))
        if self.requests and rng.random() < self.faults.abort:
            self.abort(rng.choice(list(self.requests)))
        if self.links.trips and rng.random() < 0.3:
            self.finish_transfer(rng.getrandbits(16))
        if rng.random() < self.faults.reconfigure:
            kept = {name: getattr(self.config, name) for name in UNCHANGEABLE}
            self.reconfigure(random_config(rng, **kept))
        self.device.run_some(rng.choice([0, 0, 0, 1, 4]))
        depth = self.config.max_plans_in_flight
        if len(self.device.in_flight) < depth and rng.random() < 0.8:
            self._plan()
        if self.device.in_flight and (rng.random() < 0.5 or len(self.device.in_flight) >= depth):
            self.commit()

    def _plan(self) -> None:
        if self.plan(self.rng.random() < self.faults.fail) is not None:
            assert self.plans < self._most_plans, "the requests do not come to an end"
        elif self.faults.transfers and not self.device.in_flight and self.rng.random() < 0.5:
            self.now = max(self.now, (self.scheduler.next_wakeup() or 0) - 1)


def random_run(
    seed: int,
    faults: Faults = NO_FAULTS,
    laws: Sequence[PlanLaw] = (),
    handoffs: bool = False,
    count: int = 24,
    **fixed: Any,
) -> Run:
    """A finished run that is a function of its arguments alone."""
    rng = random.Random(seed)
    if not faults.transfers:
        fixed.setdefault("transfer_timeout_ns", 10**18)
    config = random_config(rng, **fixed)
    run = Run(seed, config, random_asks(rng, config, count, handoffs), faults, laws)
    try:
        return run.play()
    except Exception as error:
        error.add_note(f"seed {seed}: {config}")
        raise
