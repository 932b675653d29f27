"""Puts compiled libraries into the wheel, if the environment says WORKBENCH_BUILD_NATIVE=1.

    WORKBENCH_BUILD_NATIVE=1 pip install --no-build-isolation '.[native]'

Such a wheel is for one interpreter and one kind of machine. The ops need torch's headers: without
`--no-build-isolation`, where pip hides an installed torch, only the prefix cache is compiled.
Unless the variable is set the wheel is Python alone; libraries are compiled when first used.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling finds it by its base class."""

    def dependencies(self) -> list[str]:
        """What pip installs for a build in isolation."""
        return ["ninja>=1.11", "pybind11>=3.0"] if self._is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say where the wheel gets the libraries."""
        if not self._is_wanted() or version == "editable":
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
                if "did not compile" in str(error):
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

    @staticmethod
    def _is_wanted() -> bool:
        return os.environ.get("WORKBENCH_BUILD_NATIVE") == "1"
