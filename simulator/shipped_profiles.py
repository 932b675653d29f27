"""Profiles that come with the program, in `simulator/profiles/<gpu>-<model>-<config>.json`."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from simulator.composition.kernel_file import PREFIX, KernelIdentity
from simulator.measured_file import read_measured_bytes
from simulator.profile import Identity, ProfileError

FOLDER = Path(__file__).with_name("profiles")  # tests put another one in its place


class _Head(msgspec.Struct):
    """The part of a profile that says what was measured."""

    identity: Identity


class _KernelHead(msgspec.Struct):
    """The part of kernel tables that says what was measured."""

    identity: KernelIdentity


_AnyHead = TypeVar("_AnyHead", _Head, _KernelHead)


def words(text: str) -> frozenset[str]:
    """The words of a name in lower case, as "nvidia" and "h200" of "NVIDIA H200".

    Neighbours also stand together, as "rtx4090" of "GeForce RTX 4090".
    """
    found = re.findall(r"[a-z0-9]+", text.casefold())
    return frozenset(found) | {one + other for one, other in pairwise(found)}


def shipped_profiles(*wanted_words: str) -> list[Path]:
    """Profiles whose file names hold all of these words, by name; no file is opened."""
    wanted = {part.casefold() for part in wanted_words}
    files = (path for path in FOLDER.glob("*.json") if not path.stem.startswith(PREFIX))
    return sorted(path for path in files if wanted <= words(path.stem))


def shipped_kernels() -> list[Path]:
    """Files of kernel tables, by name; none is opened."""
    return sorted(FOLDER.glob(f"{PREFIX}*.json"))


def read_identity(path: Path) -> Identity:
    """What the profile in a file was measured of; the rest is not checked, which takes longer.

    Raises:
        ProfileError: it cannot be read, or says no such thing.
    """
    return _read_head(path, _Head).identity


def read_kernel_identity(path: Path) -> KernelIdentity:
    """What the kernel tables in a file were measured of; the rest is not checked.

    Raises:
        ProfileError: it cannot be read, or says no such thing.
    """
    return _read_head(path, _KernelHead).identity


def _read_head(path: Path, head: type[_AnyHead]) -> _AnyHead:
    try:
        return msgspec.json.decode(read_measured_bytes(path), type=head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is not a profile: {error}") from None
