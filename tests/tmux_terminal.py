"""A real terminal for tests, which tmux draws: type commands and keys, and read what it shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

TMUX = shutil.which("tmux")
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
