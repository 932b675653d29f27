"""The trace that the Perfetto UI and chrome://tracing open."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from table_builders import MS, Ask, Played, Server, asks, play, poisson, servers

from engine.core.enums import FinishReason
from workbench.metrics.run_metrics import summarize
from workbench.record.errors import RunRecordError
from workbench.record.run_record import RunReader, RunWriter
from workbench.reports.perfetto import TraceSize, write_trace

Event = dict[str, Any]

REQUIRED = {
    "M": {"args"},
    "X": {"dur", "cat", "args"},
    "C": {"args"},
    "b": {"cat", "id"},
    "e": {"cat", "id"},
}


def recorded(root: Path, played: Played, detail: str = "steps") -> RunReader:
    header = played.header(detail=detail)
    writer = RunWriter(root, "x", header)
    writer.write_segment(played.tables)
    writer.finish(summarize(played.tables, header))
    return RunReader(writer.path)


def traced(root: Path, played: Played, **limits: int) -> tuple[list[Event], TraceSize]:
    path = root / "trace.json"
    size = write_trace(recorded(root, played), path, **limits)
    trace = json.loads(path.read_text())
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert trace["displayTimeUnit"] == "ms"
    return trace["traceEvents"], size


def by_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["ph"] == kind]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asks(), servers())
def test_the_trace_is_well_formed(tmp_path: Path, requests: list[Ask], server: Server) -> None:
    """Fields are those of the format; GPU slices never overlap; request slices nest and close."""
    events, _ = traced(tmp_path, play(requests, server))
    for event in events:
        assert {"ph", "name", "pid", "tid", "ts"} | REQUIRED[event["ph"]] <= set(event)
        assert event["ts"] >= 0
        assert isinstance(event["pid"], int)
    _check_gpu_slices(by_kind(events, "X"))
    _check_nesting([event for event in events if event["ph"] in "be"])
    for counter in by_kind(events, "C"):
        assert all(isinstance(value, int) and value >= 0 for value in counter["args"].values())


def _check_gpu_slices(slices: list[Event]) -> None:
    ends: dict[int, float] = defaultdict(float)
    for event in slices:
        assert event["ts"] >= ends[event["pid"]] - 1e-6
        ends[event["pid"]] = event["ts"] + event["dur"]


def _check_nesting(events: list[Event]) -> None:
    stacks: dict[str, list[Event]] = defaultdict(list)
    last: dict[str, float] = defaultdict(float)
    for event in events:
        stack = stacks[event["id"]]
        assert event["ts"] >= last[event["id"]]
        last[event["id"]] = event["ts"]
        if event["ph"] == "b":
            stack.append(event)
        else:
            assert stack.pop()["name"] == event["name"]
    assert not any(stacks.values())


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asks(), servers())
def test_phases_fill_the_life_of_each_request(
    tmp_path: Path, requests: list[Ask], server: Server
) -> None:
    """Queue, prefill, decode and retracted times follow each other from arrival to end."""
    played = play(requests, server)
    events, size = traced(tmp_path, played)
    assert size.requests == size.total_requests == len(requests)
    phases: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lives: dict[str, tuple[float, float]] = {}
    begun: dict[tuple[str, str], float] = {}
    for event in (event for event in events if event["ph"] in "be"):
        key = (event["id"], event["name"])
        if event["ph"] == "b":
            begun[key] = event["ts"]
        elif event["name"].startswith("request"):
            lives[event["id"]] = (begun[key], event["ts"])
        else:
            phases[event["id"]].append((begun[key], event["ts"]))
    for number, ask in enumerate(requests):
        begin, end = lives[hex(number)]
        assert begin == ask.arrival_ns / 1000
        assert end == played.token_times[number][-1] / 1000
        borders = [begin, *(until for _, until in phases[hex(number)])]
        assert [since for since, _ in phases[hex(number)]] == borders[:-1]
        assert borders[-1] == end


def test_steps_say_what_they_computed(tmp_path: Path) -> None:
    """One slice per step with its batch in the arguments, on its replica's GPU track."""
    played = play([Ask(0, prompt=40, output=3), Ask(2 * MS, prompt=8, output=3)])
    events, size = traced(tmp_path, played)
    slices = by_kind(events, "X")
    assert len(slices) == size.steps == len(played.tables["steps"]["step"])
    first = slices[0]
    assert (first["name"], first["pid"], first["cat"]) == ("prefill", 1, "step")
    assert first["args"]["prefill_tokens"] == 32
    assert first["args"]["block_reason"] == "none"
    assert (first["ts"], first["dur"]) == (100, 1320)
    assert {event["name"] for event in slices} == {"prefill", "prefill + decode", "decode"}
    named = {(e["name"], e["pid"]): e["args"] for e in by_kind(events, "M")}
    assert named["process_name", 1]["name"] == "replica 0: tiny-model on tiny-gpu"
    assert named["thread_name", 1]["name"] == "GPU steps"
    counters = {event["name"] for event in by_kind(events, "C")}
    assert counters == {"running requests", "waiting requests", "tokens per step", "KV pages"}


def test_limits_keep_the_first_and_are_told(tmp_path: Path) -> None:
    """Of a long run the first requests and steps are written, and the caller learns how many."""
    played = play(poisson(30, 300), Server(replicas=2))
    events, size = traced(tmp_path, played, max_requests=4, max_steps=7)
    steps = len(played.tables["steps"]["step"])
    assert size == TraceSize(steps=7, total_steps=steps, requests=4, total_requests=30)
    shown = {event["id"] for event in by_kind(events, "b")}
    assert shown == {"0x0", "0x1", "0x2", "0x3"}
    assert len(by_kind(events, "X")) == 7


def test_requests_that_never_got_far_close_where_they_stopped(tmp_path: Path) -> None:
    """Unsent requests are absent; rejected and unfinished ones have slices that end."""
    played = play([Ask(0), Ask(0), Ask(0)])
    rows = played.tables["requests"]
    spans = played.tables["decode_spans"]
    for column in ("admitted_ns", "first_token_ns", "finish_ns"):
        rows[column][:] = -1
    rows["arrival_ns"][0] = -1
    rows["finish_reason"][:] = [FinishReason.NONE, FinishReason.REJECTED, FinishReason.NONE]
    rows["output_tokens"][:] = 0
    played.tables["decode_spans"] = {name: column[:0] for name, column in spans.items()}
    events, size = traced(tmp_path, played)
    assert size.total_requests == 2
    slices = [event for event in events if event["ph"] in "be"]
    assert [event["ph"] for event in slices] == ["b", "e", "b", "e"]


def test_a_trace_needs_steps(tmp_path: Path) -> None:
    """Detail none is too little, and nothing is written."""
    run = recorded(tmp_path, play([Ask(0)]), "none")
    with pytest.raises(RunRecordError, match="detail 'none'; a trace needs"):
        write_trace(run, tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_half_trace(tmp_path: Path) -> None:
    """A trace is whole or not there."""
    (tmp_path / ".trace.json.tmp").symlink_to("/dev/full")
    with pytest.raises(RunRecordError, match="no space left"):
        traced(tmp_path, play(poisson(200, 400)))
    assert not (tmp_path / "trace.json").exists()
