"""The file of kernel times while they are measured, and what becomes of it: tables."""

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
from simulator.samples import Count
from workbench.calibration.partial_file import PartialFile

_Entry = tuple[str, tuple[Count, ...], tuple[Count, ...], Draw | None, tuple[Time, ...]]


class PartialKernels:
    """What has been measured so far.

    Args:
        path: beside the tables to be.
        identity: of the device and its software; times of other ones are not taken over.
    """

    def __init__(self, path: Path, identity: KernelIdentity) -> None:
        others = "kernel times of another device or version"
        self._file = PartialFile(path, SCHEMA, identity, others)
        self.path = path

    def read(self) -> KernelTimes:
        """What is there. Raises ProfileError as `PartialFile.read`."""
        found = KernelTimes()
        self._file.read(lambda line: found.add(*_entry(line)))
        return found

    def append(self, case: tuple[Any, ...], times: list[float]) -> None:
        """Keep one pass over a case."""
        self._file.append([*case, [round(ns, 1) for ns in times]])


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
