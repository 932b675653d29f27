"""A judgement as a picture: errors of requests beside their goals, and errors of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from workbench.fidelity.goals import GOALS, P99_REQUESTS, STEP_GOALS
from workbench.fidelity.judge import CALIBRATED, COMPOSED, Judgement
from workbench.fidelity.step_errors import REGIONS
from workbench.fidelity.table import sources_told
from workbench.record.atomic_file import open_atomic
from workbench.reports.report_panels import GREY, STYLE
from workbench.scenario.serving import ANALYTIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kind of metric -> name and colour (Okabe and Ito, 2008).
_KINDS: Final = {
    "ttft": ("TTFT", "#E69F00"), "tpot": ("TPOT", "#009E73"), "itl": ("ITL", "#56B4E9"),
    "e2el": ("E2E", "#0072B2"), "throughput": ("throughput", "#CC79A7"),
}  # fmt: skip
_COLOURS: Final = dict(zip(REGIONS, ("#0072B2", "#E69F00", "#009E73", "#222222"), strict=True))
_BAND: Final = "#DDEBDD"
_TICKS: Final = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)  # percent, beyond a goal
_LEAST, _MOST = 0.05, 100.0  # percent that the right side shows
_WIDTH, _TOP, _BOTTOM, _PER_LOAD, _LEAST_HEIGHT = 13.0, 0.9, 0.95, 0.42, 2.6  # inches


def draw(judgement: Judgement, path: Path) -> None:
    """Draw a judgement; one that is the same gives the same file.

    Args:
        judgement: of `workbench.fidelity.judge.judge`.
        path: a .png or .svg.

    Raises:
        RunRecordError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    suffix = path.suffix.removeprefix(".")
    loads = judgement["loads"]
    high = max(_LEAST_HEIGHT, _PER_LOAD * len(loads))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _BOTTOM + high + _TOP))
        places = _Places(_BOTTOM / (_BOTTOM + high + _TOP), high / (_BOTTOM + high + _TOP))
        _title(figure, judgement)
        _errors(figure, places, loads)
        _steps(figure, places, judgement["step_quantiles"])
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        with open_atomic(path) as file:
            figure.savefig(file, format=suffix, dpi=160, metadata=metadata)


class _Places:
    """Where plots are, in shares of the figure: all of them as high as each other."""

    def __init__(self, bottom: float, height: float) -> None:
        self._bottom, self._height = bottom, height

    def plot(self, figure: Figure, left: float, width: float, other: Axes | None = None) -> Axes:
        """A plot; with the loads of another one."""
        return figure.add_axes((left, self._bottom, width, self._height), sharey=other)


def _title(figure: Figure, judgement: Judgement) -> None:
    figure.text(0.008, 0.975, f"Simulation against engine: {judgement['profile']}",
                fontsize=12, fontweight="bold", va="top")  # fmt: skip
    text = f"{judgement['reached']} of {judgement['goals']} goals reached"
    shown = {load["load"] for load in judgement["loads"]}
    text += "".join(
        f"; {name}: {why}" for name, why in judgement["missing"].items() if name in shown
    )
    if absent := [name for name in judgement["missing"] if name not in shown]:
        text += f"; without {', '.join(absent)}"
    if told := sources_told(judgement):
        text = f"{told}; {text}"
    text = "; ".join([*judgement["profile_notes"], text])
    top = 0.975 - 0.26 / float(figure.get_size_inches()[1])
    figure.text(0.008, top, text, fontsize=9, color=GREY, va="top", wrap=True)


