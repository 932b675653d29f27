"""Rooflines and gap stories as SVG or PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from workbench.profile.ceilings import LINK
from workbench.profile.gap_story import GapStory, Steady
from workbench.profile.gap_text import verdict
from workbench.profile.roofline import Point, Roofline
from workbench.record.atomic_file import open_atomic
from workbench.reports.report_panels import GREY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that can be told apart with any common colour blindness (Okabe and Ito, 2008).
GROUP_COLOURS: Final = {
    "attention": "#0072B2", "MLP": "#E69F00", "norm": "#CC79A7", "MoE": "#009E73",
    "sampling": "#D55E00", "communication": "#222222", "rest": "#56B4E9",
}  # fmt: skip
_BUSY: Final = {"eager": "#E69F00", "graph": "#0072B2"}
_COLUMNS: Final = (0.6, 0.765, 0.815, 0.875)  # of the table beside a roofline
_LAST: Final = 0.89
_LEADER: Final[Any] = {"arrowstyle": "-", "color": "#9A9A9A", "linewidth": 0.6}
_CAUSES: Final = ("#D55E00", "#8A3B00", "#E69F00", "#CC79A7", "#F0E442", "#0072B2", "#009E73",
                  "#56B4E9", "#BBBBBB")  # fmt: skip


def draw_roofline(found: Roofline, path: Path) -> None:
    """Draw a roofline; the same gives the same file.

    Args:
        found: what to draw.
        path: a .png or .svg.

    Raises:
        RunRecordError: the file cannot be written.
    """
    with _figure((11.5, 5.4), path) as figure:
        axes = figure.add_axes((0.07, 0.11, 0.5, 0.76))
        _roof(axes, found)
        _dots(axes, found.points)
        figure.text(0.012, 0.965, found.title, fontsize=12, fontweight="bold", va="top")
        about = f"{found.step_us:,.0f} us a step; ceilings {found.ceilings.source}"
        if (plain := found.ceilings.plain) is not None:
            about += f"; dashed: {plain.tflop_s:,.0f} TFLOP/s of what is not quantized"
        figure.text(0.012, 0.915, about, fontsize=9, color=GREY, va="top")
        _table(figure, found)


@contextmanager
def _figure(size: tuple[float, float], path: Path) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    suffix = path.suffix.removeprefix(".")
    with mpl.rc_context({**STYLE, "svg.hashsalt": "workbench"}):
        figure = Figure(figsize=size)
        yield figure
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        with open_atomic(path) as file:
            figure.savefig(file, format=suffix, dpi=160, metadata=metadata)


def _roof(axes: Axes, found: Roofline) -> None:
    top, points = found.ceilings, _with_flops(found.points)
    intensities = [point.intensity for point in points] or [top.ridge]
    low = min(0.3, *(value / 3 for value in intensities))
    high = max(top.ridge * 10, *(value * 8 for value in intensities))
    x = np.geomspace(low, high, 200)
    axes.loglog(x, np.minimum(top.tflop_s, top.tb_s * x), color="#222222", linewidth=1.6)
    plain = top.plain
    if plain is not None:
        axes.loglog(x, np.minimum(plain.tflop_s, plain.tb_s * x), color="#222222", linewidth=1.0,
                    linestyle="--")  # fmt: skip
    axes.axvline(top.ridge, color="#9A9A9A", linewidth=0.8, linestyle=":")
    axes.text(top.ridge * 1.06, 0.02, f"ridge {top.ridge:,.0f} FLOP/byte", fontsize=8,
              color=GREY, transform=axes.get_xaxis_transform())  # fmt: skip
    axes.text(high / 1.1, top.tflop_s * 1.12, f"{top.tflop_s:,.0f} TFLOP/s", fontsize=8,
              color=GREY, ha="right")  # fmt: skip
    axes.text(low * 1.3, top.tb_s * low * 2.2, f"{top.tb_s:.2f} TB/s", fontsize=8, color=GREY,
              rotation=34)  # fmt: skip
    rates = [point.tflop_s for point in points] or [top.tflop_s]
    axes.set_xlim(low, high)
    axes.set_ylim(min(top.tb_s * low, *(rate / 3 for rate in rates)), top.tflop_s * 2.2)
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("TFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def _with_flops(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.flops and point.num_bytes]


def _dots(axes: Axes, points: Sequence[Point]) -> None:
    """Dots as large as their share of the time, and what they are a little beside them."""
    shown = _with_flops(points)
    most = max((point.time_us for point in shown), default=1.0)
    placed: list[tuple[float, float]] = []
    dots = [_on_paper(point) for point in shown]
    for point in shown:
        colour = GROUP_COLOURS[point.group]
        size = 40 + 300 * point.time_us / most
        axes.scatter(point.intensity, point.tflop_s, s=size, color=colour, alpha=0.85,
                     edgecolors="white", linewidths=0.8, zorder=3)  # fmt: skip
        at = _free_place(point, placed, dots)
        axes.annotate(point.kind, (point.intensity, point.tflop_s), xytext=at, fontsize=8,
                      textcoords="offset points", color="#222222",
                      arrowprops=_LEADER)  # fmt: skip


def _on_paper(point: Point) -> tuple[float, float]:
    """Where a dot is, in points from anywhere, about."""
    return 75 * float(np.log10(point.intensity)), 75 * float(np.log10(point.tflop_s))


def _free_place(
    point: Point, placed: list[tuple[float, float]], dots: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Where its name can stand, in points from a dot, without covering a name or a dot."""
    x, y = _on_paper(point)
    for down in range(16):
        for side in (16.0, -76.0):
            dx, dy = side, -14.0 - 12 * down
            left, low = x + dx, y + dy
            clear = all(abs(left - a) > 78 or abs(low - b) > 11 for a, b in placed)
            if clear and all(not -10 < a - left < 80 or abs(b - low - 3) > 12 for a, b in dots):
                placed.append((left, low))
                return dx, dy
    return 16.0, -14.0


