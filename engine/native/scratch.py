"""Who builds what: locks, and folders beside the builds in which something is being built."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_PREFIX = ".new-"  # of their names
_FRESH_S = 600.0  # so long one counts as in use, whoever made it


@contextmanager
def alone(place: Path, *, wait: bool = True) -> Iterator[bool]:
    """One process at a time, for a folder or for a file that is made for it.

    Yields:
        whether this is the one; only without waiting it may not be.
    """
    flags = os.O_RDONLY if place.is_dir() else os.O_WRONLY | os.O_CREAT
    held = os.open(place, flags, 0o666)
    try:
        yield _locked(held, wait=wait)
    finally:
        os.close(held)


def _locked(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_of(build: Path) -> Path:
    """What is locked to make or delete a build: a file per extension, else the folder of builds."""
    name = build.name.rpartition("-")[0]
    return build.with_name(f".{name}.lock") if name else build.parent


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


def sweep(root: Path) -> list[str]:
    """Delete the folders that were left behind; returns a line on each that stays, with why."""
    kept = []
    for scratch in sorted(root.glob(f"{SCRATCH_PREFIX}*")):
        why = _why_in_use(scratch)
        if not why:
            shutil.rmtree(scratch, ignore_errors=True)
            why = "it cannot be deleted"
        if scratch.is_dir():
            kept.append(f"{scratch} is left alone: {why}")
    return kept


def _why_in_use(scratch: Path) -> str:
    """Why somebody may build in a folder; "" if its process has ended and did not delete it."""
    try:
        held = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"
    try:
        if not _locked(held, wait=False):
            return "a process builds in it"
        young = time.time() - os.fstat(held).st_mtime < _FRESH_S  # it may not be held yet
    finally:
        os.close(held)
    return f"a process may build in it until it is {_FRESH_S / 60:.0f} minutes old" if young else ""
