"""Many runs: blocks of seeds in one process or several, until the time is over or a law breaks."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final

from workbench.fuzz.explore import Failure, explore
from workbench.fuzz.lines import TRACED_EVERY, Line, due, traced, unreached
from workbench.fuzz.machines import MACHINES, machine_of

BLOCK_RUNS: Final = 64  # seeds that are done or not done together
HOUR_S: Final = 3600.0  # an exploration of this length must reach every mark


@dataclass
class Tally:
    """What some runs amount to.

    Attributes:
        runs, checks: by machine: runs, and operations after which the laws were checked.
        cpu_s: processor time.
        marks: what has happened at least once, as "machine: mark".
        lines: lines of the core that ran in traced runs.
        failures: (machine, seed, what) of each violation.
    """

    runs: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    marks: set[str] = field(default_factory=set)
    lines: set[Line] = field(default_factory=set)
    failures: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what other runs amount to."""
        self.runs += other.runs
        self.checks += other.checks
        self.cpu_s += other.cpu_s
        self.marks |= other.marks
        self.lines |= other.lines
        self.failures += other.failures

    def unreached(self) -> list[str]:
        """Marks of the machines that ran which never happened."""
        due = {f"{name}: {mark}" for name in self.runs for mark in MACHINES[name].marks}
        return sorted(due - self.marks)

    def unreached_lines(self) -> list[str]:
        """Lines of the core that never ran, with their text, if all machines took part."""
        if set(self.runs) != set(MACHINES):
            return []
        lines = due()
        return [f"{name}.py:{line}: {lines[name, line]}" for name, line in unreached(self.lines)]


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        seed: of the first run; the others count on.
        runs: how many at most, or None.
        seconds: for how long at most.
        faults: which may occur.
        machines: which may run; empty: all.
        jobs: processes.
    """

    seed: int
    runs: int | None
    seconds: float
    faults: frozenset[str]
    machines: tuple[str, ...] = ()
    jobs: int = 1


def run_block(first: int, count: int, faults: frozenset[str], machines: Sequence[str]) -> Tally:
    """The runs of the seeds from `first` on, up to the first violation."""
    tally = Tally()
    started_s = time.process_time()
    for seed in range(first, first + count):
        machine = machine_of(seed, machines)
        trace = traced(tally.lines) if seed % TRACED_EVERY == 0 else nullcontext()
        with trace:
            outcome = explore(machine, seed, faults)
        tally.runs[machine.name] += 1
        tally.checks[machine.name] += outcome.checks
        tally.marks.update(f"{machine.name}: {mark}" for mark in outcome.marks)
        if outcome.failure is not None:
            error = outcome.failure.error
            tally.failures.append((machine.name, seed, f"{type(error).__name__}: {error}"))
            break
    tally.cpu_s = time.process_time() - started_s
    return tally


def carry_out(
    plan: Plan,
    on_progress: Callable[[Tally], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tally:
    """Run blocks until the plan is fulfilled, a law is broken, or `should_stop` says so."""
    until_s = time.monotonic() + plan.seconds
    total = Tally()

    def over() -> bool:
        return bool(total.failures) or should_stop() or time.monotonic() >= until_s

    if plan.jobs == 1:
        for first, count in _blocks(plan):
            total.add(run_block(first, count, plan.faults, plan.machines))
            on_progress(total)
            if over():
                break
    else:
        _in_processes(plan, total, on_progress, over)
    return total


def _in_processes(
    plan: Plan, total: Tally, on_progress: Callable[[Tally], None], over: Callable[[], bool]
) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        plan.jobs, mp_context=context, initializer=_leave_interrupts_to_the_parent
    ) as pool:
        blocks = _blocks(plan)
        flying: set[Future[Tally]] = set()
        while True:
            while len(flying) < plan.jobs + 1 and not over():
                block = next(blocks, None)
                if block is None:
                    break
                flying.add(pool.submit(run_block, *block, plan.faults, plan.machines))
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                total.add(future.result())
            on_progress(total)


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of a terminal; blocks in work come to their end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _blocks(plan: Plan) -> Iterator[tuple[int, int]]:
    """(first seed, runs) of each block."""
    first, left = plan.seed, plan.runs
    while left is None or left > 0:
        count = BLOCK_RUNS if left is None else min(BLOCK_RUNS, left)
        yield first, count
        first += count
        left = None if left is None else left - count


def find_again(name: str, seed: int, faults: frozenset[str]) -> Failure | None:
    """The failure of a run that a block reported."""
    return explore(MACHINES[name], seed, faults).failure
