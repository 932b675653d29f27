"""Reads files that are small by nature, so that a wrong path costs an error and not the memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO, Final

MOST_JSON_BYTES: Final = 1 << 26  # the largest are indexes of checkpoints, some 10 MB


class FileTooLargeError(OSError):
    """A file is larger than any of its kind. `strerror` has its size and the limit."""

    def __init__(self, path: Path, size_bytes: int, most_bytes: int) -> None:
        has = f"{size_bytes:,}" if size_bytes else f"more than {most_bytes:,}"
        reason = f"it has {has} bytes, and a file of its kind at most {most_bytes:,}"
        super().__init__(errno.EFBIG, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def read_bounded(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """A whole file; of one that is too large nothing is read.

    Args:
        path: of the file.
        most_bytes: that a file of its kind may have.

    Raises:
        FileTooLargeError: it has more.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = _checked(path, file, most_bytes)
        if size:
            return file.read(size)
        content = file.read(most_bytes + 1)  # a pipe or a device, which has no size
    if len(content) > most_bytes:
        raise FileTooLargeError(path, 0, most_bytes)
    return content


def check_size(path: Path, most_bytes: int = MOST_JSON_BYTES) -> None:
    """For a file that a library reads; raises as `read_bounded`."""
    with path.open("rb") as file:
        _checked(path, file, most_bytes)


def _checked(path: Path, file: BinaryIO, most_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > most_bytes:
        raise FileTooLargeError(path, size, most_bytes)
    return size
