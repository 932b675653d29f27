"""What the interpreter's lock costs native code that keeps it, as a measurement.

The work is `hash_pages` in C++, on arrays of its own for each thread. It is timed with the lock
released during the work and with the lock kept, on one thread and on several; beside it, a thread
that wants to wake up every millisecond tells how late it does.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass

import numpy as np

from engine.native.prefix_cache import hash_pages

PAGE_SIZE = 16
CALL_S = 0.02  # of one call, about
SECONDS = 0.6  # of each measurement, on one thread
BEAT_S = 0.001


@dataclass(frozen=True, slots=True)
class Scaling:
    """Calls of some threads at once.

    Attributes:
        threads: how many.
        released: whether the lock was released during the work.
        calls_per_s: of all threads together.
        speedup: over one thread that releases it.
        late_median_ms, late_most_ms: of the thread that wakes up every millisecond.
    """

    threads: int
    released: bool
    calls_per_s: float
    speedup: float
    late_median_ms: float
    late_most_ms: float


@dataclass(frozen=True, slots=True)
class GilMeasurement:
    """All of them.

    Attributes:
        cores: that this process may use.
        call_ms: of one call, alone.
        scaling: with the lock released, then kept.
    """

    cores: int
    call_ms: float
    scaling: tuple[Scaling, ...]


def measure_gil() -> GilMeasurement:
    """Time it on 1, 2, 4 and 8 threads, as far as there are cores; some seconds.

    Raises:
        NativeUnavailableError: the extension cannot be built here; says why.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    counts = [count for count in (1, 2, 4, 8) if count <= cores]
    tokens, call_s = _tokens_of_a_call()
    arrays = [_ids(tokens, seed) for seed in range(counts[-1])]
    calls = max(3, round(SECONDS / call_s))
    rows: list[Scaling] = []
    for released in (True, False):
        for count in counts:
            wall_s, late_ms = _run(arrays[:count], calls, released)
            rate = count * calls / wall_s
            alone = rows[0].calls_per_s if rows else rate
            rows.append(Scaling(
                count, released, rate, rate / alone, statistics.median(late_ms), max(late_ms)
            ))  # fmt: skip
    return GilMeasurement(cores, 1e3 * call_s, tuple(rows))


def _ids(tokens: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(0, 128_000, tokens, dtype=np.int32)


def _tokens_of_a_call() -> tuple[int, float]:
    """How many tokens take `CALL_S`, and how long they do take."""
    some = 1 << 20
    tokens = int(some * CALL_S / _seconds_of_a_call(some))
    return tokens, _seconds_of_a_call(tokens)


def _seconds_of_a_call(tokens: int) -> float:
    ids, best = _ids(tokens, 0), float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        hash_pages(ids, PAGE_SIZE)
        best = min(best, time.perf_counter() - begin)
    return best


def _run(
    arrays: list[np.ndarray[tuple[int], np.dtype[np.int32]]], calls: int, released: bool
) -> tuple[float, list[float]]:
    """(wall seconds of all threads' calls, how late the beating thread was each time in ms)."""
    ready = threading.Barrier(len(arrays) + 1)
    done = threading.Event()
    late_ms: list[float] = []

    def work(ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        ready.wait()
        for _ in range(calls):
            hash_pages(ids, PAGE_SIZE, release_gil=released)

    def beat() -> None:
        while not done.is_set():
            begin = time.perf_counter()
            time.sleep(BEAT_S)
            late_ms.append(1e3 * (time.perf_counter() - begin - BEAT_S))

    workers = [threading.Thread(target=work, args=(ids,)) for ids in arrays]
    heart = threading.Thread(target=beat)
    for thread in workers:
        thread.start()
    heart.start()
    ready.wait()
    begin = time.perf_counter()
    for thread in workers:
        thread.join()
    wall_s = time.perf_counter() - begin
    done.set()
    heart.join()
    return wall_s, late_ms or [0.0]
