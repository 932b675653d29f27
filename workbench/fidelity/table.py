"""A judgement as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workbench.fidelity.cells import OTHER_SOURCES
from workbench.fidelity.goals import GOALS, JUDGED_STEPS, P99_REQUESTS, STEP_GOALS
from workbench.fidelity.judge import AMPLIFIED, CALIBRATED, COMPOSED, Judgement
from workbench.scenario.serving import ANALYTIC

_NAME, _CELL, _NUMBER = 20, 15, 10  # widths
_WITHOUT_PROFILE: Final = {COMPOSED: "  kernel tables", ANALYTIC: "  analytic model"}
_STEP_NUMBERS: Final = ("median", "p90", "p99", "bias")


def table_lines(judgement: Judgement) -> list[str]:
    """All of a judgement that has a place in a table; a `*` is a goal that is missed."""
    loads = judgement["loads"]
    lines = [f"profile {judgement['profile']}, {_machine(judgement)}"]
    lines += [*judgement["profile_notes"], *_sources(judgement)]
    if loads:
        lines += ["", *_metrics(loads), "", *_steps(loads), "", *_counts(loads)]
        lines += _host_times(loads)
        lines += _amplification(loads)
        lines += ["", *_explanation(judgement)]
    for name, commit in judgement["other_sources"].items():
        lines.append(f"{name}: measured with {OTHER_SOURCES}, {_at(commit)}")
    for name, why in judgement["missing"].items():
        lines.append(f"{name}: {why}")
    return lines


def sources_told(judgement: Judgement) -> str:
    """Which loads were measured with other sources of the engine, and those; empty if none."""
    other = judgement["other_sources"]
    if not other:
        return ""
    whole = len(other) == len(judgement["loads"])
    which = "all loads" if whole else ", ".join(other)
    return f"{which}: measured with {OTHER_SOURCES}, {_at(*dict.fromkeys(other.values()))}"


def _sources(judgement: Judgement) -> list[str]:
    told = sources_told(judgement)
    if not told:
        return []
    return [told, "(their errors are of that engine, not of the one that is here)"]


def _at(*commits: str | None) -> str:
    return "at " + " and ".join(f"commit {each:.12}" if each else "a commit that is not known"
                                for each in commits)  # fmt: skip


def _machine(judgement: Judgement) -> str:
    engine = judgement["engine"]
    runs = sorted({load["runs"] for load in judgement["loads"]})
    times = " or ".join(map(str, runs)) or "no"
    noun = "run" if runs == [1] else "runs"
    return f"measured on {engine['gpu']} in {engine['dtype']}, {times} {noun} of each load"


def _metrics(loads: Sequence[dict[str, Any]]) -> list[str]:
    titles = [name.removesuffix("_ms").removeprefix("output_") for name in GOALS]
    lines = [_row("error, %", [title.replace("_", " ") for title in titles], _CELL)]
    for load in loads:
        for whose, scores in load["metrics"].items():
            marked = whose == CALIBRATED
            label = load["load"] if marked else _WITHOUT_PROFILE[whose]
            lines.append(_row(label, [_score(each, marked) for each in scores.values()], _CELL))
    return lines


def _score(score: dict[str, Any], marked: bool) -> str:
    error, spread = score["error"], score["spread"]
    mark = "*" if marked and score["reached"] is False else " "
    if error is None:
        unknown = score["engine"] is None or score["predicted"] is None
        return f"{'-' if unknown else 'inf'}{mark}"
    told = "-" if spread is None else f"{spread:.1f}"
    return f"{error:+.1f} ± {told}{mark}"


def _steps(loads: Sequence[dict[str, Any]]) -> list[str]:
    others = [whose for whose in loads[0]["steps"] if whose != CALIBRATED]
    titles = ["region", "steps", *_STEP_NUMBERS, *others, "again", "median", "p99"]
    lines = [_row("steps, %", titles, _NUMBER) + "  same decisions"]
    for load in loads:
        label, parity = load["load"], load["parity"]
        for region, numbers in load["steps"]["calibrated"].items():
            if not numbers["count"]:
                continue
            cells = [region, f"{numbers['count']:,}"]
            cells += [_step_number(numbers, name) for name in _STEP_NUMBERS]
            cells += [f"{load['steps'][whose][region]['median']:.1f}" for whose in others]
            cells += _again(load["steps_of_repeats"][region])
            lines.append(f"{_row(label, cells, _NUMBER)}  {parity}".rstrip())
            label = parity = ""
    return lines


def _again(numbers: dict[str, Any]) -> list[str]:
    """Of how many steps the engine's other runs speak, and what the mean of all misses."""
    count = numbers["count"]
    known = [f"{numbers[name]:.2f}" if count >= JUDGED_STEPS[name] else "-" for name in STEP_GOALS]
    return [f"{count:,}", *known] if count else ["", "", ""]