def _table(figure: Figure, found: Roofline) -> None:
    y, step = 0.86, 0.048
    for x, head in zip(_COLUMNS, ("class", "us", "TB/s", "TFLOP/s"), strict=True):
        figure.text(
            x, y, head, fontsize=8.5, color=GREY, ha="left" if x == _COLUMNS[0] else "right"
        )
    figure.text(_LAST, y, "of the ceiling", fontsize=8.5, color=GREY)
    for point in found.points[:15]:
        y -= step
        rate = f"{point.tflop_s:,.0f}" if point.flops else "-"
        figure.text(_COLUMNS[0], y, point.kind, fontsize=8.5)
        cells = (f"{point.time_us:,.1f}", f"{point.tb_s:.2f}", rate)
        for x, cell in zip(_COLUMNS[1:], cells, strict=True):
            figure.text(x, y, cell, fontsize=8.5, ha="right")
        reached = point.bound if point.bound == LINK else f"{point.fraction:.0%} {point.bound}"
        figure.text(_LAST, y, reached, fontsize=8.5, color=GROUP_COLOURS[point.group])
    y -= step
    figure.text(_COLUMNS[0], y, "rest and gaps", fontsize=8.5, color=GREY)
    figure.text(_COLUMNS[1], y, f"{found.rest_us:,.1f}", fontsize=8.5, color=GREY, ha="right")


def draw_gaps(stories: Sequence[GapStory], path: Path) -> None:
    """Draw before and after of each workload: lanes of the same time, and its first calls.

    Args:
        stories: at least one.
        path: a .png or .svg.

    Raises:
        RunRecordError: the file cannot be written.
    """
    height = 2.75
    with _figure((12.5, height * len(stories) + 0.4), path) as figure:
        share = height / (height * len(stories) + 0.4)
        for number, story in enumerate(stories):
            top = 1 - share * number
            _story(figure, story, top, share)


def _story(figure: Figure, story: GapStory, top: float, share: float) -> None:
    figure.text(0.012, top - 0.05 * share, f"{story.what} ({story.gpu})", fontsize=10.5,
                fontweight="bold", va="top")  # fmt: skip
    figure.text(0.012, top - 0.14 * share, verdict(story), fontsize=9, color=GREY, va="top")
    lanes = figure.add_axes((0.055, top - 0.8 * share, 0.47, 0.5 * share))
    _lanes(lanes, story)
    first = figure.add_axes((0.675, top - 0.8 * share, 0.315, 0.5 * share))
    _first_calls(first, story)


def _lanes(axes: Axes, story: GapStory) -> None:
    length = max(story.eager.lane_us, story.graph.lane_us) or 1.0
    for row, (name, steady) in enumerate((("eager", story.eager), ("graph", story.graph))):
        axes.axhspan(row - 0.36, row + 0.36, xmax=steady.lane_us / length, color="#EDEDED")
        spans = [(start, end - start) for start, end in steady.lane]
        axes.broken_barh(spans, (row - 0.36, 0.72), color=_BUSY[name], linewidth=0)
        axes.text(length * 1.012, row, _lane_text(steady), fontsize=8, va="center")
    axes.set_yticks((0, 1), ("eager", "graph"))
    axes.set_ylim(1.5, -0.5)
    axes.set_xlim(0, length)
    axes.grid(visible=False)
    axes.set_xlabel(f"us, of three {story.unit}s each; coloured while the GPU works")


def _lane_text(steady: Steady) -> str:
    return f"{steady.unit_ms:,.2f} ms\nbusy {steady.busy_share:.0%}"


def _first_calls(axes: Axes, story: GapStory) -> None:
    calls = (("first call", story.cold), ("first as graph", story.capture))
    names: dict[str, Any] = {}
    for row, (_, call) in enumerate(calls):
        left = 0.0
        for (cause, ms, _), colour in zip(call.causes, cycle(_CAUSES), strict=False):
            bar = axes.barh(row, ms, 0.6, left, color=colour)
            left += ms
            if ms > 0.005 * call.wall_ms:
                names.setdefault(cause, bar)
        axes.text(left * 1.01, row, f"{call.wall_ms:,.0f} ms", fontsize=8, va="center")
    axes.set_yticks((0, 1), [name for name, _ in calls])
    axes.set_ylim(1.5, -0.5)
    axes.set_xlim(0, 1.18 * max(call.wall_ms for _, call in calls))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms")
    axes.legend(names.values(), names.keys(), loc="lower center", bbox_to_anchor=(0.45, 1.0),
                ncols=2, fontsize=7, columnspacing=1.0, handlelength=1.0)  # fmt: skip
