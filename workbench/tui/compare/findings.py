"""The findings: metrics with their split, header differences, the first divergent decision."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable
from typing import Final

from workbench.analysis.bootstrap import Interval
from workbench.analysis.comparison import Comparison
from workbench.analysis.durations import Split
from workbench.analysis.metric_deltas import MetricDelta
from workbench.analysis.step_batches import StepBatch
from workbench.tui.chart_pane import ChartPane
from workbench.tui.compare.state import VIEWS, CompareState
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

Line = list[tuple[str, int]]

# What is shown of the many metrics where there is little room, most telling first.
_FIRST: Final[tuple[str, ...]] = (
    "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "median_itl_ms", "p99_itl_ms",
    "median_e2el_ms", "p99_e2el_ms", "output_throughput", "request_goodput", "retractions",
    "prefix_hit_rate_percent", "kv_used_mean_percent", "mean_decode_batch", "gpu_busy_percent",
)  # fmt: skip
_NAME: Final = 21
_FIGURE: Final = 10
_INTERVAL: Final = 26
_SIGNS: Final = {"better": "✓", "worse": "✗", "noise": "~", "equal": "=", "unjudged": " "}
_VERDICTS: Final = {"better": "data-good", "worse": "data-bad"}
_NAMED: Final = 10


class FindingsPane(ChartPane, can_focus=True):
    """One view at a time; `v` shows the next, the wheel and the arrows scroll it."""

    def __init__(self, state: CompareState) -> None:
        super().__init__(id="findings")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state = self._state
        return id(state.comparison), state.view, state.scroll, state.trouble, id(state.a)

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state, x = self._state, 0
        for view in VIEWS:
            here = view == state.view
            ink = palette.ink(bold=True, underline=True) if here else palette.ink("data-axis")
            x = canvas.text(x, 0, view, ink) + 2
        canvas.text(x, 0, "v next", palette.ink("data-axis"))
        comparison = state.comparison
        if comparison is None:
            text = state.trouble or "the verdict of `workbench compare` comes here"
            for y, line in enumerate(textwrap.wrap(text, max(canvas.width - 2, 10)), 2):
                canvas.text(1, y, line, palette.ink("data-axis"))
            return
        lines = self._lines(comparison, palette, canvas.width)
        room = canvas.height - 1
        state.scroll = min(state.scroll, max(len(lines) - room, 0))
        for y, pieces in enumerate(lines[state.scroll : state.scroll + room], 1):
            canvas.line(0, y, pieces)
        below = len(lines) - room - state.scroll
        if below > 0:
            canvas.right(canvas.width - 1, 0, f"{below} more ↓", palette.ink("data-axis"))

    def _lines(self, comparison: Comparison, palette: Palette, width: int) -> list[Line]:
        if self._state.view == "differences":
            return _differences(comparison, palette, width)
        if self._state.view == "divergence":
            return _divergence(comparison, palette, width)
        return _metrics(comparison, palette, width)


def _metrics(comparison: Comparison, palette: Palette, width: int) -> list[Line]:
    dim = palette.ink("data-axis")
    splits = {split.name: split for split in comparison.durations.splits}
    wide = width >= _NAME + 4 * _FIGURE + 12 + _INTERVAL + 8
    head = f"{'metric':<{_NAME}}{'A':>{_FIGURE}}{'B':>{_FIGURE}}{'Δ':>9} "
    head += f"{'durations':>{_FIGURE + 1}}{'decisions':>{_FIGURE + 1}}"
    lines = [[(head + ("   95 % of B - A" if wide else ""), dim)]]
    by_name = {metric.name: metric for metric in comparison.metrics}
    order = [name for name in _FIRST if name in by_name]
    order += [metric.name for metric in comparison.metrics if metric.name not in _FIRST]
    lines += [_metric(by_name[name], splits.get(name), palette, wide) for name in order]
    lines += [
        [(line, dim)] for line in _wrapped(f"A's step times: {comparison.durations.basis}", width)
    ]
    if comparison.durations.left_out:
        lines.append(
            [(f"{comparison.durations.left_out:,} requests are left out of the split", dim)]
        )
    return lines


def _metric(metric: MetricDelta, split: Split | None, palette: Palette, wide: bool) -> Line:
    dim = palette.ink("data-axis")
    judged = palette.ink(
        _VERDICTS.get(metric.verdict, "data-axis"), bold=metric.verdict in _VERDICTS
    )
    delta = "" if metric.delta_percent is None else f"{metric.delta_percent:+.1f} %"
    line: Line = [
        (f"{_title(metric.name):<{_NAME}}"[:_NAME], palette.ink()),
        (f"{_figure(metric.a):>{_FIGURE}}{_figure(metric.b):>{_FIGURE}}", palette.ink()),
        (f"{delta:>9} ", judged),
    ]
    if split is None:
        line.append((" " * (2 * _FIGURE + 2), dim))
    else:
        for part, colour in (
            (split.durations_ms, "data-step"),
            (split.decisions_ms, "data-hit"),
        ):
            ink = palette.ink(colour, bold=True) if abs(part) >= 0.05 else dim
            line.append((f"{part:>+{_FIGURE + 1},.1f}", ink))
    if wide:
        line += [("   ", dim), (f"{_interval(metric.interval):<{_INTERVAL}}", dim)]
    line.append((f" {metric.verdict if wide else _SIGNS[metric.verdict]}", judged))
    return line


def _title(name: str) -> str:
    return name.removesuffix("_percent") + " %" if name.endswith("_percent") else name


def _differences(comparison: Comparison, palette: Palette, width: int) -> list[Line]:
    dim = palette.ink("data-axis")
    if not comparison.header:
        return [[("the headers agree", dim)]]
    lines: list[Line] = []
    for fact in comparison.header:
        ink = palette.ink("data-bad" if fact.unfair else None, bold=fact.unfair)
        sign = "!" if fact.unfair else " "
        lines.append(
            [(f"{sign} {fact.key:<38} ", ink), (f"{_short(fact.a)} → {_short(fact.b)}", ink)]
        )
        if fact.unfair:
            lines += [[(f"    {line}", dim)] for line in _wrapped(fact.why, width - 4)]
    lines.append([("! makes the comparison unfair", dim)])
    return lines


def _divergence(comparison: Comparison, palette: Palette, width: int) -> list[Line]:
    found, dim = comparison.divergence, palette.ink("data-axis")
    strong = palette.ink("data-warning", bold=True)
    if found.where in ("equal", "unknown"):
        text = "all decisions are equal" if found.where == "equal" else "no steps are recorded"
        return [[(text, strong)]]
    at = [f"{t / 1e9:,.6f} s in {name}" for t, name in ((found.t_a_ns, "A"), (found.t_b_ns, "B"))]
    step = f"step {found.step:,} of replica {found.replica}, " if found.step >= 0 else ""
    lines: list[Line] = [[(f"{step}at {', '.join(at)}", strong)]]
    for sentence in found.sentences[:_NAMED]:
        lines += [[(line, palette.ink())] for line in _wrapped(sentence, width)]
    if len(found.sentences) > _NAMED:
        lines.append([(f"and {len(found.sentences) - _NAMED} more", dim)])
    for name, batch in (("A", found.a), ("B", found.b)):
        if batch is not None:
            lines += [[(line, dim)] for line in _wrapped(f"{name}: {_batch(batch)}", width)]
    equal = found.equal_steps.get(found.replica)
    if equal is not None:
        lines.append([(f"{equal:,} steps are equal before it", dim)])
    if found.state is not None:
        state = found.state
        text = (
            f"before that, step {state.step:,} leaves other {state.what.replace('_', ' ')}: "
            f"{state.a:,} in A, {state.b:,} in B"
        )
        lines += [[(line, dim)] for line in _wrapped(text, width)]
    if found.by_counts_only:
        lines.append([("without items only the sizes of batches could be compared", dim)])
    return lines


def _batch(batch: StepBatch) -> str:
    chunks = [f"r{request} {tokens:,}" for request, (tokens, _) in sorted(batch.prefills.items())]
    named = ", ".join(chunks[:_NAMED]) + (" ..." if len(chunks) > _NAMED else "")
    return (
        f"prefill {named or 'nothing'}; {batch.decode_requests:,} decode; "
        f"{batch.running:,} running, {batch.waiting:,} waiting; "
        f"head of the queue: {batch.block_reason.name.lower()}"
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) < 100_000 else f"{value:,.0f}"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.low:+,.1f} .. {interval.high:+,.1f}"


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width - 1, 20))
