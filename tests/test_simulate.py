"""From a scenario to a result: every shipped scenario, records, streams, stops and full disks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import (
    DEPLOYMENTS,
    WORKLOADS,
    assert_equal_tables,
    record,
    settings,
    simulation_of,
)
from typer.testing import CliRunner, Result

import workbench.record.atomic_file
from engine.core.events import TABLES, Detail, Segment, concatenate, recorded_tables
from simulator.world import Progress
from workbench.cli import app
from workbench.record.run_record import JOURNAL, RunReader
from workbench.record.segment_buffer import SegmentBuffer
from workbench.record.stream import SegmentFrame, SummaryFrame, read_frames
from workbench.running.replay_check import check_replay
from workbench.running.simulate import prepare
from workbench.scenario.source import load_scenario, shipped_names

FIXTURES = Path(__file__).parent / "fixtures" / "traces"
TRACE_SCENARIOS = {"azure_trace", "mooncake_trace"}

# The keys of `vllm bench serve --save-result` that a simulation can answer.
VLLM_KEYS = {
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
    "max_output_tokens_per_s", "max_concurrent_requests", "request_rate", "burstiness",
    "max_concurrency",
    *(f"{statistic}_{metric}_ms"
      for metric in ("ttft", "tpot", "itl", "e2el")
      for statistic in ("mean", "median", "std", "p99")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty directory, where the runs go."""
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# Shipped scenarios and traces


def shrunk(name: str) -> list[str]:
    """Flags that make a shipped scenario short."""
    if name == "prefix_cache_chat":
        return ["--set", "workload.num_conversations=20"]
    return ["--num-prompts", "80", "--set", "load.warmup_requests=0"]


@pytest.mark.parametrize("name", sorted(set(shipped_names()) - TRACE_SCENARIOS))
def test_every_shipped_scenario_simulates(name: str) -> None:
    """Each shipped scenario completes its requests and prints JSON with vLLM's keys."""
    result = invoke("simulate", name, *shrunk(name), "--json", "--no-record", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    summary = json.loads(result.stdout)
    assert summary.keys() >= VLLM_KEYS
    assert summary["completed"] >= 80
    assert summary["failed"] == 0
    assert summary["mean_ttft_ms"] > 0
    assert summary["stopped_early"] is None


@pytest.mark.parametrize(
    ("name", "trace", "requests", "prompt_tokens"),
    [
        ("azure_trace", "azure_2023.csv", 4, 15531),
        ("azure_trace", "azure_2024.csv", 4, 7013),
        ("mooncake_trace", "mooncake.jsonl", 7, 7237),
    ],
)
def test_traces_simulate(name: str, trace: str, requests: int, prompt_tokens: int) -> None:
    """Each row of a trace becomes a request of its lengths at its time."""
    path = f"workload.path={FIXTURES / trace}"
    result = invoke("simulate", name, "--set", path, "--json", "-q")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["completed"], summary["total_input_tokens"]) == (requests, prompt_tokens)
    (recorded,) = Path("runs").iterdir()
    facts = RunReader(recorded).header.inputs["workload.path"]
    assert facts.sha256 == hashlib.sha256((FIXTURES / trace).read_bytes()).hexdigest()


def test_mooncake_blocks_are_prefix_hits() -> None:
    """Blocks that a trace's hash_ids repeat come out of the prefix cache of one replica."""
    path = f"workload.path={FIXTURES / 'mooncake.jsonl'}"
    one = ("--set", "deployment.pools.0.replicas=1", "--set", "load.time_scale=1000")
    invoke("simulate", "mooncake_trace", "--set", path, *one, "-q")
    requests = RunReader(Path("runs/mooncake_trace-1")).table("requests")
    cached = requests["cached_tokens"][np.argsort(requests["request_id"])]
    assert cached[2] == 512 - 16  # the whole prompt is known, but its last token is computed
    assert cached[3] == 1024
    assert cached[4] == 0


# Determinism