def _errors(figure: Figure, places: _Places, loads: Sequence[dict[str, Any]]) -> None:
    """One plot for all metrics that share a goal."""
    kinds: dict[float, list[str]] = {}
    for metric, goal in GOALS.items():
        kinds.setdefault(goal, []).append(metric)
    first: Axes | None = None
    for number, (goal, metrics) in enumerate(sorted(kinds.items())):
        axes = places.plot(figure, 0.115 + 0.182 * number, 0.168, first)
        axes.axvspan(-goal, goal, color=_BAND, linewidth=0)
        axes.axvline(0, color="#9A9A9A", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        for row in range(1, len(loads)):
            axes.axhline(row - 0.5, color="#E4E4E4", linewidth=0.7)
        _dots(axes, loads, metrics)
        which = "p99" if metrics[0].startswith("p99") else "mean"
        names = ", ".join(_KINDS[_kind(metric)][0] for metric in metrics)
        axes.set_title(f"{which} {names}", fontsize=9, loc="left", color=GREY)
        _signed_scale(axes, goal)
        axes.set_yticks(range(len(loads)), [load["load"] for load in loads])
        axes.set_ylim(len(loads) - 0.5, -0.5)
        axes.tick_params(labelleft=first is None)
        axes.set_xlabel("error (%)")
        first = first or axes
    _key(figure)


def _dots(axes: Axes, loads: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Errors; hollow where there are too few requests for a percentile to be judged."""
    for place, metric in enumerate(metrics):
        _, colour = _KINDS[_kind(metric)]
        shift = (place - (len(metrics) - 1) / 2) * 0.7 / len(metrics)
        for row, load in enumerate(loads):
            score = load["metrics"][CALIBRATED][metric]
            if score["error"] is None:
                continue
            face = "white" if score["reached"] is None else colour
            axes.errorbar(
                score["error"], row + shift, xerr=score["spread"], fmt="o", color=colour,
                markerfacecolor=face, markersize=4.5, elinewidth=1.3,
            )  # fmt: skip


def _signed_scale(axes: Axes, goal: float) -> None:
    """Linear up to the goal, logarithmic beyond it, and the same to both sides."""
    most = max(4 * goal, *(1.5 * abs(edge) for edge in axes.dataLim.intervalx))
    axes.set_xscale("symlog", linthresh=goal, linscale=1.0)
    beyond = [tick for tick in _TICKS if 4 * goal <= tick <= most / 1.8][-1:]  # room for its text
    if most > goal and not beyond:  # a scale that is not linear says so by a tick beyond the goal
        beyond = [next(tick for tick in _TICKS if tick >= 4 * goal)]
        most = max(most, 1.8 * beyond[0])
    axes.set_xlim(-most, most)
    ticks = [*(-tick for tick in beyond), -goal, 0.0, goal, *beyond]
    axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    axes.minorticks_off()


def _key(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", markersize=4.5, linestyle="", label=name)
        for name, colour in _KINDS.values()
    ]
    unjudged = f"under {P99_REQUESTS:,} requests, not judged"
    handles += [
        Line2D([], [], color=GREY, marker="o", markersize=4.5, markerfacecolor="white",
               linestyle="", label=unjudged),
        Line2D([], [], color=GREY, linewidth=1.3, label="half the range of the engine's runs"),
        Patch(color=_BAND, label="goal"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.1, 0.0),
                  ncols=len(handles), columnspacing=1.4, handletextpad=0.5)  # fmt: skip


def _steps(
    figure: Figure, places: _Places, quantiles: dict[str, dict[str, Sequence[float]]]
) -> None:
    axes = places.plot(figure, 0.725, 0.262)
    share = np.arange(101)
    lines = {CALIBRATED: "-", COMPOSED: ":", ANALYTIC: "--"}
    for whose in (whose for whose in lines if whose in quantiles):
        for region, errors in quantiles[whose].items():
            if errors:
                shown = np.clip(errors, _LEAST, None)
                label = region if whose == CALIBRATED else None
                axes.plot(
                    shown, share, lines[whose], color=_COLOURS[region], linewidth=1.4, label=label
                )
    for name, percent in (("median", 50), ("p99", 99)):
        axes.plot(STEP_GOALS[name], percent, "x", color="#222222", markersize=7, zorder=5,
                  label="goals" if name == "median" else None)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, _MOST)
    axes.set_ylim(0, 101)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("absolute error of a step's GPU time (%)")
    axes.set_ylabel("share of steps (%)")
    for whose, name in (
        (CALIBRATED, "calibrated"),
        (COMPOSED, "kernel tables"),
        (ANALYTIC, "analytic"),
    ):
        if whose in quantiles:
            axes.plot([], [], lines[whose], color=GREY, linewidth=1.4, label=name)
    axes.set_title("single steps", fontsize=9, loc="left", color=GREY)
    axes.legend(loc="upper left", fontsize=8)


def _kind(metric: str) -> str:
    return metric.removesuffix("_ms").rpartition("_")[2]
