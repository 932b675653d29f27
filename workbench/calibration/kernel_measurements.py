"""The file of kernel times while they are measured, and what becomes of it: tables.

Every case is appended as soon as it is measured, so that an interrupted measurement goes on where
it was.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import msgspec

from engine.profiling.kernel_cases import Draw, KernelCase
from engine.profiling.kernel_tables import KernelTimes
from simulator.composition.kernel_file import OPS, SCHEMA, KernelIdentity, Series, Time
from simulator.profile import ProfileError
from simulator.samples import Count
from workbench.record.atomic_file import read_whole_lines
from workbench.record.result_folder import make_folder

_Entry = tuple[str, tuple[Count, ...], tuple[Count, ...], Draw | None, tuple[Time, ...]]


class PartialKernels:
    """What has been measured so far.

    Args:
        path: beside the tables to be.
        identity: of the device and its software; times of other ones are not taken over.
    """

    def __init__(self, path: Path, identity: KernelIdentity) -> None:
        self.path = path
        self._head = {"schema": SCHEMA, "identity": msgspec.to_builtins(identity)}

    def read(self) -> KernelTimes:
        """What is there; a last line that was cut short is taken away.

        Raises:
            ProfileError: it is of another device or version, or damaged.
        """
        try:
            lines = read_whole_lines(self.path)
            return self._times(lines) if lines else KernelTimes()
        except (ValueError, TypeError) as error:
            if isinstance(error, ProfileError):
                raise
            raise ProfileError(
                f"{self.path} is damaged ({error}): delete it, and measuring begins anew"
            ) from None

    def _times(self, lines: list[str]) -> KernelTimes:
        if json.loads(lines[0]) != self._head:
            raise ProfileError(
                f"{self.path} holds kernel times of another device or version: delete it, or name"
                " another --output-dir"
            )
        found = KernelTimes()
        for number, line in enumerate(lines[1:], 2):
            try:
                found.add(*_entry(line))
            except (ValueError, msgspec.ValidationError) as error:
                raise ValueError(f"line {number}: {error}") from None
        return found

    def append(self, case: tuple[Any, ...], times: list[float]) -> None:
        """Keep one pass over a case."""
        make_folder(self.path.parent)
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self._head) + "\n")
            file.write(json.dumps([*case, [round(ns, 1) for ns in times]]) + "\n")


def _entry(line: str) -> tuple[KernelCase, tuple[float, ...]]:
    """A line of a partial file.

    Raises:
        ValueError or msgspec.ValidationError: it is no case with times that tables could hold.
    """
    op, sizes, point, draw, times = msgspec.convert(json.loads(line), _Entry)
    if tuple(map(len, (sizes, point))) != tuple(map(len, OPS.get(op, ()))):
        raise ValueError(f"{op!r} of {len(sizes)} sizes at {len(point)} numbers is no case")
    if not times or not all(map(math.isfinite, times)):
        raise ValueError("its times are no finite numbers")
    return KernelCase(op, sizes, point, draw), times


def series_of(done: KernelTimes) -> tuple[Series, ...]:
    """Medians and their spread, by op and sizes."""
    points: dict[tuple[str, tuple[int, ...]], dict[tuple[int, ...], list[float]]] = {}
    for case, times in done.times.items():
        series = points.setdefault((case.op, case.sizes), {})
        series.setdefault(case.point, []).extend(times)
    return tuple(_series(op, sizes, points[op, sizes]) for op, sizes in sorted(points))


def _series(op: str, sizes: tuple[int, ...], times: dict[tuple[int, ...], list[float]]) -> Series:
    ordered = sorted(times)
    medians = [statistics.median(times[point]) for point in ordered]
    spreads = [
        statistics.median(abs(ns - median) for ns in times[point])
        for point, median in zip(ordered, medians, strict=True)
    ]
    return Series(
        op=op,
        sizes=sizes,
        points=tuple(ordered),
        ns=tuple(round(ns, 1) for ns in medians),
        spread_ns=tuple(round(ns, 1) for ns in spreads),
        repeats=tuple(len(times[point]) for point in ordered),
    )
