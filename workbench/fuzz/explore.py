"""One seed, one run: draw the settings, choose operations, and say what came of it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.fuzz.machine import Machine, Operation, Trial
from workbench.fuzz.watchdog import watchdog


@dataclass(frozen=True)
class Failure:
    """A violation and how to get there.

    Attributes:
        machine, seed, setup, operations: what to repeat.
        error: what was raised.
        at_rest: it showed only after the last operation, when faults had stopped.
    """

    machine: Machine
    seed: int
    setup: Any
    operations: tuple[Operation, ...]
    error: Exception
    at_rest: bool

    @property
    def kind(self) -> tuple[str, str]:
        """What failures must share to count as the same while one is shrunk."""
        return kind_of(self.error)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        operations: operations done.
        checks: operations after which the laws were checked.
        marks: what has happened at least once.
        failure: the violation, or None.
    """

    operations: int
    checks: int
    marks: set[str]
    failure: Failure | None


def kind_of(error: Exception) -> tuple[str, str]:
    """The type of an error and its first words without numbers."""
    law = re.split(r"[:(]", str(error), maxsplit=1)[0]
    return type(error).__name__, re.sub(r"\d+", "#", law)[:60]


def explore(machine: Machine, seed: int, faults: frozenset[str]) -> Outcome:
    """A run that is a function of its arguments and of the code alone."""
    rng = random.Random(seed)  # noqa: S311 - a seed, no secret
    setup = machine.draw(rng, faults & machine.faults)
    trial = machine.open(seed, setup)
    operations: list[Operation] = []

    def choices() -> Iterator[Operation]:
        for _ in range(rng.randint(*machine.operations)):
            operation = trial.choose(rng)
            operations.append(operation)
            yield operation

    broken = _run(trial, choices())
    failure = None
    if broken is not None:
        failure = Failure(machine, seed, setup, tuple(operations), *broken)
    return Outcome(len(operations), trial.checks, trial.marks, failure)


def repeat(
    machine: Machine, seed: int, setup: Any, operations: Sequence[Operation]
) -> Failure | None:
    """Do these operations; the violation, or None."""
    trial = machine.open(seed, setup)
    done: list[Operation] = []

    def listed() -> Iterator[Operation]:
        for operation in operations:
            done.append(operation)
            yield operation

    broken = _run(trial, listed())
    return None if broken is None else Failure(machine, seed, setup, tuple(done), *broken)


def _run(trial: Trial, operations: Iterator[Operation]) -> tuple[Exception, bool] | None:
    """Apply operations and finish; the violation, and whether it showed only at rest."""
    at_rest = False
    try:
        with watchdog():
            for operation in operations:
                trial.apply(operation)
            at_rest = True
            trial.finish()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        return error, at_rest
    return None
