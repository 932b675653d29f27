"""What every machine under test looks like to whoever explores, replays and shrinks it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

# A name and numbers. Applying one never fails for lack of what it speaks of (it then does nothing),
# so every subsequence of a list of operations is a list of operations.
Operation = tuple[Any, ...]


class Trial(Protocol):
    """One run of a machine.

    Attributes:
        marks: what has happened at least once.
        checks: operations after which the laws were checked.
    """

    marks: set[str]

    @property
    def checks(self) -> int:
        """Operations after which the laws were checked."""
        ...

    def choose(self, rng: random.Random) -> Operation:
        """A next operation that makes sense now."""
        ...

    def apply(self, operation: Operation) -> None:
        """Do it and check the laws. Any exception is a violation."""
        ...

    def finish(self) -> None:
        """Faults stop; everything alive must end within a bound; then what only holds at rest."""
        ...

    def write_unfinished(self) -> None:
        """Record what is still alive when a run is cut off."""
        ...


@dataclass(frozen=True)
class Machine:
    """One kind of subject.

    Attributes:
        name: in case files and on the command line.
        faults: names of the faults that it knows.
        marks: everything that must happen in a long exploration.
        takes: name of an operation -> how many numbers follow it.
        operations: fewest and most operations of a run.
        is_system: whether a run is one of a whole deployment.
        draw: settings and requests of a run; the set names the faults that may occur in it.
        open: a trial of such settings, (seed, settings); machines that keep events take a `log`.
        encode, decode: settings to plain values for a file, and back.
        needed: the settings without what these operations do not use.
        simpler: smaller variants of the settings, most promising first.
    """

    name: str
    faults: frozenset[str]
    marks: frozenset[str]
    takes: Mapping[str, int]
    operations: tuple[int, int]
    is_system: bool
    draw: Callable[[random.Random, frozenset[str]], Any]
    open: Callable[..., Trial]
    encode: Callable[[Any], dict[str, Any]]
    decode: Callable[[dict[str, Any]], Any]
    needed: Callable[[Any, list[Operation]], Any]
    simpler: Callable[[Any], Iterator[Any]]


class Weights:
    """Draws a name by weight."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._names = list(weights)
        total = 0.0
        self._ends: list[float] = []
        for weight in weights.values():
            total += weight
            self._ends.append(total)

    def draw(self, rng: random.Random) -> str:
        """One of the names."""
        return rng.choices(self._names, cum_weights=self._ends)[0]


def swarm(rng: random.Random, faults: frozenset[str]) -> dict[str, float]:
    """About half of the faults, each with a rate of its own; sorted, so a set's order is no part.

    Now and then none at all.
    """
    if rng.random() < _CALM:
        return {}
    rates = {fault: rng.choice(_RATES) for fault in sorted(faults)}
    return {fault: rate for fault, rate in rates.items() if rng.random() < 0.5}


_CALM: Final = 0.05
_RATES: Final = (0.01, 0.03, 0.08, 0.2)
