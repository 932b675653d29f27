"""Machine code for the scheduler and the simulator, if `workbench native` has built it.

The same sources, compiled by mypyc, run two to three times as fast; nothing else changes, and
without a build everything runs as Python. A build is found by a hash of the sources and of the
interpreter, so one that is out of date is never used. `WORKBENCH_NATIVE=0` ignores builds.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

MODULES = (
    "engine.core.admission",
    "engine.core.decode_batch",
    "engine.core.fast_forward",
    "engine.core.handoff",
    "engine.core.kv_memory",
    "engine.core.memory_policy",
    "engine.core.page_pool",
    "engine.core.plan",
    "engine.core.planner",
    "engine.core.radix_cache",
    "engine.core.radix_node",
    "engine.core.radix_tree",
    "engine.core.request",
    "engine.core.request_book",
    "engine.core.results",
    "engine.core.scheduler",
    "engine.core.scheduler_state",
    "engine.core.transfers",
    "engine.core.waiting_queue",
    "simulator.behaviour",
    "simulator.calibrated",
    "simulator.client",
    "simulator.clock",
    "simulator.cost_model",
    "simulator.replica",
    "simulator.roofline",
    "simulator.router",
    "simulator.world",
)
PACKAGES = ("engine/core", "simulator")  # their sources decide whether a build is up to date
ROOT = Path(__file__).resolve().parent.parent  # holds the packages


def builds_dir() -> Path:
    """Where builds are kept: $WORKBENCH_NATIVE_DIR, or below the user's cache folder."""
    chosen = os.environ.get("WORKBENCH_NATIVE_DIR")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "llm-serving-workbench" / "native"


def source_files() -> list[str]:
    """Paths, relative to `ROOT`, of all sources that a build depends on."""
    return ["engine/__init__.py", "engine/compiled.py"] + [
        f"{package}/{file.name}"
        for package in PACKAGES
        for file in sorted((ROOT / package).glob("*.py"))
    ]


def build_key() -> str:
    """Names the one build that fits these sources and this interpreter."""
    digest = hashlib.sha256(f"{EXTENSION_SUFFIXES[0]} {sys.version}".encode())
    for path in source_files():
        digest.update(path.encode() + b"\0" + (ROOT / path).read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def active_build() -> Path | None:
    """Folder of the build in use, or None when the modules run as Python."""
    return next((f.folder for f in sys.meta_path if isinstance(f, NativeFinder)), None)


def activate() -> None:
    """Use the build that fits, if there is one. Called once, by `import engine`."""
    if os.environ.get("WORKBENCH_NATIVE") == "0" or not builds_dir().is_dir():
        return
    folder = builds_dir() / build_key()
    if folder.is_dir() and active_build() is None:
        sys.meta_path.insert(0, NativeFinder(folder))


class NativeFinder:
    """Imports the modules of one build from its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        suffix = EXTENSION_SUFFIXES[0]
        self._files = {file.name.removesuffix(suffix): file for file in folder.glob(f"*{suffix}")}

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module of the build lies; None for all others."""
        file = self._files.get(fullname)
        if file is None:
            return None
        loader = ExtensionFileLoader(fullname, str(file))
        return spec_from_file_location(fullname, file, loader=loader)
