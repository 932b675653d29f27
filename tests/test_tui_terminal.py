"""`workbench tui` in a real terminal, driven by tmux: it draws, runs, survives a resize, leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded_runs import recorded

from workbench.run_record import RunReader

TMUX = shutil.which("tmux")
pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
ROOT = Path(__file__).parent.parent
WAIT_S = 60.0


class Terminal:
    """A tmux server of its own with one shell in it."""

    def __init__(self, folder: Path, width: int = 120, height: int = 36) -> None:
        self._socket = f"workbench-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        environment = {
            **os.environ,
            "TERM": "xterm-256color", "COLORTERM": "truecolor",
            "WORKBENCH_TUI_STATE": str(folder / "state.json"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # the terminal's own size counts
            environment.pop(name, None)
        size = ("-x", str(width), "-y", str(height))
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "t", *size, "/bin/sh",
                   cwd=folder, env=environment)  # fmt: skip

    def _tmux(self, *arguments: str, **options: object) -> str:
        assert TMUX is not None
        done = subprocess.run(
            [TMUX, "-L", self._socket, *arguments],
            capture_output=True, text=True, check=True, **options,  # type: ignore[call-overload]
        )  # fmt: skip
        return str(done.stdout)

    def command(self, *arguments: str) -> None:
        """Type a `workbench` command and Enter."""
        self.keys(f"{sys.executable} -m workbench {' '.join(arguments)}", "Enter")

    def keys(self, *keys: str) -> None:
        """Press keys, in tmux's names."""
        self._tmux("send-keys", "-t", "t", *keys)

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size."""
        self._tmux("resize-window", "-t", "t", "-x", str(width), "-y", str(height))

    def text(self) -> str:
        """What the terminal shows."""
        return self._tmux("capture-pane", "-p", "-t", "t")

    def until(self, *texts: str) -> str:
        """What it shows once all the texts are in it."""
        end = time.monotonic() + WAIT_S
        while True:
            shown = self.text()
            if all(text in shown for text in texts):
                return shown
            assert time.monotonic() < end, f"no {texts} in:\n{shown}"
            time.sleep(0.05)

    def close(self) -> None:
        """End the server and all that runs in it."""
        self._tmux("kill-server")


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
