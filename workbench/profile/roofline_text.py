"""A roofline as text: where each class is, what bounds it, and a small picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from workbench.profile.ceilings import LINK
from workbench.profile.roofline import COUNTERS, Point, Roofline

_WIDTH, _HEIGHT = 72, 18
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ROOF: Final = "·"


def roofline_text(found: Roofline) -> str:
    """Table, sentences and picture."""
    lines = [f"{found.title}: {found.step_us:,.1f} us a step", *_ceilings(found), ""]
    lines += _table(found)
    lines += _above(found)
    lines += ["", *(f"{point.words}" for point in found.points), ""]
    lines += _picture(found)
    return "\n".join(lines)


def _ceilings(found: Roofline) -> Iterator[str]:
    top = found.ceilings
    yield (
        f"ceilings ({top.source}): {top.tb_s:.2f} TB/s, {top.tflop_s:,.0f} TFLOP/s; ridge at "
        f"{top.ridge:,.0f} FLOP/byte"
    )
    plain = top.plain
    if plain is not None:
        yield (
            f"attention, router and logits, which are not quantized: {plain.tflop_s:,.0f} TFLOP/s; "
            f"ridge at {plain.ridge:,.0f} FLOP/byte"
        )


def _table(found: Roofline) -> Iterator[str]:
    counters = any(point.source == COUNTERS for point in found.points)
    head = (
        f"    {'class':<18}{'us a step':>10}{'share':>7}{'MB':>10}{'GFLOP':>10}{'FLOP/B':>9}"
        f"{'TB/s':>7}{'TFLOP/s':>9}{'ceiling':>9}  bound by"
    )
    yield head + ("  DRAM/counted  warps  tensor" if counters else "")
    for letter, point in zip(_LETTERS, found.points, strict=False):
        yield _row(letter, point, found.step_us)
    if found.step_us:
        share = found.rest_us / found.step_us
        yield f"    {'(rest and gaps)':<18}{found.rest_us:>10,.1f}{share:>7.1%}"


def _above(found: Roofline) -> Iterator[str]:
    """What it means that a class is above the roof, if one is."""
    over = [point.kind for point in found.points if round(point.fraction, 2) > 1]
    if over:
        yield (
            f"    above 100%: {', '.join(over)} went faster than the copy or product that the "
            "ceiling was measured with: part of the bytes may have been in the L2 cache, or clocks "
            "higher than a long product leaves them"
        )


def _row(letter: str, point: Point, step_us: float) -> str:
    share = point.time_us / step_us if step_us else 0.0
    row = (
        f"  {letter} {point.kind:<18}{point.time_us:>10,.1f}{share:>7.1%}"
        f"{point.num_bytes / 1e6:>10,.1f}{_gflop(point):>10}{point.intensity:>9,.1f}"
        f"{point.tb_s:>7.2f}{point.tflop_s:>9,.1f}{_ceiling(point)}  {point.bound:<8}"
    )
    if point.source != COUNTERS or not point.counted_bytes:
        return row.rstrip()
    ratio = point.num_bytes / point.counted_bytes
    return row + f"  {ratio:>12.2f}{_percent(point.warps_active)}{_percent(point.tensor_active)}"


def _gflop(point: Point) -> str:
    """With as many decimals as leave a space before it."""
    exact = f"{point.flops / 1e9:,.2f}"
    return exact if len(exact) < 10 else f"{point.flops / 1e9:,.1f}"


def _ceiling(point: Point) -> str:
    return f"{'-':>9}" if point.bound == LINK else f"{point.fraction:>9.0%}"


def _percent(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:>6.0f}%"


def _picture(found: Roofline) -> Iterator[str]:
    """Both axes logarithmic; a letter is a class, beside those that are at the same place."""
    points = [point for point in found.points if point.flops and point.tflop_s]
    if not points:
        return
    top = found.ceilings
    across = _Axis(
        math.floor(math.log10(min(point.intensity for point in points) / 2)),
        math.ceil(math.log10(max(4 * top.ridge, *(p.intensity * 2 for p in points)))),
        _WIDTH,
    )
    up = _Axis(
        math.floor(math.log10(min(point.tflop_s for point in points) / 2)),
        math.log10(top.tflop_s * 2),
        _HEIGHT,
    )
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for column in range(_WIDTH):
        for roof in filter(None, (top, top.plain)):
            row = up.cell(math.log10(roof.attainable_tflop_s(10 ** across.value(column))))
            if 0 <= row < _HEIGHT:
                cells[row][column] = _ROOF
    for letter, point in zip(_LETTERS, found.points, strict=False):
        if point in points:
            line = cells[min(up.cell(math.log10(point.tflop_s)), _HEIGHT - 1)]
            line[_free(line, across.cell(math.log10(point.intensity)))] = letter
    labels = {up.cell(decade): f"{10.0**decade:,g}" for decade in up.decades()}
    for row in reversed(range(_HEIGHT)):
        yield f"{labels.get(row, ''):>8} {''.join(cells[row])}".rstrip()
    marks = [" "] * (_WIDTH + 6)
    for decade in across.decades():
        text, column = f"{10.0**decade:g}", across.cell(decade)
        marks[column : column + len(text)] = text
    yield f"{'TFLOP/s':>8} {''.join(marks).rstrip()}  FLOP/byte"


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic axis: the powers of ten at its first and last cell, and how many there are."""

    low: float
    high: float
    cells: int

    def cell(self, power: float) -> int:
        """Of a power of ten; one that is not on the axis has one outside of `cells`."""
        return round((power - self.low) / (self.high - self.low) * (self.cells - 1))

    def value(self, cell: int) -> float:
        """The power of ten in a cell."""
        return self.low + (self.high - self.low) * cell / (self.cells - 1)

    def decades(self) -> range:
        """Whole powers of ten."""
        return range(math.ceil(self.low), math.floor(self.high) + 1)


def _free(line: Sequence[str], column: int) -> int:
    """The cell, or else the next one to the right that no letter has."""
    free = (at for at in range(column, len(line)) if line[at] in f" {_ROOF}")
    return next(free, column)
