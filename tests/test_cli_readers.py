"""`workbench explain`, `compare` and `report`: what reads a run, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from command_line import SMALL, invoke

from workbench.record.header import Status, encode_header
from workbench.record.run_record import RunReader


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty directory, where the runs go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_go_to_a_directory() -> None:
    """The name of a picture is not taken for one; what was meant is said."""
    invoke(*SMALL)
    result = invoke("report", "quickstart-1", "--out", "here.png")
    assert result.exit_code == 2
    assert "--out here.png is to be a directory; --format png draws no other" in result.stderr
    assert not Path("here.png").exists()


def test_explain_reads_the_run_by_path_and_by_name() -> None:
    """`explain` finds a run by its path and by its name under runs/."""
    invoke(*SMALL)
    by_path, by_name = invoke("explain", "runs/quickstart-1"), invoke("explain", "quickstart-1")
    assert by_path.exit_code == 0
    assert by_path.stdout == by_name.stdout
    assert "Why requests waited" in by_path.stdout


def test_explain_one_request_sums_to_its_latency() -> None:
    """The causes that `explain --request --json` gives sum to the TTFT and to the rest."""
    invoke(*SMALL)
    told = json.loads(invoke("explain", "quickstart-1", "--request", "17", "--json").stdout)
    assert sum(cause["ns"] for cause in told["ttft"]) == told["ttft_ns"]
    rest_ns = told["e2e_ns"] - told["ttft_ns"]
    assert sum(cause["ns"] for cause in told["after_first"]) == rest_ns


def test_a_request_is_named_as_it_is_printed() -> None:
    """`--request r17` is request 17, since every line that is printed calls it r17."""
    invoke(*SMALL)
    printed = invoke("explain", "quickstart-1", "--request", "r17")
    assert printed.stdout.startswith("request 17 ")
    assert printed.stdout == invoke("explain", "quickstart-1", "--request", "17").stdout


@pytest.mark.parametrize("text", ["x", "r", "-1", "1.5", "rr1", ""])
def test_what_names_no_request_is_wrong_usage(text: str) -> None:
    """With how a request is named."""
    result = invoke("explain", "nowhere", "--request", text)
    assert result.exit_code == 2
    assert "such as 17 or r17" in result.stderr


def test_a_run_that_is_not_there_leads_to_those_that_are() -> None:
    """To the name that was meant, to the newest, or to the command that records one."""
    assert "`workbench simulate quickstart`" in invoke("explain", "quickstart-1").stderr
    invoke(*SMALL)
    wrong = invoke("explain", "runs/quickstrat-1").stderr
    assert wrong == "error: there is no run runs/quickstrat-1: did you mean runs/quickstart-1?\n"
    assert invoke("report", "x").stderr.endswith("; the newest: runs/quickstart-1\n")


@pytest.mark.parametrize(
    "arguments", [["explain", "nowhere"], ["report", "nowhere"], ["compare", "nowhere", "nowhere"]]
)
def test_missing_run_is_a_failure(arguments: list[str]) -> None:
    """A run that is not there is a failure that names it."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert not result.stdout


def test_too_little_detail_says_which_would_do() -> None:
    """`explain` on a run without items says with which detail to record it."""
    invoke(*SMALL, "--detail", "none")
    result = invoke("explain", "quickstart-1")
    assert result.exit_code == 1
    assert "--detail items" in result.stderr


def test_compare_fails_over_a_regression_only() -> None:
    """`compare --fail-over` ends with 3 on a regression and with 0 on the same run again."""
    invoke(*SMALL)
    invoke(*SMALL)
    invoke(*SMALL, "--set", "hardware.gpu=l4")
    same = invoke("compare", "quickstart-1", "quickstart-2", "--fail-over", "5%")
    worse = invoke("compare", "quickstart-1", "quickstart-3", "--fail-over", "5%")
    assert (same.exit_code, worse.exit_code) == (0, 3)
    assert "worse" in worse.stdout


def test_compare_names_the_directories() -> None:
    """`compare` says which recorded runs it compares, also for two runs of one scenario."""
    invoke(*SMALL)
    invoke(*SMALL)
    lines = invoke("compare", "quickstart-1", "runs/quickstart-2").stdout.splitlines()
    assert lines[0] == "A  runs/quickstart-1 (quickstart, simulation)"
    assert lines[1] == "B  runs/quickstart-2 (quickstart, simulation)"


@pytest.mark.parametrize(
    ("status", "reason", "clause", "word"),
    [
        ("running", None, "the run is still running, or was killed;", "still running, or killed"),
        (
            "interrupted",
            "interrupted at 1.5 s of simulated time",
            "the run was interrupted at 1.5 s of simulated time;",
            "interrupted",
        ),
        ("failed", "the disk is full", "the run failed: the disk is full;", "failed"),
    ],
)
def test_readers_say_how_a_run_ended(
    status: Status, reason: str | None, clause: str, word: str
) -> None:
    """`explain` and `compare` say in a sentence that a run is killed, interrupted or failed."""
    invoke(*SMALL)
    header = Path("runs/quickstart-1/header.json")
    facts = RunReader(header.parent).header
    changed = msgspec.structs.replace(facts, status=status, status_reason=reason)
    header.write_bytes(encode_header(changed))
    explained = invoke("explain", "quickstart-1").stdout
    assert f"note: {clause}" in explained
    assert f"quickstart ({word}; step times" in explained
    assert f"simulation, {word})" in invoke("compare", "quickstart-1", "quickstart-1").stdout


def test_report_names_the_pictures_it_drew() -> None:
    """`report` writes what its stdout names, into the run or where --out says."""
    invoke(*SMALL)
    drawn = invoke("report", "quickstart-1", "--format", "png").stdout.split()
    elsewhere = invoke("report", "quickstart-1", "--format", "svg", "--out", "here").stdout.split()
    assert drawn == ["runs/quickstart-1/report.png"]
    assert elsewhere == ["here/report.svg"]
    assert all(Path(name).stat().st_size for name in [*drawn, *elsewhere])


def test_perfetto_trace_is_a_file() -> None:
    """`report --perfetto -` is wrong usage; no file of that name appears."""
    invoke(*SMALL)
    result = invoke("report", "quickstart-1", "--perfetto", "-")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--perfetto cannot go to stdout" in result.stderr
    assert not Path("-").exists()


def test_trace_is_the_same_from_both_commands() -> None:
    """`simulate --trace` and `report --perfetto` write the same trace of a run."""
    invoke(*SMALL, "--trace", "a.json")
    assert invoke("report", "quickstart-1", "--perfetto", "b.json").stdout == "b.json\n"
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert json.loads(Path("a.json").read_text())["traceEvents"]
