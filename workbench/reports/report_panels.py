"""The panels of a run's picture. Each draws one subject into a rectangle of a figure.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import AdmissionBlock
from workbench.reports.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64 = NDArray[np.float64]

_BLUE: Final = "#0072B2"
_SKY: Final = "#56B4E9"
_GREEN: Final = "#009E73"
_ORANGE: Final = "#E69F00"
RED: Final = "#D55E00"
_PINK: Final = "#CC79A7"
_INK: Final = "#222222"
GREY: Final = "#6B6B6B"
_PALE: Final = "#ECECEC"

_LEFT: Final = (-5, 5)
_RIGHT: Final = (6, -9)

STYLE: Final[Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "workbench",
    "svg.fonttype": "none",
}

_REASONS: Final[dict[AdmissionBlock, tuple[str, str]]] = {
    AdmissionBlock.NONE: ("not recorded", "#BBBBBB"),
    AdmissionBlock.TOKEN_BUDGET: ("token budget", _ORANGE),
    AdmissionBlock.RUNNING_LIMIT: ("running limit", _SKY),
    AdmissionBlock.KV_PAGES: ("no KV pages", RED),
    AdmissionBlock.KV_RESERVED: ("KV reserved", _PINK),
    AdmissionBlock.RETRACTION: ("retraction", _INK),
    AdmissionBlock.PREFILL_LIMIT: ("prefill limit", "#F0E442"),
}


class Panel(NamedTuple):
    """A rectangle of a figure, in inches from its lower left corner, for plots and their labels.

    Plots are placed by hand: an automatic layout costs more than all drawing, and differs in its
    last bits from run to run.
    """

    figure: Figure
    left: float
    bottom: float
    width: float
    height: float

    def title(self, text: str) -> None:
        x, y, _, _ = self._share(0.1, self.height - 0.12, 0, 0)
        self.figure.text(x, y, text, fontsize=11, fontweight="bold", va="top")

    def plots(self, heights: Sequence[float]) -> list[Axes]:
        """Plots above each other, with heights in these proportions and one x axis."""
        left, bottom, top, gap = 0.9, 0.5, 0.58, 0.16 if len(heights) > 2 else 0.45
        free = self.height - bottom - top - gap * (len(heights) - 1)
        plots: list[Axes] = []
        upper = self.height - top
        for share in heights:
            high = free * share / sum(heights)
            place = self._share(left, upper - high, self.width - left - 0.15, high)
            plots.append(self.figure.add_axes(place, sharex=plots[0] if plots else None))
            plots[-1].yaxis.set_label_coords(-(left - 0.1) / (self.width - left - 0.15), 0.5)
            plots[-1].yaxis.label.set_verticalalignment("top")  # the left side, as it is turned
            upper -= high + gap
        for plot in plots[:-1]:
            plot.tick_params(labelbottom=False)
        return plots

    def _share(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Inches within the panel as shares of the figure."""
        across, up = self.figure.get_size_inches()
        return (
            (self.left + left) / across,
            (self.bottom + bottom) / up,
            width / across,
            height / up,
        )


def _draw_batch(panel: Panel, data: ReportData) -> None:
    """Three lanes, each with its own scale: decode tokens vanish beside a prefill chunk."""
    lanes = _lanes(panel, data, "What a step computes", (1.3, 1.0, 1.0))
    batch = data.batch
    _mean_and_max(lanes[0], data, batch.prefill_tokens, batch.prefill_tokens_max, _ORANGE)
    _mean_and_max(lanes[1], data, batch.decode_tokens, batch.decode_tokens_max, _BLUE)
    _mean_and_max(lanes[2], data, batch.step_ms, batch.step_ms_max, _GREEN)
    for lane, label in zip(
        lanes,
        ("prefill\ntokens per step", "decode\ntokens per step", "step GPU\ntime (ms)"),
        strict=True,
    ):
        lane.set_ylabel(label)
    _note(lanes[0], f"full colour: mean of the steps within {_span(data)}, pale: the largest")


def _draw_kv(panel: Panel, data: ReportData) -> None:
    (axes,) = _lanes(panel, data, "KV memory", (1.0,))
    pages = sum(replica.num_pages for replica in data.header.replicas)
    kv = data.kv
    _stack(axes, data, [kv.used, kv.cached, kv.free], [_BLUE, _SKY, _PALE])
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"share of {pages:,} KV pages (%)")
    _key(axes, ["requests", "prefix cache (evictable)", "free"], [_BLUE, _SKY, _PALE])


