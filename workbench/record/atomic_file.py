"""Files that are never half there: written under another name, or a whole line at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from workbench.record.errors import RunRecordError


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that takes the name `path` only when the block ends without an error.

    Raises:
        RunRecordError: the disk is full, the directory is not writable, and the like. Nothing of
            what was written is left behind, and a file that stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)  # noqa: PTH105 - Path.replace in every word but a new object
    except OSError as error:
        _forget(temporary)
        raise RunRecordError.of_os_error("write", path, error) from error
    except BaseException:
        _forget(temporary)
        raise


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file, or leave none; errors as in `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def read_whole_lines(path: Path) -> list[str]:
    """The lines of a file that others appended to until they were stopped; none if there is none.

    A last line that was cut short is taken away from the file, too, so that appending can go on; a
    file without any whole line is deleted.

    Raises:
        UnicodeDecodeError: it is no text.
    """
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if not whole:
        path.unlink()
        return []
    lines = whole.decode().splitlines()
    if torn:
        write_atomic(path, whole + b"\n")
    return lines


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
