"""`workbench simulate`, end to end."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from command_line import SMALL, WORKBENCH, invoke

from workbench.cli.progress import ProgressLine
from workbench.record.atomic_file import write_atomic
from workbench.record.errors import RunRecordError
from workbench.record.run_record import RunReader
from workbench.record.stream import HeaderFrame, SummaryFrame, read_frames


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty directory, where the runs go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.is_file()}


# Results and the record


def test_result_is_on_stdout_and_talk_on_stderr() -> None:
    """stdout is the result alone; stderr says where the run is recorded."""
    result = invoke(*SMALL)
    assert result.exit_code == 0
    assert result.stdout.startswith("============ Serving Benchmark Result ============\n")
    assert result.stderr == "recorded in runs/quickstart-1\n"


def test_quiet_says_nothing() -> None:
    """With --quiet nothing is on stderr."""
    assert invoke(*SMALL, "--quiet").stderr == ""


def test_json_is_the_recorded_summary() -> None:
    """--json prints the very summary that the record holds."""
    result = invoke(*SMALL, "--json")
    assert json.loads(result.stdout) == RunReader(Path("runs/quickstart-1")).summary
    assert json.loads(result.stdout)["cost_model"] == "analytic, uncalibrated"


def test_no_record_writes_no_file(own_directory: Path) -> None:
    """--no-record leaves nothing behind."""
    assert invoke(*SMALL, "--no-record").exit_code == 0
    assert not list(own_directory.iterdir())


def test_same_seed_gives_the_same_bytes_in_another_process() -> None:
    """A run's files are the same, byte for byte, in processes with other hash seeds."""
    for number in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": number}
        subprocess.run([*WORKBENCH, *SMALL, "-q"], env=environment, check=True)
    first = files_of(Path("runs/quickstart-1"))
    assert first == files_of(Path("runs/quickstart-2"))
    assert any(name.startswith("events/") for name in first)


def test_another_seed_gives_another_run() -> None:
    """--seed reaches the workload."""
    first, second = (invoke(*SMALL, "--json", "--seed", seed).stdout for seed in "12")
    assert json.loads(first)["total_input_tokens"] != json.loads(second)["total_input_tokens"]


@pytest.mark.parametrize("detail", ["none", "steps", "items", "pages"])
def test_detail_decides_the_tables_and_not_the_result(detail: str) -> None:
    """Each detail records its tables, and all give the same summary."""
    summary = json.loads(invoke(*SMALL, "--json", "--detail", detail).stdout)
    run = RunReader(Path("runs/quickstart-1"))
    assert run.header.detail == detail
    assert run.recorded("steps") == (detail != "none")
    reference = json.loads(invoke(*SMALL, "--json", "--no-record").stdout)
    assert summary == reference


def test_only_an_open_loop_can_be_held_back_by_its_client() -> None:
    """A cap on an open loop holds requests back; a closed loop wants none before it sends it."""
    said = "Held back by the client"
    closed = ["--set", "load={kind: closed_loop, max_concurrency: 4}"]
    capped = ["--set", "load.max_concurrency=4"]
    summaries = []
    for flags in (closed, capped):
        result = invoke(*SMALL, *flags)
        assert (said in result.stdout) == (flags is capped)
        run = f"quickstart-{len(summaries) + 1}"
        told = invoke("explain", run, "--request", "149").stdout
        assert ("held it back" in told) == (flags is capped)
        summaries.append(RunReader(Path("runs") / run).summary)
    waits = [(s["mean_client_wait_ms"], s["wait_client_request_s"]) for s in summaries]
    assert waits[0] == (None, None)
    assert min(waits[1]) > 0


def test_name_and_directory_of_the_record() -> None:
    """--name and --runs-dir say where the record goes; numbers count up."""
    for _ in range(2):
        invoke(*SMALL, "--runs-dir", "elsewhere", "--name", "mine")
    assert {path.name for path in Path("elsewhere").iterdir()} == {"mine-1", "mine-2"}


def test_flags_and_set_change_the_scenario() -> None:
    """Flags and --set end up in the resolved scenario of the header."""
    flags = ["--goodput", "ttft:300", "--metric-percentiles", "50,75", "--seed", "9"]
    invoke(*SMALL, *flags, "--set", "load.request_rate=5")
    scenario = RunReader(Path("runs/quickstart-1")).header.scenario
    assert scenario["seed"] == 9
    assert scenario["workload"]["num_requests"] == 150
    assert scenario["load"]["request_rate"] == 5
    assert scenario["slo"]["ttft_ms"] == 300
    assert scenario["report"]["percentiles"] == [50, 75]


