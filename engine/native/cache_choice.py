"""Which prefix cache a scheduler gets: its own, or the C++ one where that was measured faster.

Every driver asks here: `inject(scheduler, use)`, or `injector(use)` for many schedulers. Nothing is
ever compiled or measured for it; `workbench native` does both ahead, and writes the figures down.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from engine.compiled import ROOT, active_build, builds_dir
from engine.core.scheduler import Scheduler
from engine.native.build import PREFIX_CACHE, existing, key_of
from engine.native.prefix_cache import native_cache
from engine.native.whole import MENDS, is_whole

# Texts of real ids beside a device; or made-up ones, where the cache is a small part of the work.
Use = Literal["engine", "simulation"]
_WORDS: Final[dict[Use, str]] = {"engine": "the engine", "simulation": "simulations"}

_LEAST_GAIN: Final = 0.15  # on a busy machine one cache has been measured 14 % apart
_HOW: Final = "`workbench native --extensions-only`"


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """What is used here.

    Attributes:
        native: whether it is the C++ cache.
        reason: a sentence on what is used and why, with the figures that were measured.
    """

    native: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CacheTimes:
    """CPU time per request that was measured on this machine; None: it was not.

    Attributes:
        native_us: with the C++ cache.
        python_us: with the core's own, as Python.
        compiled_us: with the core's own, compiled.
    """

    native_us: float | None = None
    python_us: float | None = None
    compiled_us: float | None = None


def choose(use: Use) -> CacheChoice:
    """The prefix cache of this process for a use; reads a few small files."""
    choice = _measured_choice(use)
    library = existing(PREFIX_CACHE)
    if choice.native and library is not None and not _is_sound(library):
        return CacheChoice(False, f"Python's: {library} is not whole; {MENDS}")
    return choice


def _is_sound(library: Path) -> bool:
    try:
        return is_whole(library)
    except OSError:
        return False


def _measured_choice(use: Use) -> CacheChoice:
    """As if what is built were whole."""
    times = measured_times(use)
    if active_build() is not None:
        return CacheChoice(False, f"the compiled core's own, which takes no other{_pair(times)}")
    if os.environ.get("WORKBENCH_NATIVE") == "0":
        return CacheChoice(False, "Python's, because of WORKBENCH_NATIVE=0")
    if existing(PREFIX_CACHE) is None:
        return CacheChoice(False, f"Python's: the C++ one is not built ({_HOW})")
    if times.native_us is None or times.python_us is None:
        return CacheChoice(False, f"Python's: the C++ one has not been measured ({_HOW})")
    figures = f"{times.native_us:.1f} us of CPU a request, {times.python_us:.1f} with Python's"
    gain = 1 - times.native_us / times.python_us
    if gain >= _LEAST_GAIN:
        return CacheChoice(True, f"the C++ one, measured faster here: {figures}")
    return CacheChoice(
        False,
        f"Python's: with the C++ one {figures}, which is not {_LEAST_GAIN:.0%} faster",
    )


def described_choices() -> Iterator[str]:
    """For each use what prefix cache it has here, and why: "of the engine: ..."."""
    for use, words in _WORDS.items():
        yield f"of {words}: {choose(use).reason}"


def _pair(times: CacheTimes) -> str:
    if times.native_us is None or times.compiled_us is None:
        return ""
    return f": {times.compiled_us:.1f} us of CPU a request, {times.native_us:.1f} with the C++ one"


def inject(scheduler: Scheduler, use: Use) -> bool:
    """Give a scheduler that has served nothing yet the cache that was measured fastest.

    Returns:
        whether that is the C++ one.

    Raises:
        ValueError: the scheduler has served already.
    """
    return injector(use)(scheduler)


def injector(use: Use) -> Callable[[Scheduler], bool]:
    """`inject` by one decision, for a driver of many schedulers."""
    if active_build() is None and _measured_choice(use).native:  # `put_native` warns
        return put_native
    return lambda _: False


def put_native(scheduler: Scheduler) -> bool:
    """Put the C++ cache into a scheduler that has served nothing yet; returns whether it is there.

    A scheduler keeps its own where it has none, where the core itself is machine code (which takes
    no other), and, with a warning, where the library cannot be loaded.

    Raises:
        NativeUnavailableError: it is not built, and cannot be; says why.
        ValueError: the scheduler has served already.
    """
    own = scheduler.kv.cache
    if own is None or active_build() is not None:
        return False
    if own.lookups or next(iter(own.nodes()), None) is not None:
        raise ValueError("the cache of a scheduler can be changed only before it serves")
    listener = own._listener  # noqa: SLF001 - who listens to it listens to the other instead
    config = scheduler.config
    try:
        scheduler.kv.cache = native_cache(config.page_size, config.eviction, listener)
    except ImportError as error:
        warnings.warn(f"the prefix cache in C++ is left out: {error}", stacklevel=2)
        return False
    return True


def speed_file() -> Path:
    """Where it is written down how fast the caches of these very sources are on this machine."""
    own = hashlib.sha256()
    for source in sorted((ROOT / "engine" / "core").glob("radix_*.py")):
        own.update(source.read_bytes())
    name = f"{PREFIX_CACHE.name}-{key_of(PREFIX_CACHE)}-{own.hexdigest()[:12]}"
    return builds_dir() / f"{name}-speed.json"


def figures_with(use: Use, native_us: float, own_us: float) -> dict[str, dict[str, float]]:
    """What to write into `speed_file`: what it says already, and what was measured just now.

    Args:
        use: what for.
        native_us: CPU time per request with the C++ cache.
        own_us: with the core's own, as it runs in this process: as Python, or compiled.
    """
    own = "python_us" if active_build() is None else "compiled_us"
    written = _written()
    kept: dict[str, dict[str, float]] = {name: _figures(written, name) for name in get_args(Use)}
    kept[use] |= {"native_us": native_us, own: own_us}
    return kept


def measured_times(use: Use) -> CacheTimes:
    """What was measured for a use on this machine, with these very sources."""
    return CacheTimes(**_figures(_written(), use))


def _written() -> dict[str, Any]:
    try:
        found = json.loads(speed_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _figures(written: dict[str, Any], use: str) -> dict[str, float]:
    """The figures of a use; a file that was damaged has none, and is written anew some day."""
    found = written.get(use)
    if not isinstance(found, dict):
        return {}
    return {
        name: float(found[name])
        for name in CacheTimes.__slots__
        if isinstance(found.get(name), int | float)
        and math.isfinite(found[name])
        and found[name] > 0
    }
