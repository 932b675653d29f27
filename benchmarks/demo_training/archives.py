"""Reads files out of wheels and Debian packages, without unpacking them to disk."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_BYTES: Final = 60


def files_in(archive: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file with one of `suffixes`, sorted by path."""
    read = _in_wheel if archive.suffix == ".whl" else _in_debian_package
    yield from sorted(read(archive, suffixes))


def _in_wheel(archive: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if name.endswith(suffixes):
                yield name, wheel.read(name)


def _in_debian_package(archive: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    data = lzma.decompress(_member(archive.read_bytes(), "data.tar.xz"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            if entry.isreg() and entry.name.endswith(suffixes):
                stream = tar.extractfile(entry)
                if stream is not None:
                    yield entry.name.removeprefix("./"), stream.read()


def _member(ar: bytes, wanted: str) -> bytes:
    """One member of an `ar` archive (deb(5)); raises ValueError if it is not there."""
    if not ar.startswith(_AR_MAGIC):
        raise ValueError("no Debian package")
    at = len(_AR_MAGIC)
    while at < len(ar):
        header = ar[at : at + _AR_HEADER_BYTES]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        at += _AR_HEADER_BYTES
        if name == wanted:
            return ar[at : at + size]
        at += size + size % 2
    raise ValueError(f"no {wanted} in the Debian package")
