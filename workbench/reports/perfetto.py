"""A run as Chrome trace events, which https://ui.perfetto.dev and chrome://tracing open.

One process per replica: a track of GPU steps (what each computed is in its arguments), counter
tracks, and one asynchronous slice per request with its phases inside. The format is that of the
"Trace Event Format" document of the Chromium project; times are microseconds with three decimals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from engine.core.enums import AdmissionBlock, FinishReason
from engine.core.events import Columns
from workbench.metrics.latency import IterationTimes, lone_last_tokens, spans_of
from workbench.metrics.occupancy import used_pages
from workbench.record.atomic_file import open_atomic
from workbench.record.errors import RunRecordError
from workbench.record.header import RunHeader
from workbench.record.run_record import RunReader

Event = dict[str, Any]

DEFAULT_MAX_REQUESTS: Final = 2_000
DEFAULT_MAX_STEPS: Final = 100_000

_GPU_THREAD: Final = 1
_PER_WRITE: Final = 10_000


@dataclass(frozen=True, slots=True)
class TraceSize:
    """What of a run a trace holds.

    Attributes:
        steps, requests: written.
        total_steps, total_requests: in the run (requests that were sent).
    """

    steps: int
    total_steps: int
    requests: int
    total_requests: int


def write_trace(
    run: RunReader,
    path: Path,
    max_requests: int = DEFAULT_MAX_REQUESTS,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> TraceSize:
    """Write the first requests by arrival and the first steps of each replica as a JSON trace.

    Args:
        run: with detail `steps` or more.
        path: the file to write; it appears when it is whole.
        max_requests: requests at most, over all replicas.
        max_steps: steps at most, over all replicas.

    Returns:
        How much of the run that is.

    Raises:
        RunRecordError: the run has no steps, or the file cannot be written.
    """
    if not run.recorded("steps"):
        raise RunRecordError(
            f"{run.path} was recorded with detail 'none'; "
            "a trace needs a run with detail 'steps' or more"
        )
    steps, requests = run.table("steps"), run.table("requests")
    shown_steps = _first(steps, "start_ns", max_steps)
    shown = _first(_sent(requests), "arrival_ns", max_requests)
    events = _chunks(
        _metadata(run.header),
        _steps(shown_steps),
        _counters(shown_steps, run.header),
        _requests(shown, run.table("decode_spans"), IterationTimes.of(steps)),
    )
    size = TraceSize(
        steps=len(shown_steps["step"]),
        total_steps=len(steps["step"]),
        requests=len(shown["request_id"]),
        total_requests=len(_sent(requests)["request_id"]),
    )
    _write(path, events, {"run": run.header.name, "cost_model": run.header.cost_model})
    return size


def _write(path: Path, chunks: Iterator[list[Event]], about: dict[str, str]) -> None:
    encoder = msgspec.json.Encoder()
    with open_atomic(path) as file:
        file.write(b'{"displayTimeUnit":"ms","otherData":' + encoder.encode(about))
        file.write(b',"traceEvents":[')
        separator = b"\n"
        for chunk in chunks:
            file.write(separator + b",\n".join(encoder.encode(event) for event in chunk))
            separator = b",\n"
        file.write(b"\n]}\n")


def _chunks(*sources: Iterator[Event]) -> Iterator[list[Event]]:
    chunk: list[Event] = []
    for source in sources:
        for event in source:
            chunk.append(event)
            if len(chunk) == _PER_WRITE:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _metadata(header: RunHeader) -> Iterator[Event]:
    """Names of processes and tracks; process numbers are replicas + 1."""
    for replica in range(len(header.replicas)):
        pid = replica + 1
        name = f"replica {replica}: {header.model} on {header.gpu}"
        yield _event("M", "process_name", pid, args={"name": name})
        yield _event("M", "process_sort_index", pid, args={"sort_index": replica})
        yield _event("M", "thread_name", pid, tid=_GPU_THREAD, args={"name": "GPU steps"})


def _steps(steps: Columns) -> Iterator[Event]:
    """One complete slice per step, named by what it mixes so that kinds share a colour."""
    for row in _rows(steps):
        kind = "prefill" if row["prefill_tokens"] else "decode"
        if row["prefill_tokens"] and row["decode_tokens"]:
            kind = "prefill + decode"
        yield _event(
            "X",
            kind,
            row["replica"] + 1,
            tid=_GPU_THREAD,
            ts=_us(row["start_ns"]),
            dur=_us(row["gpu_ns"]),
            cat="step",
            args={
                "step": row["step"],
                "prefill_tokens": row["prefill_tokens"],
                "prefill_requests": row["prefill_requests"],
                "decode_tokens": row["decode_tokens"],
                "decode_context": row["decode_context"],
                "hit_tokens": row["hit_tokens"],
                "graph_batch": row["graph_batch"],
                "running": row["running"],
                "waiting": row["waiting"],
                "block_reason": AdmissionBlock(row["block_reason"]).name.lower(),
                "retracted": row["retracted"],
                "host_us": _us(row["host_ns"]),
            },
        )


def _counters(steps: Columns, header: RunHeader) -> Iterator[Event]:
    """Counter tracks, set when a step is planned."""
    num_pages = np.array([replica.num_pages for replica in header.replicas], np.int64)
    used = used_pages(steps, num_pages).tolist()
    for row, pages in zip(_rows(steps), used, strict=True):
        pid, ts = row["replica"] + 1, _us(row["plan_ns"])
        tokens = {"prefill": row["prefill_tokens"], "decode": row["decode_tokens"]}
        kv = {"used": pages, "cached": row["cached_pages"], "free": row["free_pages"]}
        yield _event("C", "running requests", pid, ts=ts, args={"running": row["running"]})
        yield _event("C", "waiting requests", pid, ts=ts, args={"waiting": row["waiting"]})
        yield _event("C", "tokens per step", pid, ts=ts, args=tokens)
        yield _event("C", "KV pages", pid, ts=ts, args=kv)


def _requests(requests: Columns, spans: Columns, iterations: IterationTimes) -> Iterator[Event]:
    """A slice per request and, nested in it, its phases: queue, prefill, decode, retracted."""
    spans = spans_of(spans, requests["request_id"])
    _, last = iterations.rows_of(spans)
    ends = iterations.last_token_ns(spans, last).tolist()
    lone, _ = lone_last_tokens(requests, spans, iterations.last_token_ns(spans, last))
    first_span = np.searchsorted(spans["request_id"], requests["request_id"], side="left").tolist()
    stop_span = np.searchsorted(spans["request_id"], requests["request_id"], side="right").tolist()
    starts = spans["token_ns"].tolist()
    for i, row in enumerate(_rows(requests)):
        stays = slice(first_span[i], stop_span[i])
        decodes = list(zip(starts[stays], ends[stays], strict=True))
        phases = _phases(row, decodes, bool(lone[i]))
        yield from _request(row, phases)


def _phases(
    row: dict[str, int], decodes: list[tuple[int, int]], lone: bool
) -> list[tuple[str, int, int]]:
    """Phases of a request as (name, begin, end) in ns; whatever it never reached is absent."""
    finish = row["finish_ns"]
    moments = [("queue", row["arrival_ns"], row["admitted_ns"])]
    moments.append(("prefill", row["admitted_ns"], row["first_token_ns"]))
    previous = None
    for begin, end in decodes:
        if previous is not None:
            moments.append(("retracted", previous, begin))
        moments.append(("decode", begin, end))
        previous = end
    if lone and previous is not None:
        moments.append(("retracted", previous, finish))
    closed = [(name, begin, end if end >= 0 else finish) for name, begin, end in moments]
    return [phase for phase in closed if phase[1] >= 0 and phase[2] > phase[1]]


def _request(row: dict[str, int], phases: list[tuple[str, int, int]]) -> Iterator[Event]:
    """Asynchronous begin and end events of one request; they nest by their common id."""
    pid = max(row["replica"], 0) + 1
    common = {"cat": "request", "id": f"{row['request_id']:#x}"}
    begin = row["arrival_ns"]
    end = max([begin, row["finish_ns"], *(phase[2] for phase in phases)])
    name = f"request {row['request_id']}"
    args = {
        "prompt_tokens": row["prompt_tokens"],
        "cached_tokens": row["cached_tokens"],
        "output_tokens": row["output_tokens"],
        "retractions": row["retractions"],
        "finish_reason": FinishReason(row["finish_reason"]).name.lower(),
    }
    yield _event("b", name, pid, ts=_us(begin), args=args, **common)
    for phase, since, until in phases:
        yield _event("b", phase, pid, ts=_us(since), **common)
        yield _event("e", phase, pid, ts=_us(until), **common)
    yield _event("e", name, pid, ts=_us(end), **common)


def _event(kind: str, name: str, pid: int, **fields: Any) -> Event:
    return {"ph": kind, "name": name, "pid": pid, "tid": 0, "ts": 0, **fields}


def _us(time_ns: int) -> float:
    """Microseconds, exact to the nanosecond in what is printed."""
    return round(time_ns / 1000, 3)


def _sent(requests: Columns) -> Columns:
    kept = requests["arrival_ns"] >= 0
    return {name: column[kept] for name, column in requests.items()}


def _first(columns: Columns, by: str, count: int) -> Columns:
    """The first rows by one column, in its order."""
    order = np.argsort(columns[by], kind="stable")[:count]
    return {name: column[order] for name, column in columns.items()}


def _rows(columns: Columns) -> Iterator[dict[str, int]]:
    """Rows as dicts of plain ints."""
    names = list(columns)
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield dict(zip(names, values, strict=True))
