"""Bytes of files that hold measurements: profiles, kernel tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.core.bounded_file import read_bounded
from simulator.profile import ProfileError


def read_measured_bytes(path: Path) -> bytes:
    """What is in a file.

    Raises:
        ProfileError: it cannot be read, or is too large; names it.
    """
    try:
        return read_bounded(path)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from None


def encode_checked(value: msgspec.Struct, check: Callable[[bytes], object]) -> bytes:
    """JSON, indented, that `check` could read again.

    Raises:
        ProfileError: as `check`.
    """
    data = msgspec.json.encode(value)
    check(data)
    return msgspec.json.format(data, indent=1) + b"\n"
