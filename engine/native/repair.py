"""Finds libraries that were built and do not load any more, and builds them again.

Such a one was cut off by a full disk, or comes from a machine with other libraries. Each is tried
in an interpreter of its own: one that was cut off can take down the process that loads it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.native.build import (
    OPS_CUDA,
    Extension,
    NativeUnavailableError,
    Sighting,
    build_again,
    existing,
)
from engine.native.whole import is_whole

_PYTHON = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
loader = ExtensionFileLoader(*sys.argv[1:])
loader.exec_module(module_from_spec(spec_from_file_location(*sys.argv[1:], loader=loader)))
"""
_TORCH = "import sys, torch; torch.ops.load_library(sys.argv[2])"
_TORCH_ON_GPU = f"import torch\nif torch.cuda.is_available():\n    {_TORCH}"


def repair(extension: Extension) -> Iterator[str]:
    """Build a library again that has been built and does not load; yields a line before it does.

    Raises:
        NativeUnavailableError: it cannot be built; names the file to delete.
    """
    found = existing(extension)
    if found is None:
        return
    seen = Sighting.of(found)
    if not (why := why_not(extension, found)):
        return
    yield f"{found} does not load ({why}): building it again"
    try:
        again = build_again(extension, seen)
    except (NativeUnavailableError, OSError) as error:
        raise NativeUnavailableError(
            f"{found} does not load and is not replaced; delete it. {error}"
        ) from error
    if why := why_not(extension, again):
        raise NativeUnavailableError(f"{again} does not load, built anew: {why}; delete it")


def why_not(extension: Extension, library: Path) -> str:
    """Why a library does not load here; "" if it does. Without a GPU its ops are not tried."""
    if not is_whole(library):
        return "it is not whole" if library.stat().st_size else "it is empty"
    code = _PYTHON if extension.binds_python else _TORCH
    if extension is OPS_CUDA:
        code = _TORCH_ON_GPU
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code, extension.name, str(library)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.returncode:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"the interpreter ended with {done.returncode}"