def _step_number(numbers: dict[str, Any], name: str) -> str:
    mark = "*" if numbers["reached"].get(name) is False else " "
    sign = "+" if name == "bias" else ""
    return f"{numbers[name]:{sign}.2f}{mark}"


def _counts(loads: Sequence[dict[str, Any]]) -> list[str]:
    titles = ["requests", "retractions", "simulated", "prefix hits, %", "simulated"]
    lines = [_row("counts", titles, _CELL)]
    for load in loads:
        counts = load["counts"]
        cells = [_range(counts["completed"]["engine"], ",.0f")]
        for name, form in (("retractions", ",.0f"), ("prefix_hit_rate_percent", ".2f")):
            cells.append(_range(counts[name]["engine"], form))
            cells.append(_range([counts[name]["calibrated"]], form))
        lines.append(_row(load["load"], cells, _CELL))
    return lines


def _range(values: Sequence[float | None], form: str) -> str:
    """The one value, or the least and the largest."""
    known = [value for value in values if value is not None]
    texts = [format(value, form) for value in (min(known), max(known))] if known else ["-"]
    return "–".join(dict.fromkeys(texts))


def _host_times(loads: Sequence[dict[str, Any]]) -> list[str]:
    """What steps take the host, and what it is said to be."""
    known = [load for load in loads if load["host_ms"]]
    if not known:
        return []
    first = next(iter(known[0]["host_ms"].values()))
    names = [name for name in first if name != "count"]
    lines = ["", _row("host, median ms", ["steps with", "steps", *names], _CELL)]
    for load in known:
        label = load["load"]
        for kind, numbers in load["host_ms"].items():
            cells = [kind, f"{numbers['count']:,}", *(f"{numbers[name]:.2f}" for name in names)]
            lines.append(_row(label, cells, _CELL))
            label = ""
    return lines


def _amplification(loads: Sequence[dict[str, Any]]) -> list[str]:
    """How much a queue makes of a percent."""
    rated = [load for load in loads if load["amplification"]]
    if not rated:
        return []
    titles = [name.removesuffix("_ms").replace("_", " ") for name in AMPLIFIED]
    lines = ["", _row("% per 1 % of steps", titles, _CELL)]
    for load in rated:
        cells = [f"{load['amplification'].get(name, float('nan')):+.1f}" for name in AMPLIFIED]
        lines.append(_row(load["load"], cells, _CELL))
    return lines


def _explanation(judgement: Judgement) -> list[str]:
    mean, other, p99 = (GOALS[name] for name in ("mean_tpot_ms", "mean_ttft_ms", "p99_ttft_ms"))
    steps = " and ".join(f"{name} within {goal:g} %" for name, goal in STEP_GOALS.items())
    return [
        f"{judgement['reached']} of {judgement['goals']} goals reached; * is one that is missed.",
        f"Goals: mean TPOT, ITL and throughput within {mean:g} %, mean TTFT and E2E {other:g} %,",
        f"p99 within {p99:g} % (from {P99_REQUESTS:,} requests on),",
        "or within the engine's own spread (±, half the range of its runs, of which one has none);",
        f"of steps {steps}, or what their mean over the engine's runs",
        "misses them by: again, if they occur in all.",
    ]


def _row(label: str, cells: Sequence[str], width: int) -> str:
    return f"{label:{_NAME}}" + "".join(f"{cell:>{width}}" for cell in cells)
