"""The folder that results go to, made before anything that takes time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from workbench.record.errors import RunRecordError


def make_folder(path: Path) -> None:
    """Make a directory, with those above it, if it is not there.

    Raises:
        RunRecordError: it cannot be made, or is no directory, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        action = "write to" if path.is_dir() else "create"
        raise RunRecordError.of_os_error(action, path, error) from error
