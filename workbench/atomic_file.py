"""Files that are either whole or not there: written under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from workbench.run_errors import RunRecordError


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


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