# Goals and failures


def test_fail_under_tells_by_the_exit_code() -> None:
    """--fail-under ends with 3 when too few requests keep the SLO, and prints the result."""
    met = invoke(*SMALL, "--goodput", "ttft:60000 tpot:60000", "--fail-under", "99%")
    missed = invoke(*SMALL, "--goodput", "ttft:0.001 tpot:0.001", "--fail-under", "99%")
    assert (met.exit_code, missed.exit_code) == (0, 3)
    assert "Serving Benchmark Result" in missed.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fail-under", "most"], "no percentage"),
        (["--fail-under", "101%"], "from 0 to 100"),
        (["--name", "a b/c"], "'a b/c' cannot name"),
        (["--name", ""], "cannot name"),
        (["--name", "x" * 81], "80 at most"),
        (["--trace", "-"], "--trace cannot go to stdout"),
        (["--emit", "-", "--json"], "leave --json or --format out"),
        (["--emit", "-", "--format", "md"], "leave --json or --format out"),
        (["--set", "slo=null", "--fail-under", "99"], "needs an SLO"),
        (["--no-record", "--trace", "t.json"], "--no-record"),
        (["--trace", "no/such/t.json"], "there is no directory no/such"),
        (["--goodput", "ttft"], "METRIC:MILLISECONDS"),
        (["--set", "load.request_rat=1"], "request_rate"),
        (["--set", "model.name=Llama-3.1-70B", "--set", "hardware.gpu=l4"], "GiB"),
        (["--set", "deployment.pools=[{num_pages: 100000000}]"], "do not fit"),
        (["--set", "deployment.pools=[{tensor_parallel_size: 3}]"], "does not divide"),
        (["--set", "workload.prompt_len=9000000"], "can never be served"),
    ],
)
def test_what_cannot_be_is_wrong_usage(
    own_directory: Path, arguments: list[str], says: str
) -> None:
    """A senseless flag and an impossible set-up end with 2, say why, and leave no record."""
    result = invoke("simulate", "quickstart", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert not list(own_directory.iterdir())


@pytest.mark.parametrize(
    ("name", "home"), [("azure_trace", "Azure"), ("mooncake_trace", "kvcache-ai")]
)
def test_a_shipped_trace_scenario_says_where_its_file_is(name: str, home: str) -> None:
    """The line that the error shows names the repository, since nobody has seen the file yet."""
    result = invoke("simulate", name)
    assert result.exit_code == 2
    assert f"# path: github.com/{home}/" in result.stderr
    assert "--set workload.path=" in result.stderr


def test_broken_trace_names_the_line() -> None:
    """A trace with a bad line is a failure that names file and line."""
    Path("bad.jsonl").write_text('{"timestamp": 0, "input_length": 3}\n')
    text = "{kind: trace, path: bad.jsonl, format: mooncake}"
    result = invoke("simulate", "quickstart", "--set", f"workload={text}")
    assert result.exit_code in (1, 2)
    assert "bad.jsonl:1" in result.stderr
    assert not Path("runs").exists()


def test_runs_directory_that_is_a_file_is_a_failure() -> None:
    """Where no record can be written the run fails before it starts, with the path."""
    Path("runs").write_text("")
    result = invoke(*SMALL)
    assert result.exit_code == 1
    assert "runs" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("file", [r"events/\d+\.npz", r"journal\.npz", r"summary\.json"])
def test_full_disk_costs_the_record_and_not_the_result(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """When the disk fills up the result comes all the same, with code 1 and a failed record."""

    def write(path: Path, data: bytes | memoryview) -> None:
        if re.search(file + "$", str(path)):
            error = OSError(errno.ENOSPC, "No space left on device")
            raise RunRecordError.of_os_error("write", path, error)
        write_atomic(path, data)

    expected = invoke(*SMALL, "--no-record").stdout
    monkeypatch.setattr("workbench.record.run_record.write_atomic", write)
    result = invoke(*SMALL, "--trace", "t.json")
    assert (result.exit_code, result.stdout) == (1, expected)
    assert result.stderr.count("error: cannot write runs/quickstart-1/") == 1
    assert "no space left on device" in result.stderr
    assert "runs/quickstart-1 has failed" in result.stderr
    assert RunReader(Path("runs/quickstart-1")).status == "failed"
    assert not Path("t.json").exists()


@pytest.mark.parametrize(
    ("long_s", "build", "flags", "hinted"),
    [
        (0.0, None, [], True),
        (0.0, None, ["--quiet"], False),
        (0.0, Path("build"), [], False),
        (1e9, None, [], False),
    ],
)
def test_long_runs_in_python_recommend_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
    long_s: float,
    build: Path | None,
    flags: list[str],
    hinted: bool,
) -> None:
    """One line names `workbench native` after a long run, without a build and unless --quiet."""
    monkeypatch.setattr("workbench.cli.simulation.LONG_RUN_S", long_s)
    monkeypatch.setattr("engine.compiled.active_build", lambda: build)
    monkeypatch.setattr("engine.native.whole.damage_of", lambda core: "")
    assert ("`workbench native`" in invoke(*SMALL, *flags).stderr) == hinted


# Ctrl-C, streams, progress


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_keeps_the_partial_run(sent: signal.Signals, code: int) -> None:
    """Ctrl-C or SIGTERM ends a long run, prints what there is, and keeps a readable record."""
    command = [
        *WORKBENCH,
        "simulate",
        "quickstart",
        "--num-prompts",
        "500000",
        "--detail",
        "steps",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first_segment = Path("runs/quickstart-1/events/00000.npz")
    deadline = time.monotonic() + 120
    while not first_segment.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code
    assert stdout.startswith("STOPPED EARLY")
    assert "partial run is kept in runs/quickstart-1" in stderr
    run = RunReader(Path("runs/quickstart-1"))
    assert run.status == "interrupted"
    assert run.summary["unfinished"] > 0
    assert run.table("requests")["request_id"].size == 500_000


def test_emit_streams_the_run_on_stdout() -> None:
    """--emit - gives frames alone on stdout: the header first, the recorded summary last."""
    process = subprocess.run([*WORKBENCH, *SMALL, "--emit", "-"], capture_output=True, check=True)
    frames = list(read_frames(io.BytesIO(process.stdout)))
    assert isinstance(frames[0], HeaderFrame)
    assert isinstance(frames[-1], SummaryFrame)
    assert frames[-1].summary == RunReader(Path("runs/quickstart-1")).summary


def test_emit_into_a_closed_pipe_ends_the_run() -> None:
    """When the reader of the stream leaves, the run ends quietly with code 1."""
    process = subprocess.Popen(
        [*WORKBENCH, "simulate", "quickstart", "--emit", "-", "-q"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_that_vanishes() -> None:
    """Progress rewrites one line of a terminal and clears it; elsewhere it says nothing."""
    from simulator.world import Progress

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with ProgressLine(stream) as line:
            line.update(Progress(now_ns=2_500_000_000, sent=9, ended=5, total=20, steps=7))
    assert "5 of 20 requests (25%), 2.5 s simulated" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert pipe.getvalue() == ""


def test_progress_fits_a_narrow_terminal() -> None:
    """Of a line that wraps only the last row could be cleared, so it never wraps."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as stream:
        with ProgressLine(stream) as line:
            line.say("a line that is far too long for this terminal")
            line.say("a line that is fine")
        stream.write("\0")  # what is written arrives in pieces: this is the last
        stream.flush()
        shown = b""
        while not shown.endswith(b"\0"):
            shown += screen.read(1000)
    lines = shown[:-1].decode().replace("\x1b[K", "").split("\r")
    assert lines == ["", "a line that is far…", "a line that is fine", ""]


def test_fork_says_of_which_run_and_step() -> None:
    """The last line of a fork's result names run, step and change; --json stays the summary."""
    invoke(*SMALL)
    flags = ["simulate", "--fork", "quickstart-1@50", "--set", "scheduler.policy=lpm"]
    last = "Fork of quickstart-1 from step 50 of replica 0 on: scheduler.policy fcfs -> lpm"
    assert invoke(*flags).stdout.splitlines()[-1] == last
    assert json.loads(invoke(*flags, "--json").stdout)


def test_fork_of_a_replica_that_is_not_there_is_wrong_usage() -> None:
    """A replica beyond those of the run ends with code 2 and says how many there are."""
    invoke(*SMALL)
    result = invoke("simulate", "--fork", "quickstart-1@1:50")
    assert result.exit_code == 2
    assert "the run has 1 replica (0), not 1" in result.stderr
