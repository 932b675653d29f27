"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.analysis.comparison import Comparison
from workbench.analysis.divergence import Divergence
from workbench.analysis.durations import DurationComparison
from workbench.analysis.header_diff import FactDifference
from workbench.analysis.metric_deltas import MetricDelta
from workbench.analysis.step_batches import StepBatch

_NAMED = 8
_LONGEST_VALUE = 34


def render(comparison: Comparison) -> str:
    """The comparison as lines: facts, metrics, first difference, durations, verdict."""
    lines = [
        f"A  {comparison.name_a}",
        f"B  {comparison.name_b}",
        *_facts(comparison.header),
        *_metrics(comparison),
        *_divergence(comparison.divergence),
        *_durations(comparison.durations),
    ]
    if comparison.fail_over_percent is not None:
        lines += ["", _verdict(comparison)]
    return "\n".join(lines) + "\n"


def _verdict(comparison: Comparison) -> str:
    limit = f"{comparison.fail_over_percent:g} %"
    if not comparison.regressed:
        return f"No metric is worse by more than {limit} beyond noise"
    return f"Worse by more than {limit} beyond noise: {', '.join(comparison.regressed)}"


def _facts(differences: tuple[FactDifference, ...]) -> list[str]:
    if not differences:
        return ["", "The headers agree"]
    lines = ["", "What differs (! makes the comparison unfair)"]
    for fact in differences:
        mark = "!" if fact.unfair else " "
        why = f"   {fact.why}" if fact.unfair else ""
        lines.append(f" {mark} {fact.key:<44} {_short(fact.a)} -> {_short(fact.b)}{why}")
    return lines


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 3] + "..."


def _metrics(comparison: Comparison) -> list[str]:
    how = "request by request" if comparison.paired else "over different requests"
    head = f"  {'metric':<26} {'A':>14} {'B':>14} {'delta':>9}   {'95 % of B - A':<28} verdict"
    rows = [_metric(metric) for metric in comparison.metrics]
    return ["", f"Metrics ({how})", head, *rows]


def _metric(metric: MetricDelta) -> str:
    delta = "" if metric.delta_percent is None else f"{metric.delta_percent:+.1f} %"
    interval = ""
    if metric.interval is not None and metric.verdict != "equal":
        interval = f"{metric.interval.low:+,.3f} .. {metric.interval.high:+,.3f}"
    verdict = "" if metric.verdict == "unjudged" else metric.verdict
    values = f"{_number(metric.a):>14} {_number(metric.b):>14}"
    return f"  {metric.name:<26} {values} {delta:>9}   {interval:<28} {verdict}".rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


def _divergence(divergence: Divergence) -> list[str]:
    compared = sum(divergence.compared_steps.values())
    equal = sum(divergence.equal_steps.values())
    if divergence.where == "unknown":
        return ["", "Decisions: unknown; both runs need --detail steps or higher"]
    if divergence.where == "equal":
        lines = ["", f"Decisions: all {compared:,} are equal"]
    else:
        lines = ["", f"Decisions: {_headline(divergence)}"]
        lines += [f"  {sentence}" for sentence in divergence.sentences[:_NAMED]]
        if len(divergence.sentences) > _NAMED:
            lines.append(f"  and {len(divergence.sentences) - _NAMED} more")
        for name, batch in (("A", divergence.a), ("B", divergence.b)):
            if batch is not None:
                lines.append(f"  {name}: {_batch(batch)}")
        lines.append(f"  {equal:,} steps are equal before the first difference of their replica")
    if divergence.state is not None:
        state = divergence.state
        lines.append(
            f"  before that, from step {state.step:,} of replica {state.replica} on, {state.what} "
            f"differs: A {state.a:,}, B {state.b:,}"
        )
    if divergence.by_counts_only:
        lines.append("  compared by counts only: with --detail items in both, request by request")
    return lines


def _headline(divergence: Divergence) -> str:
    times = f"at {divergence.t_a_ns / 1e9:,.6f} s in A, {divergence.t_b_ns / 1e9:,.6f} s in B"
    if divergence.where == "routing":
        return f"first difference in the router, {times}"
    if divergence.where == "length":
        return "equal as far as the shorter run goes"
    return f"first difference in step {divergence.step:,} of replica {divergence.replica}, {times}"


def _batch(batch: StepBatch) -> str:
    prefills = [
        f"r{request} {tokens:,}" for request, (tokens, _) in list(batch.prefills.items())[:_NAMED]
    ]
    parts = [
        f"prefill {_list(prefills, len(batch.prefills))}",
        f"{batch.decode_requests:,} decodes",
        f"{batch.running:,} running",
        f"{batch.waiting:,} waiting",
    ]
    if batch.admitted:
        parts.append(f"admits {_requests(batch.admitted)}")
    if batch.retracted:
        parts.append(f"retracts {_requests(batch.retracted)}")
    if batch.waiting:
        parts.append(f"head of the queue held back: {batch.block_reason.name}")
    return "; ".join(parts)


def _requests(ids: Iterable[int]) -> str:
    ordered = sorted(ids)
    return _list([f"r{request}" for request in ordered[:_NAMED]], len(ordered))


def _list(shown: list[str], count: int) -> str:
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return (", ".join(shown) or "nothing") + more


def _durations(durations: DurationComparison) -> list[str]:
    lines = []
    if durations.equal_steps:
        lines += ["", "Durations of steps with equal decisions"]
        for kind in durations.equal_steps:
            gpu = _percent(kind.gpu_a_ns, kind.gpu_b_ns)
            period = _percent(kind.period_a_ns, kind.period_b_ns)
            lines.append(f"  {kind.kind:<8} {kind.steps:>10,} steps   GPU {gpu}   in all {period}")
    lines += ["", f"Durations or decisions? ({durations.basis})"]
    if durations.left_out:
        lines.append(
            f"  over the {durations.requests:,} requests that ended while that was known; "
            f"{durations.left_out:,} are left out"
        )
    if durations.splits and not any(split.delta_ms for split in durations.splits):
        lines.append("  every request took exactly the same time in both runs")
        return lines
    for split in durations.splits:
        lines.append(
            f"  {split.name:<18} {split.delta_ms:+14,.3f} ms = durations "
            f"{split.durations_ms:+,.3f} + decisions {split.decisions_ms:+,.3f}"
        )
    return lines


def _percent(a: int, b: int) -> str:
    return f"{100 * (b - a) / a:+.2f} %" if a else "-"
