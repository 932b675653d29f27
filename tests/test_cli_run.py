"""`workbench run` end to end on an executor without tensors, and what reads its record."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import replay_record
from fake_executor import FakeClock, FakeRunner, Faults
from typer.testing import CliRunner, Result

from engine.models.model_folder import ModelNotFoundError
from engine.runtime.executor import EngineError
from workbench.cli import app
from workbench.record.run_record import RunReader
from workbench.record.stream import HeaderFrame, SegmentFrame, SummaryFrame, read_frames

SMALL = [
    "run", "quickstart", "--load-format", "dummy", "--num-prompts", "40",
    "--set", "load.warmup_requests=0", "--set", "workload.output_len=20",
]  # fmt: skip


class Engine:
    """What the command line gets instead of an engine.

    Attributes:
        runners: every one that was built.
        faults: of the next.
        on_launch: called with each plan that is launched.
        refusal: raised instead of building one.
    """

    def __init__(self) -> None:
        self.runners: list[FakeRunner] = []
        self.faults = Faults()
        self.on_launch: Callable[[Any], None] = lambda plan: None
        self.refusal: Exception | None = None

    def build(self, config: Any, clock: Any, say: Callable[[str], None]) -> FakeRunner:
        if self.refusal is not None:
            raise self.refusal
        say("making random weights")

        def step_ns(plan: Any) -> int:
            self.on_launch(plan)
            return 1_000_000

        self.runners.append(FakeRunner(config, clock, faults=self.faults, step_ns=step_ns))
        return self.runners[-1]


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Each test runs in an empty directory, with an engine without tensors."""
    monkeypatch.chdir(tmp_path)
    fake = Engine()
    monkeypatch.setattr("workbench.running.engine_run.build_runner", fake.build)
    monkeypatch.setattr("workbench.running.engine_run.HostClock", FakeClock)
    return fake


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_result_and_record_are_those_of_a_simulation(engine: Engine) -> None:
    """stdout is the block of `simulate`; stderr names substitutions and the record."""
    result = invoke(*SMALL)
    assert result.exit_code == 0
    assert result.stdout.startswith("============ Serving Benchmark Result ============\n")
    assert result.stdout.endswith("Step times: measured\n")
    assert result.stderr == (
        "note: the scenario names GPU h200; this ran on fake device\n"
        "note: the weights are random (--load-format dummy)\n"
        "recorded in runs/quickstart-1\n"
    )
    run = RunReader(Path("runs/quickstart-1"))
    assert run.status == "complete"
    assert run.header.kind == "engine"
    assert engine.runners[0].closed


def test_same_labels_as_simulate() -> None:
    """Run and simulation of a scenario print the same lines, figures apart."""
    real = invoke(*SMALL).stdout
    simulated = invoke("simulate", "quickstart", *SMALL[4:]).stdout

    def labels(text: str) -> list[str]:
        return [line.partition(":")[0] for line in text.splitlines() if ":" in line]

    assert len(labels(real)) > 50
    hardly = {"Came during a step (%)", "Load"}  # only where somebody waited, or had time to settle
    assert set(labels(real)) ^ set(labels(simulated)) <= hardly


def test_json_is_the_recorded_summary() -> None:
    """--json prints the very summary that the record holds."""
    result = invoke(*SMALL, "--json", "--name", "mine", "--runs-dir", "elsewhere")
    summary = json.loads(result.stdout)
    assert summary == RunReader(Path("elsewhere/mine-1")).summary
    assert (summary["kind"], summary["gpu"]) == ("engine", "fake device")


@pytest.mark.parametrize(
    "faults",
    [{}, {"fails": {9, 30}}, {"not_numbers": {4}}, {"dies_at": 60}, {"raises": {50: ValueError()}}],
)
def test_the_recorded_journal_gives_the_same_plans(engine: Engine, faults: dict[str, Any]) -> None:
    """A fresh scheduler that gets the journal of a record decides what the engine's decided."""
    engine.faults = Faults(**faults)
    invoke(*SMALL)
    assert replay_record(RunReader(Path("runs/quickstart-1"))) >= len(engine.runners[0].plans)


def test_emit_streams_the_run() -> None:
    """--emit - gives frames alone: the header, the steps, the recorded summary."""
    frames = list(read_frames(io.BytesIO(invoke(*SMALL, "--emit", "-").stdout_bytes)))
    assert isinstance(frames[0], HeaderFrame)
    assert frames[0].header.kind == "engine"
    assert isinstance(frames[-1], SummaryFrame)
    assert frames[-1].summary == RunReader(Path("runs/quickstart-1")).summary
    steps = sum(
        len(frame.segment()["steps"]["step"])
        for frame in frames
        if isinstance(frame, SegmentFrame) and "steps" in frame.tables
    )
    assert steps >= frames[-1].summary["steps"] > 0


@pytest.mark.parametrize("detail", ["none", "steps", "items", "pages"])
def test_detail_decides_the_tables_and_not_the_result(detail: str) -> None:
    """Each detail records its tables, and all give the same summary."""
    summary = json.loads(invoke(*SMALL, "--json", "--detail", detail).stdout)
    run = RunReader(Path("runs/quickstart-1"))
    assert run.recorded("steps") == (detail != "none")
    assert (run.path / "journal.npz").exists() == (detail != "none")
    assert summary == json.loads(invoke(*SMALL, "--json", "--no-record").stdout)


