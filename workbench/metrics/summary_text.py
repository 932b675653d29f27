"""Shows a summary to people: the block of `vllm bench serve`, then what only a scheduler can know.

Labels, order and the 50-column layout of the first block are vLLM's, so that two tools' results can
be laid side by side. The functions take the dict that `run_metrics.summarize` makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from workbench.metrics.run_metrics import WAIT_REASONS
from workbench.record.run_record import encode_summary

Summary = dict[str, Any]
Format = Literal["table", "json", "md"]

_WIDTH: Final = 50
_LABEL_WIDTH: Final = 40

_LATENCIES: Final = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
)

_WAIT_LABELS: Final = {
    "next_step": "Came during a step (%):",
    "none": "Not recorded (%):",
    "token_budget": "Token budget of the step (%):",
    "running_limit": "Running limit (%):",
    "kv_pages": "KV pages (%):",
    "kv_reserved": "KV reserved for running requests (%):",
    "retraction": "Retraction (%):",
    "prefill_limit": "Prefill limit of the step (%):",
}


class _Line(NamedTuple):
    label: str
    value: str


class _Section(NamedTuple):
    title: str
    lines: list[_Line]


def render(summary: Summary, style: Format = "table") -> str:
    """The summary as text that ends in a newline: a table, JSON or Markdown."""
    if style == "json":
        return encode_summary(summary).decode()
    if summary["stopped_early"] and not summary["completed"]:
        return f"STOPPED EARLY: {summary['stopped_early']}; nothing had been measured yet\n"
    return _table(summary) if style == "table" else _markdown(summary)


def headlines(summary: Summary) -> list[str]:
    """What must be read before any figure: that it is partial, or that load exceeds capacity."""
    lines = []
    if summary["stopped_early"]:
        lines.append(f"STOPPED EARLY: {summary['stopped_early']}; figures cover what had happened")
    if summary["overloaded"]:
        lines.append(f"OVERLOADED: {summary['load_verdict']}")
    elif summary["load_state"] != "stable":
        lines.append(f"Load: {summary['load_verdict']}")
    return lines


def percentiles_of(summary: Summary) -> list[str]:
    """Percentiles that the summary holds, as they stand in its keys: "50", "99.9"."""
    return [m[1] for key in summary if (m := re.fullmatch(r"p([0-9.]+)_ttft_ms", key))]


def _table(summary: Summary) -> str:
    lines = headlines(summary)
    for number, section in enumerate(_sections(summary)):
        lines.append(section.title.center(_WIDTH, "-" if number else "="))
        lines += [f"{line.label:<{_LABEL_WIDTH}} {line.value:<10}" for line in section.lines]
    lines += ["=" * _WIDTH, *_footer(summary)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _sections(summary: Summary) -> Iterator[_Section]:
    """All sections in order; one without lines is left out."""
    for section in (
        _Section(" Serving Benchmark Result ", list(_serving(summary))),
        *(_Section(title, _latency(summary, key, name)) for key, name, title in _LATENCIES),
        _Section("SLO", _slo(summary)),
        _Section("Other Requests", _unserved(summary)),
        _Section("Prefix Cache", _pick(summary, _PREFIX)),
        _Section("Steps", _pick(summary, _STEPS)),
        _Section("KV Cache", _pick(summary, _KV)),
        _Section("Utilisation", _pick(summary, _USE)),
        _Section("Why Requests Waited", _waits(summary)),
    ):
        if section.lines:
            yield section


_REQUESTS: Final = (
    ("completed", "Successful requests:"),
    ("failed", "Failed requests:"),
    ("max_concurrency", "Maximum request concurrency:"),
)
_PREFIX: Final = (
    ("prefix_hit_rate_percent", "Prefix hit rate (%):"),
    ("cached_tokens", "Cached prompt tokens:"),
)
_STEPS: Final = (
    ("steps", "Steps:"),
    ("mean_step_ms", "Mean step GPU time (ms):"),
    ("mean_tokens_per_step", "Mean tokens per step:"),
    ("mean_decode_batch", "Mean decode batch:"),
    ("mixed_steps_percent", "Steps with prefill and decode (%):"),
    ("mean_running", "Mean running requests:"),
    ("mean_waiting", "Mean left waiting by a step:"),
    ("max_waiting", "Peak left waiting by a step:"),
    ("retractions", "Retractions:"),
    ("recomputed_tokens", "Recomputed tokens:"),
)
_KV: Final = (
    ("kv_pages", "KV pages:"),
    ("kv_used_mean_percent", "Mean KV pages used by requests (%):"),
    ("kv_used_max_percent", "Peak KV pages used by requests (%):"),
    ("kv_cached_mean_percent", "Mean KV pages of the prefix cache (%):"),
    ("evicted_pages", "Evicted KV pages:"),
)
_USE: Final = (
    ("gpu_busy_percent", "GPU busy (%):"),
    ("host_bound_percent", "GPU waits for host (%):"),
    ("idle_percent", "Idle, no requests (%):"),
)


def _serving(summary: Summary) -> Iterator[_Line]:
    """The first block of vLLM; lines that do not apply are absent, as there."""
    rate = summary["request_rate"]
    yield from _pick(summary, _REQUESTS)
    if rate is not None:
        yield _Line("Request rate configured (RPS):", f"{rate:.2f}")
    yield _Line("Benchmark duration (s):", _text(summary["duration_s"]))
    yield _Line("Total input tokens:", _text(summary["total_input_tokens"]))
    yield _Line("Total generated tokens:", _text(summary["total_output_tokens"]))
    yield _Line("Request throughput (req/s):", _text(summary["request_throughput"]))
    if summary["request_goodput"] is not None:
        yield _Line("Request goodput (req/s):", _text(summary["request_goodput"]))
    yield _Line("Output token throughput (tok/s):", _text(summary["output_throughput"]))
    peak = summary["max_output_tokens_per_s"]
    yield _Line("Peak output token throughput (tok/s):", _text(_float(peak)))
    yield _Line("Peak concurrent requests:", _text(_float(summary["max_concurrent_requests"])))
    yield _Line("Total token throughput (tok/s):", _text(summary["total_token_throughput"]))


def _latency(summary: Summary, key: str, name: str) -> list[_Line]:
    pairs = [(f"mean_{key}_ms", f"Mean {name} (ms):"), (f"median_{key}_ms", f"Median {name} (ms):")]
    pairs += [(f"p{p}_{key}_ms", f"P{p} {name} (ms):") for p in percentiles_of(summary)]
    return [_Line(label, _text(summary[key])) for key, label in pairs]


def _slo(summary: Summary) -> list[_Line]:
    if summary["slo_attainment_percent"] is None:
        return []
    limits = [
        _Line(f"{name} objective (ms):", _text(_float(summary[f"slo_{key}_ms"])))
        for key, name, _ in _LATENCIES
        if summary.get(f"slo_{key}_ms") is not None
    ]
    attained = _Line("Requests within the SLO (%):", _text(summary["slo_attainment_percent"]))
    return [*limits, attained]


def _unserved(summary: Summary) -> list[_Line]:
    """How requests ended that did not complete, and which ones do not count; only what occurred."""
    labels = (
        ("rejected", "Rejected:"),
        ("aborted", "Aborted:"),
        ("errors", "Failed in a step:"),
        ("unfinished", "Unfinished:"),
        ("not_sent", "Not sent:"),
        ("not_measured", "Served but not measured:"),
    )
    return [_Line(label, str(summary[key])) for key, label in labels if summary[key]]


def _waits(summary: Summary) -> list[_Line]:
    """Shares of all waiting, largest first."""
    total = summary["wait_total_request_s"]
    if total is None:
        return []
    shares = [(summary[f"wait_{reason}_percent"] or 0.0, reason) for reason in WAIT_REASONS]
    shares.sort(key=lambda pair: -pair[0])
    lines = [_Line("Time in queue (request-s):", _text(total))]
    lines += [_Line(_WAIT_LABELS[reason], _text(share)) for share, reason in shares if share > 0]
    client_s = summary["wait_client_request_s"]
    if client_s:
        lines.append(_Line("Held back by the client (request-s):", _text(client_s)))
    return lines


def _footer(summary: Summary) -> list[str]:
    """What ran where, who said how long steps take, how far that was stretched, what restricts it.

    Summaries of before `cost_model_notes` say nothing of that.
    """
    gpus = f"{summary['num_gpus']} x {summary['gpu']}"
    what = f"{summary['name']}: {summary['model']} on {gpus}, seed {summary['seed']}"
    line = f"Step times: {summary['cost_model']}"
    beyond = summary["extrapolated_steps_percent"]
    if beyond:
        line += f" ({beyond:.1f} % of steps outside its measured range)"
    notes = summary.get("cost_model_notes")
    return [what, line, notes] if notes else [what, line]


def _pick(summary: Summary, labels: Sequence[tuple[str, str]]) -> list[_Line]:
    """Lines for keys that have a value."""
    return [_Line(label, _text(summary[key])) for key, label in labels if summary[key] is not None]


def _text(value: float | str | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _markdown(summary: Summary) -> str:
    """One table of latencies, one of everything else."""
    percents = percentiles_of(summary)
    head = ["ms", "mean", "median", *(f"p{p}" for p in percents)]
    keys = ["mean", "median", *(f"p{p}" for p in percents)]
    rows = [
        [name, *(_text(summary[f"{key}_{metric}_ms"]) for key in keys)]
        for metric, name, _ in _LATENCIES
    ]
    titles = {title for _, _, title in _LATENCIES}
    rest = [
        [line.label.rstrip(":"), line.value]
        for section in _sections(summary)
        if section.title not in titles
        for line in section.lines
    ]
    blocks = [f"**{line}**\n" for line in headlines(summary)]
    blocks += [_markdown_table(head, rows), _markdown_table(["metric", "value"], rest)]
    return "\n".join([*blocks, *(f"{line}\n" for line in _footer(summary))])


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    ruler = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ruler, *rows])