def digests(run_path: Path) -> dict[str, str]:
    """SHA-256 of the content of every array of a run."""
    return {
        f"{path.name}/{name}": hashlib.sha256(array.tobytes()).hexdigest()
        for path in sorted(run_path.rglob("*.npz"))
        for name, array in np.load(path).items()
    }


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_same_seed_is_the_same_run_in_another_process(workload: str) -> None:
    """Another process with another hash seed records the same arrays and the same summary."""
    overrides = [x for text in settings(workload, "three") for x in ("--set", text)]
    command = ["simulate", "quickstart", *overrides, "--set", "hardware.profile=analytic", "-q"]
    invoke(*command)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "workbench", *command], env=environment, check=True)
    first, second = Path("runs/quickstart-1"), Path("runs/quickstart-2")
    assert digests(first) == digests(second)
    assert f"{JOURNAL}/2" in digests(first)
    assert (first / "summary.json").read_bytes() == (second / "summary.json").read_bytes()


# Records and streams


@pytest.mark.parametrize("detail", ["none", "steps", "items", "pages"])
def test_a_detail_records_its_tables_alone(detail: str) -> None:
    """Each table of a detail has rows, no other has, and journals come with steps."""
    recorded = record(simulation_of("shared prefix", "three", detail))
    expected = set(recorded_tables(Detail[detail.upper()]))
    assert {name for name in TABLES if len(recorded.table(name)["replica"])} == expected
    assert (recorded.path / JOURNAL).exists() == (detail != "none")


def test_the_stream_is_the_record() -> None:
    """The frames of `--emit -` hold the rows of the record, and its summary."""
    overrides = [x for text in settings("conversation", "three") for x in ("--set", text)]
    command = [sys.executable, "-m", "workbench", "simulate", "quickstart", *overrides]
    command += ["--emit", "-", "--detail", "pages"]
    streamed = subprocess.run(command, capture_output=True, check=True).stdout
    header, *frames, last = read_frames(io.BytesIO(streamed))
    recorded = RunReader(Path("runs/quickstart-1"))
    segments = [frame.segment() for frame in frames if isinstance(frame, SegmentFrame)]
    assert_equal_tables(concatenate(segments, tuple(TABLES)), recorded.tables())
    assert isinstance(last, SummaryFrame)
    assert last.summary == recorded.summary
    assert header.header.scenario == recorded.header.scenario
    assert len(segments) > len(list((recorded.path / "events").iterdir()))


def test_a_live_run_hands_out_rows_soon() -> None:
    """With somebody watching, segments come with every heartbeat 50 ms apart, else as one."""
    simulation = prepare(load_scenario("quickstart", ["workload.num_requests=400"]), "steps")
    plain: list[Segment] = []
    live: list[Segment] = []
    simulation.run([plain.append])

    def slow(_: Progress) -> None:
        deadline.append(len(live))

    deadline: list[int] = []
    simulation.run([live.append], live=True, on_progress=slow)
    assert len(plain) == 1
    assert len(live) > 1
    assert deadline[-1] > 0  # some were out long before the end
    assert_equal_tables(concatenate(plain, tuple(TABLES)), concatenate(live, tuple(TABLES)))
    assert max(len(s["steps"]["step"]) for s in live if "steps" in s) <= 10_000 + 4096 + 4096


def test_a_segment_buffer_joins_and_loses_nothing() -> None:
    """Small segments leave in order, joined, when enough rows wait or on flush."""

    def segment(first: int, count: int) -> Segment:
        return {"radix": {name: np.arange(first, first + count).astype(dtype)
                          for name, dtype in TABLES["radix"].items()}}  # fmt: skip

    out: list[Segment] = []
    buffer = SegmentBuffer(out.append, segment_rows=10)
    for first, count in ((0, 4), (4, 5), (9, 3), (12, 11), (23, 1)):
        buffer.add(segment(first, count))
    assert [len(s["radix"]["step"]) for s in out] == [12, 11]
    buffer.flush()
    buffer.flush()
    joined = concatenate(out, ("radix",))["radix"]
    np.testing.assert_array_equal(joined["step"], np.arange(24))
    assert len(out) == 3


