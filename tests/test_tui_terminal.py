"""`workbench tui` in a real terminal, driven by tmux: it draws, runs, survives a resize, leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded_runs import recorded
from tmux_terminal import TMUX, Terminal

from workbench.record.run_record import RunReader

pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal in an empty folder."""
    terminal = Terminal(tmp_path)
    terminal.keys("PS1='rea''dy$ '; clear", "Enter")
    terminal.until("ready$")
    yield terminal
    terminal.close()


def test_browse_run_resize_and_quit(terminal: Terminal, tmp_path: Path) -> None:
    """Starts on the list, runs a scenario, shows it at two sizes, and leaves a clean terminal."""
    terminal.command("tui; echo code $?; stty -a")
    shown = terminal.until("quickstart", "ready to run", "$ workbench simulate quickstart")
    assert shown.count("\n") == 36
    terminal.keys("s")
    terminal.until("SIM", "KV state", "latency", "TTFT", "prefix cache")
    terminal.keys("Space")
    terminal.until("||")
    terminal.resize(80, 24)
    shown = terminal.until("SIM", "KV state", "latency", "Play")
    assert max(map(len, shown.splitlines())) <= 80
    terminal.resize(200, 60)
    terminal.until("prefix cache", "events")
    terminal.keys("4")
    terminal.until("requests", "TTFT", "100 %")
    terminal.resize(120, 36)  # tmux restores a screen of its first size, whichever program ends
    terminal.until("requests", "TTFT", "100 %")
    terminal.keys("q")
    shown = terminal.until("code 0", " echo ")
    assert "TTFT" not in shown
    assert RunReader(tmp_path / "runs" / "quickstart-1").status in ("complete", "interrupted")


def test_a_recorded_run_in_ascii(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`workbench tui RUN --ascii` sends ASCII alone."""
    monkeypatch.chdir(tmp_path)
    recorded("workload.num_requests=100", "load.warmup_requests=0", detail="pages")
    terminal.command("tui", "runs/run-1", "--ascii", "--slow-link")
    shown = terminal.until("SIM", "KV state", "Play")
    assert shown.isascii()
    terminal.keys("q")
    terminal.until("ready$")


def test_a_wrong_name_is_an_error_before_anything_is_drawn(terminal: Terminal) -> None:
    """As with the other commands: a message and exit code 2."""
    terminal.command("tui", "quickstrat")
    terminal.until("did you mean `quickstart`?")
    terminal.keys("clear", "Enter")
    terminal.command("tui", "quickstrat; echo code $?")
    terminal.until("code 2")


def test_without_a_terminal_it_says_so(tmp_path: Path) -> None:
    """In a pipe it refuses, with what to use instead."""
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "tui"],
        cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
