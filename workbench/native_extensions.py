"""Builds what `engine.native` holds, ahead of its first use, and measures what is to be chosen."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from engine.compiled import active_build
from engine.core.scheduler import Scheduler
from engine.native.build import EXTENSIONS, PREFIX_CACHE, Extension, NativeUnavailableError, build
from engine.native.cache_choice import (
    Use,
    described_choices,
    figures_with,
    put_native,
    speed_file,
)
from engine.native.cache_speed import measure_cache_speed
from engine.native.repair import repair
from workbench.record.atomic_file import write_atomic
from workbench.running.simulate import prepare
from workbench.scenario.source import load_scenario

_SIMULATED: Final = "prefix_cache_chat"
_ROUNDS: Final = 5


def build_extensions(*, required: bool) -> Iterator[str]:
    """Build all that can be built here, again what does not load; yields a line on each.

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
            yield from repair(extension)
            yield f"built {build(extension)}"
        except NativeUnavailableError as error:
            if required or "did not compile" in str(error):
                raise
            yield f"{extension.name}: left out, {error}"
            continue
        if extension is PREFIX_CACHE:
            _measure()
            yield from (f"prefix cache {line}" for line in described_choices())


def _not_for_here(extension: Extension) -> str:
    """What is missing without which the extension is of no use, or nothing."""
    if "torch" in extension.needs and importlib.util.find_spec("torch") is None:
        return "torch"
    if extension.compiler == "nvcc" and shutil.which("nvcc") is None:
        return "nvcc"
    return ""


def _measure() -> None:
    """Write down how fast both prefix caches are here."""
    speed = measure_cache_speed()
    if not speed.equal:
        raise NativeUnavailableError("the prefix cache in C++ gives other answers than Python's")
    _write("engine", speed.native_us, speed.python_us)
    if active_build() is None:  # else a scheduler takes no other cache
        _write("simulation", *_simulated())


def _write(use: Use, native_us: float, own_us: float) -> None:
    write_atomic(speed_file(), msgspec.json.encode(figures_with(use, native_us, own_us)))


def _simulated() -> tuple[float, float]:
    """CPU time of a simulation per request, us: with the C++ cache, and with Python's."""
    simulation = prepare(load_scenario(_SIMULATED), "steps")

    def cpu_us(equip: Callable[[Scheduler], object]) -> float:
        begin = time.process_time()
        simulation.run(equip=equip)
        return 1e6 * (time.process_time() - begin) / len(simulation.workload)

    rounds = [(cpu_us(put_native), cpu_us(lambda _: None)) for _ in range(_ROUNDS)]
    return min(first for first, _ in rounds), min(second for _, second in rounds)