def test_fail_under_tells_by_the_exit_code(engine: Engine) -> None:
    """--fail-under ends with 3 when too few requests keep the SLO; without an SLO nothing loads."""
    assert invoke(*SMALL, "--goodput", "ttft:60000", "--fail-under", "99%").exit_code == 0
    assert invoke(*SMALL, "--goodput", "ttft:0.001", "--fail-under", "99%").exit_code == 3
    built = len(engine.runners)
    refused = invoke(*SMALL, "--set", "slo=null", "--fail-under", "99%")
    assert (refused.exit_code, len(engine.runners)) == (2, built)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_keeps_the_partial_run(engine: Engine, sent: signal.Signals, code: int) -> None:
    """Ctrl-C or SIGTERM ends a run, prints what there is, and keeps a readable record."""
    engine.on_launch = lambda plan: plan.plan_id == 200 and os.kill(os.getpid(), sent)
    result = invoke(*SMALL)
    assert result.exit_code == code
    assert result.stdout.startswith("STOPPED EARLY: interrupted at ")
    assert "the partial run is kept in runs/quickstart-1" in result.stderr
    run = RunReader(Path("runs/quickstart-1"))
    assert run.status == "interrupted"
    assert len(run.table("requests")["request_id"]) == 40
    assert replay_record(run) >= 200
    assert engine.runners[0].closed


def test_a_dead_device_is_one_line_and_a_kept_record(engine: Engine) -> None:
    """When the device is lost: code 1, one line that says so, all that happened is on record."""
    engine.faults.dies_at = 150
    result = invoke(*SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()[2:]
    assert lines[-1] == "error: the device fell off the bus"
    assert "the partial run is kept in runs/quickstart-1" in lines
    run = RunReader(Path("runs/quickstart-1"))
    assert run.status == "failed"
    assert run.header.status_reason.endswith("the device fell off the bus")
    assert run.summary["completed"] > 0
    assert len(run.table("steps")["step"]) in (149, 150)
    assert len(run.table("requests")["request_id"]) == 40
    assert engine.runners[0].closed


def test_a_defect_says_so_and_keeps_the_record(engine: Engine) -> None:
    """An exception that nobody foresaw is told as a defect, without a traceback."""
    engine.faults.raises[100] = ValueError("no such thing")
    result = invoke(*SMALL)
    assert result.exit_code == 1
    assert "this is a defect of workbench: ValueError: no such thing" in result.stderr
    assert "Traceback" not in result.stderr
    run = RunReader(Path("runs/quickstart-1"))
    assert run.status == "failed"
    assert len(run.table("steps")["step"]) == 100


def test_failed_steps_are_told_and_only_errors_are_failures(engine: Engine) -> None:
    """A step that succeeds the second time leaves code 0, a request that ends with an error 1."""
    engine.faults.fails = {7}
    result = invoke(*SMALL)
    assert result.exit_code == 0
    note = "note: 1 step failed, what they had to do was computed again: out of memory"
    assert note in result.stderr
    engine.faults = Faults(not_numbers={5})
    result = invoke(*SMALL)
    assert result.exit_code == 1
    assert "Successful requests:                     39" in result.stdout
    assert "error: 1 request ended with an error" in result.stderr
    assert RunReader(Path("runs/quickstart-2")).status == "complete"


def test_readers_read_a_run_with_failed_steps(engine: Engine) -> None:
    """explain, compare, report and the trace take a run in which steps failed."""
    engine.faults.fails = {9, 60, 61, 62}
    assert invoke(*SMALL, "--trace", "t.json").exit_code == 0
    engine.faults = Faults()
    invoke(*SMALL)
    assert json.loads(Path("t.json").read_text())["traceEvents"]
    for arguments in (
        ["explain", "quickstart-1"],
        ["explain", "quickstart-1", "--request", "3"],
        ["compare", "quickstart-1", "quickstart-2"],
        ["report", "quickstart-1", "--format", "svg"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0, (arguments, result.stderr)


def test_explain_sums_to_the_latency_of_a_real_request() -> None:
    """The causes that `explain` finds in an engine's run sum to the TTFT and to the rest."""
    invoke(*SMALL)
    told = json.loads(invoke("explain", "quickstart-1", "--request", "7", "--json").stdout)
    assert sum(cause["ns"] for cause in told["ttft"]) == told["ttft_ns"]
    rest_ns = told["e2e_ns"] - told["ttft_ns"]
    assert sum(cause["ns"] for cause in told["after_first"]) == rest_ns


def test_an_engines_run_cannot_be_forked() -> None:
    """`simulate --fork` says that only a simulation can be repeated."""
    invoke(*SMALL)
    result = invoke("simulate", "--fork", "quickstart-1@5")
    assert result.exit_code == 1
    assert "is no simulation" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run"], 2, "which scenario?"),
        (["run", "quickstart"], 2, "--load-format dummy"),
        (["run", "routers", "--load-format", "dummy"], 2, "deployment.pools.0.replicas=1"),
        (["run", "quickstart", "--model", "no/such-model"], 1, "models are not downloaded"),
        ([*SMALL, "--emit", "-", "--json"], 2, "leave --json or --format out"),
        ([*SMALL, "--set", "workload.prompt_len=900000"], 2, "--set workload.prompt_len="),
    ],
)
def test_what_cannot_be_ends_before_anything_is_loaded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str],
    code: int, says: str,
) -> None:  # fmt: skip
    """Senseless flags and impossible set-ups say why, load no model and leave no record."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    result = invoke(*arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not engine.runners
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "refusal", [EngineError("it does not fit"), ModelNotFoundError("it is not there")]
)
def test_what_the_engine_refuses_is_one_line(engine: Engine, refusal: Exception) -> None:
    """An engine that cannot be built ends the command with its own words and no record."""
    engine.refusal = refusal
    result = invoke(*SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {refusal}\n"
    assert not Path("runs").exists()
