"""What is wrong with a workload that cannot be built, and with a trace file, line by line."""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_SHOWN: Final = 10
_MAX_FOUND = 60  # characters of what was found that a message repeats


class WorkloadError(Exception):
    """A workload cannot be built from what was given."""


class TooLongError(WorkloadError):
    """Requests do not fit and the scenario says `too_long: error`."""


class TraceProblem(NamedTuple):
    """One wrong field: what stands there and what should."""

    line: int
    field: str
    found: str
    expected: str


class TraceError(WorkloadError):
    """A trace file cannot be used.

    Attributes:
        path: the file as the user named it.
        problems: the first problems by line, at most MAX_SHOWN; empty if the file as a whole is
            at fault.
        more: how many problems there are beyond those.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        message: str,
        problems: Iterable[TraceProblem] = (),
        more: int = 0,
    ) -> None:
        self.path = os.fspath(path)
        self.problems = tuple(problems)
        self.more = more
        lines = [f"{self.path}: {message}"]
        lines += [
            f"{self.path}:{line}: {field}: found {found}, expected {expected}"
            for line, field, found, expected in self.problems
        ]
        if more:
            lines.append(f"... and {more} more")
        super().__init__("\n".join(lines))


class TooLongRowsError(TooLongError, TraceError):
    """Rows of a trace do not fit and the scenario says `too_long: error`."""


class Problems:
    """Collects the problems of one file: keeps the first ones by line, counts the others."""

    __slots__ = ("_count", "_first", "_path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._first: list[TraceProblem] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, line: int, field: str, found: str, expected: str) -> None:
        """Note that `field` of a line holds `found` where `expected` should stand."""
        self._count += 1
        insort(self._first, TraceProblem(line, field, found, expected))
        del self._first[MAX_SHOWN:]

    def raise_if_any(self, kind: type[TraceError] = TraceError) -> None:
        """Raise one error of this kind for everything noted.

        Raises:
            TraceError: something was.
        """
        if self._count:
            fields = "1 field is" if self._count == 1 else f"{self._count} fields are"
            more = self._count - len(self._first)
            raise kind(self._path, f"{fields} not as the format demands", self._first, more)


def shortened(found: object) -> str:
    """`repr` of what was found, cut to a length that fits a message."""
    text = repr(found)
    return text if len(text) <= _MAX_FOUND else text[: _MAX_FOUND - 1] + "…"