def _draw_latencies(panel: Panel, data: ReportData) -> None:
    """Distributions on a log axis; a dotted line is the objective of the same colour."""
    panel.title("Latency of requests")
    (axes,) = panel.plots([1.0])
    slo, latencies = data.header.slo, data.latencies
    for name, samples, limit, colour, place in (
        ("TPOT", latencies.tpot_ms, slo.tpot_ms, _GREEN, _LEFT),
        ("TTFT", latencies.ttft_ms, slo.ttft_ms, _ORANGE, _LEFT),
        ("E2E", latencies.e2el_ms, slo.e2el_ms, _BLUE, _RIGHT),
    ):
        _distribution(axes, name, samples, colour, place)
        if limit is not None:
            axes.axvline(limit, color=colour, linestyle=":", linewidth=1.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_ylim(0, 107)
    fastest, slowest = axes.get_xlim()
    axes.set_xlim(fastest, 1.8 * slowest)  # room for the label of the last dot
    axes.set_xlabel("latency (ms, log scale)")
    axes.set_ylabel("requests that are faster (%)")
    _legend(axes)
    if slo.given():
        _note(axes, "dots: p50 and p99 in ms; dotted lines: objectives")
    else:
        _note(axes, "dots: p50 and p99 in ms")


def _draw_queue(panel: Panel, data: ReportData) -> None:
    replicas = len(data.header.replicas)
    where = f" on {replicas} replicas" if replicas > 1 else ""
    lanes = _lanes(panel, data, f"Running and waiting requests{where}", (1.0, 1.3))
    edges = data.bins.edges_s
    lanes[0].stairs(data.queue.running, edges, fill=True, color=_BLUE)
    lanes[0].set_ylabel("running")
    if _excludes(data):
        _note(lanes[0], "requests count that were served between the dashed lines")
    lanes[0].set_ylim(bottom=0)
    lanes[1].set_ylabel("waiting")
    waiting = data.queue.waiting
    if not waiting:
        lanes[1].set_ylim(0, 1)
        _note(lanes[1], "no request ever waited longer than for the next step")
        return
    names, colours = zip(*(_REASONS[reason] for reason in waiting), strict=True)
    _stack(lanes[1], data, list(waiting.values()), colours)
    lanes[1].set_ylim(bottom=0)
    _key(lanes[1], names, colours)


Draw = Callable[[Panel, ReportData], None]

PANELS: Final[dict[str, Draw]] = {
    "batch": _draw_batch,
    "kv_memory": _draw_kv,
    "queue": _draw_queue,
    "latency": _draw_latencies,
}


def _lanes(panel: Panel, data: ReportData, title: str, heights: Sequence[float]) -> list[Axes]:
    """Plots above each other over the same time axis."""
    panel.title(title)
    lanes = panel.plots(heights)
    edges = data.bins.edges_s
    for lane in lanes:
        lane.set_xlim(edges[0], edges[-1])
        lane.grid(visible=False, axis="x")
        lane.margins(y=0.08)
        lane.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        _mark_window(lane, data)
    lanes[-1].set_xlabel("time (s)")
    return lanes


def _mark_window(lane: Axes, data: ReportData) -> None:
    """Dashed lines at the first arrival and last end that count, if not all requests do."""
    for moment_s in data.measured_s if _excludes(data) else ():
        lane.axvline(moment_s, color=GREY, linestyle="--", linewidth=0.9)


def _excludes(data: ReportData) -> bool:
    """Whether some requests do not count."""
    measure = data.header.measure
    window = (measure.window_start_s, measure.window_end_s)
    return measure.warmup_requests > 0 or window != (None, None)


def _mean_and_max(
    lane: Axes, data: ReportData, mean: Float64, largest: Float64, colour: str
) -> None:
    edges = data.bins.edges_s
    lane.stairs(np.maximum(largest, mean), edges, fill=True, color=colour, alpha=0.22)
    lane.stairs(mean, edges, fill=True, color=colour)
    lane.set_ylim(bottom=0)


def _stack(lane: Axes, data: ReportData, layers: Sequence[Float64], colours: Sequence[str]) -> None:
    below = np.zeros(data.bins.count)
    for layer, colour in zip(layers, colours, strict=True):
        lane.stairs(below + layer, data.bins.edges_s, baseline=below, fill=True, color=colour)
        below = below + layer


def _distribution(
    axes: Axes, name: str, samples: Float64, colour: str, place: tuple[int, int]
) -> None:
    """A cumulative curve of at most 1,001 points; p50 and p99 are written `place` points off."""
    if not len(samples):
        return
    percents = np.linspace(0, 100, 1001)
    axes.plot(np.percentile(samples, percents), percents, color=colour, linewidth=1.8, label=name)
    for mark in (50, 99):
        value = float(np.percentile(samples, mark))
        axes.plot([value], [mark], "o", color=colour, markersize=4.5)
        axes.annotate(
            f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
            (value, mark),
            place,
            textcoords="offset points",
            ha="right" if place[0] < 0 else "left",
            color=colour,
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        )


def _key(lane: Axes, names: Sequence[str], colours: Sequence[str]) -> None:
    """A legend above the plot, four names in a row."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    lane.legend(handles=patches, **_ABOVE, ncols=min(len(patches), 4))


def _legend(axes: Axes) -> None:
    if axes.lines:
        axes.legend(**_ABOVE, ncols=3)


_ABOVE: Final[dict[str, Any]] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "borderaxespad": 0.1,
    "handlelength": 1.2,
    "handleheight": 0.8,
    "columnspacing": 1.2,
}


def _span(data: ReportData) -> str:
    """Length of a bin."""
    seconds = float(data.bins.edges_s[1] - data.bins.edges_s[0])
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"


def _note(axes: Axes, text: str) -> None:
    """A remark above the right end of a plot."""
    axes.text(0.0, 1.02, text, transform=axes.transAxes, fontsize=8, color=GREY, va="bottom")
