"""Measures what single kernels take: tables from which models that never ran are composed.

A case is launched many times in one CUDA Graph, as in a step, one launch after the other: what is
measured contains the gap between kernels, and the start that a kernel gets while the one before it
still runs. The graph is replayed a few times; the time of each replay, divided by its launches, is
one time.

Cases come in no order, so that products of many rows, which heat the GPU, lie among those of few,
which let it cool: most of the time it reads memory or captures graphs. A device without graphs
launches one by one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch

from engine.kernels.launching import compile_only
from engine.profiling.kernel_bench import KernelBench, Work
from engine.profiling.kernel_cases import KernelCase
from engine.runtime.graph_capture import GraphSpace

PASSES: Final = 2
_REPLAYS: Final = 5
_FEWEST_LAUNCHES, _MOST_LAUNCHES = 2, 128
_COLD_BYTES: Final = 128 << 20  # of a replay: more than twice the L2 cache of an H200
_LEAST_SECONDS: Final = 6e-4  # of a replay, as far as launches allow
_SHORTEST_SECONDS: Final = 2e-6  # of a kernel in a graph, about
_BYTES, _FLOPS = 4e12, 6e14  # of a second, about
_COMPILED_ROWS: Final = 512  # products of more rows are a library's
_PRODUCTS: Final = ("norm_linear", "residual_linear", "norm_gated_linear", "lm_head", "linear")


@dataclass(slots=True)
class KernelTimes:
    """Times in ns of one launch; what is here need not be measured again.

    Attributes:
        times: case -> one time a replay.
        passes: case -> how often it was measured.
    """

    times: dict[KernelCase, list[float]] = field(default_factory=dict)
    passes: dict[KernelCase, int] = field(default_factory=dict)

    def add(self, case: KernelCase, times: Iterable[float]) -> None:
        """One more pass over a case."""
        self.times.setdefault(case, []).extend(times)
        self.passes[case] = self.passes.get(case, 0) + 1


def compile_kernels(bench: KernelBench, cases: Sequence[KernelCase]) -> None:
    """Compile what the cases need side by side; on a CPU there is nothing to compile."""
    if bench.device.type != "cuda":
        return
    with torch.inference_mode(), compile_only(bench.device):
        for case in cases:
            if case.op not in _PRODUCTS or case.point[0] <= _COMPILED_ROWS:
                bench.work(case).launch(0)


def measure_kernels(
    bench: KernelBench,
    cases: Sequence[KernelCase],
    done: KernelTimes,
    *,
    deadline_s: float,
    measured: Callable[[KernelCase, list[float], float], object],
) -> bool:
    """Measure all cases in several passes, as far as time allows.

    Args:
        bench: makes their operands.
        cases: what to measure.
        done: what there is already; grows.
        deadline_s: on `time.monotonic`.
        measured: told (case, times in ns, share of all passes that are done) after each.

    Returns:
        Whether all passes were made.
    """
    timer = _GraphTimer(bench.device) if bench.device.type == "cuda" else _LaunchTimer()
    order, total, at = list(cases), PASSES * len(cases), 0
    shuffle = random.Random(1)  # noqa: S311 - an order, no secret
    for number in range(PASSES):
        shuffle.shuffle(order)
        for case in order:
            at += 1
            if done.passes.get(case, 0) > number:
                continue
            if time.monotonic() >= deadline_s:
                return False
            with torch.inference_mode():
                times = timer.times(bench.work(case))
            done.add(case, times)
            measured(case, times, at / total)
    return True


class _LaunchTimer:
    """Times launches on a CPU, one by one."""

    def times(self, work: Work) -> list[float]:
        """ns of each of some launches; the first, which may allocate, is not among them."""
        work.launch(0)
        marks = [time.perf_counter_ns()]
        for launch in range(_REPLAYS):
            work.launch(1 + launch)
            marks.append(time.perf_counter_ns())
        return [float(end - begin) for begin, end in pairwise(marks)]


class _GraphTimer:
    """Times launches on a GPU, many in one graph."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._space = device, GraphSpace(device)
        # A graph that stays holds the memory that all share.
        self._kept = self._space.capture(lambda: torch.zeros(1, device=device))

    def times(self, work: Work) -> list[float]:
        """ns of a launch, of each replay but the first."""
        self._space.rehearse(lambda: work.launch(0))
        count = _launches(work)
        graph, _ = self._space.capture(lambda: _launch_all(work, count))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(_REPLAYS + 1)]
        graph.replay()
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        marks[-1].synchronize()
        return [1e6 * begin.elapsed_time(end) / count for begin, end in pairwise(marks)]


def _launches(work: Work) -> int:
    """How many of them make a replay long and its data cold."""
    moved = work.read_bytes + work.moved_bytes
    seconds = max(_SHORTEST_SECONDS, moved / _BYTES, work.flops / _FLOPS)
    wanted = _LEAST_SECONDS / seconds
    if work.read_bytes:
        wanted = max(wanted, _COLD_BYTES / work.read_bytes)
    return max(_FEWEST_LAUNCHES, min(_MOST_LAUNCHES, round(wanted)))


def _launch_all(work: Work, count: int) -> None:
    for launch in range(count):
        work.launch(launch)
