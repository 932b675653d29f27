"""Puts libraries compiled from C++ and CUDA into the wheel, where they can be compiled.

`pip install '.[native]'` builds a wheel, and so does a plain `pip install .`: pip does not tell a
build which extras were asked for. With g++ (and nvcc, for the GPU's half) and, for the ops, a torch
that is installed already, the wheel brings the libraries, and is for one interpreter and one kind
of machine. What cannot be compiled is left out, and is compiled when it is first used, or runs as
Python. WORKBENCH_BUILD_NATIVE=0 makes a wheel of Python alone; with 1 a failure is an error.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHOICE = os.environ.get("WORKBENCH_BUILD_NATIVE", "")


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling finds it by its base class."""

    def dependencies(self) -> list[str]:
        """What pip installs for a build in isolation."""
        return ["ninja>=1.11", "pybind11>=3.0"] if _is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say where the wheel gets the libraries."""
        if not _is_wanted() or version == "editable":
            return
        sys.path.insert(0, self.root)
        from engine.native.build import EXTENSIONS, NativeUnavailableError, bundled, compile_into

        self._scratch = tempfile.TemporaryDirectory()
        for extension in EXTENSIONS:
            folder = Path(self._scratch.name) / extension.name
            folder.mkdir()
            try:
                library = compile_into(extension, folder)
            except NativeUnavailableError as error:
                if CHOICE == "1":
                    raise
                self.app.display_warning(f"{extension.name} is left out: {error}")
                continue
            place = bundled(extension).relative_to(self.root)
            build_data["force_include"][str(library)] = place.as_posix()
            build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        del version, build_data, artifact_path
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()


def _is_wanted() -> bool:
    if CHOICE:
        return CHOICE != "0"
    return sys.platform == "linux" and shutil.which("g++") is not None
