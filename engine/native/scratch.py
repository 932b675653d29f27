"""Folders beside the builds in which something is being built."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_PREFIX = ".new-"  # of their names
_FRESH_S = 600.0  # so long one counts as in use, whoever made it


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A folder to build in, which others can tell from one that was left behind."""
    with tempfile.TemporaryDirectory(dir=root, prefix=SCRATCH_PREFIX) as name:
        held = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(held)


def is_left_behind(scratch: Path) -> bool:
    """Whether the process that built in a folder has ended and did not delete it."""
    try:
        if time.time() - scratch.stat().st_mtime < _FRESH_S:  # it may not be held yet
            return False
        held = os.open(scratch, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(held)
    return True