def test_a_segment_buffer_with_seconds_hands_on_what_waited_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few rows leave, too, with the first segment that comes after the time."""
    clock = [0.0]
    monkeypatch.setattr("workbench.record.segment_buffer.time.monotonic", lambda: clock[0])
    out: list[Segment] = []
    buffer = SegmentBuffer(out.append, segment_rows=1000, seconds=10)
    small = {"radix": {name: np.zeros(2, dtype) for name, dtype in TABLES["radix"].items()}}
    for at, left in ((1, 0), (9.9, 0), (10, 1), (15, 1), (19.9, 1), (20, 2)):
        clock[0] = at
        buffer.add(small)
        assert len(out) == left, at
    assert [len(s["radix"]["step"]) for s in out] == [6, 6]


# Stops


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_stopped_run_is_a_whole_record_of_what_had_happened(deployment: str) -> None:
    """A run that is told to stop lists every request once; its decisions are the full run's."""
    simulation = simulation_of("conversation", deployment)
    beats = iter(range(10))
    whole = simulation.run(journal=True)
    segments: list[Segment] = []
    partial = simulation.run([segments.append], journal=True, should_stop=lambda: next(beats) >= 1)
    assert str(partial.stopped_early).startswith("interrupted at ")
    assert partial.summary["stopped_early"] == partial.stopped_early
    assert 0 < partial.summary["completed"] < whole.summary["completed"]
    requests = concatenate(segments, ("requests",))["requests"]
    assert sorted(requests["request_id"].tolist()) == list(range(len(simulation.workload)))
    pairs = zip(whole.journals, partial.journals, strict=True)
    steps = [
        check_replay(full.to_array(), part.to_array(), replica)
        for replica, (full, part) in enumerate(pairs)
    ]
    assert min(steps) > 0
    assert partial.summary["steps"] <= sum(steps) < whole.summary["steps"]


def test_a_run_stopped_at_once_has_a_summary() -> None:
    """A run that is stopped before anything has ended gives what figures there are."""
    stopped = prepare(load_scenario("long_context"), "none").run(should_stop=lambda: True)
    assert str(stopped.stopped_early).startswith("interrupted at ")
    assert stopped.summary["completed"] == 0
    assert stopped.summary["mean_ttft_ms"] is None


# Disks


@pytest.mark.parametrize("full_after", range(6))
def test_a_full_disk_leaves_no_record_that_looks_whole(
    full_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file the disk has no room for, the record is not complete, but a result is told.

    Only a run that cannot even be opened stops before it simulates.
    """
    written = 0

    def replace(source: str, target: str) -> None:
        nonlocal written
        written += 1
        if written > full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(workbench.record.atomic_file.os, "replace", replace)
    result = invoke("simulate", "quickstart", "--num-prompts", "150", "-q")
    if full_after == 5:  # header, events, journal, summary, header: there was room for all
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert ("Successful requests" in result.stdout) == (full_after > 0)
    assert result.stderr.count("no space left on device") == 1
    assert not list(Path("runs").rglob("*.tmp"))
    header = Path("runs/quickstart-1/header.json")
    assert header.exists() == (full_after > 0)
    if full_after:
        assert json.loads(header.read_text())["status"] in ("running", "failed")


def test_a_directory_without_permission_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no run directory can be made the run does not start, and says what to do."""
    make = Path.mkdir

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        if self.name == "runs":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = invoke("simulate", "quickstart", "--num-prompts", "150")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot create runs: permission denied; choose a directory" in result.stderr


def test_a_failing_run_is_recorded_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in the middle of a run leaves a record that says so, and no summary."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("in a step")

    monkeypatch.setattr("simulator.replica.Replica._launch", fail)
    result = invoke("simulate", "quickstart", "--num-prompts", "150")
    assert result.exit_code == 1
    assert "defect" in result.stderr
    recorded = RunReader(Path("runs/quickstart-1"))
    assert recorded.status == "failed"
    assert "in a step" in str(recorded.header.status_reason)
    assert not (recorded.path / "summary.json").exists()
