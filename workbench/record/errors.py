"""The one exception of everything that writes or reads a run record."""

from __future__ import annotations

import errno
from pathlib import Path

_FIXES = {
    errno.ENOSPC: "free some disk space, or write the run to another disk",
    errno.EDQUOT: "free some of your quota, or write the run to another disk",
    errno.EACCES: "choose a directory that you may write to",
    errno.EPERM: "choose a directory that you may write to",
    errno.EROFS: "choose a directory on a disk that is mounted writable",
    errno.ENOTDIR: "choose a path whose parents are directories, not files",
    errno.EISDIR: "choose a file name, not the name of a directory",
    errno.ENOENT: "create the directory first",
}


class RunRecordError(Exception):
    """A run record cannot be written or read. The message names the path and what to do."""

    @classmethod
    def of_os_error(cls, action: str, path: Path, error: OSError) -> RunRecordError:
        """`cannot <action> <path>: <why>; <fix>`."""
        why = (error.strerror or str(error)).lower()
        fix = _FIXES.get(error.errno or 0)
        return cls(f"cannot {action} {path}: {why}" + (f"; {fix}" if fix else ""))
