"""Builds what `engine.native` holds, ahead of its first use, and measures what is to be chosen."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import asdict

import msgspec

from engine.compiled import active_build
from engine.native.build import EXTENSIONS, PREFIX_CACHE, Extension, NativeUnavailableError, build
from engine.native.cache_speed import measure_cache_speed
from engine.native.prefix_cache import speed_file
from workbench.atomic_file import write_atomic


def build_extensions(*, required: bool) -> Iterator[str]:
    """Build all that can be built here; yields a line on each.

    Args:
        required: whether what lacks a tool is an error, or a line that says so.

    Raises:
        NativeUnavailableError: the compiler failed; or, if required, g++, ninja or pybind11 is
            missing. Without torch the ops are left out, without nvcc their GPU's half.
    """
    for extension in EXTENSIONS:
        if missing := _not_for_here(extension):
            yield f"{extension.name}: left out, {missing} is not installed"
            continue
        try:
            yield f"built {build(extension)}"
        except NativeUnavailableError as error:
            if required or "did not compile" in str(error):
                raise
            yield f"{extension.name}: left out, {error}"
            continue
        if extension is PREFIX_CACHE:
            yield _measured()


def _not_for_here(extension: Extension) -> str:
    """What is missing without which the extension is of no use, or nothing."""
    if "torch" in extension.needs and importlib.util.find_spec("torch") is None:
        return "torch"
    if extension.compiler == "nvcc" and shutil.which("nvcc") is None:
        return "nvcc"
    return ""


def _measured() -> str:
    """Write down which prefix cache is faster here, and say it."""
    speed = measure_cache_speed()
    if not speed.equal:
        raise NativeUnavailableError("the prefix cache in C++ gives other answers than Python's")
    figures = f"prefix cache: {speed.native_us:.1f} us of CPU a request in C++"
    if active_build() is not None:  # which takes no other cache
        return f"{figures}, {speed.python_us:.1f} in the compiled core, which keeps its own"
    write_atomic(speed_file(), msgspec.json.encode(asdict(speed)))
    used = "used" if speed.native_us < speed.python_us else "not used"
    return f"{figures}, {speed.python_us:.1f} in Python: {used} where the core runs as Python"
