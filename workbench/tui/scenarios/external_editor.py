"""Editing a text in the editor that the user likes."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from textual.app import App


def edited(app: App[None], text: str) -> str | None:
    """The text after $VISUAL or $EDITOR had it; None if neither is set or it failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(text, encoding="utf-8")
        with app.suspend():
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)  # noqa: S603
        return path.read_text(encoding="utf-8") if done.returncode == 0 else None
