"""How long an op takes: on a GPU many launches in one CUDA Graph, as in a step.

One launch comes after the other: what is measured contains the gap between kernels, and the start
that a kernel gets while the one before it still runs. The graph is replayed a few times; the time
of each replay, divided by its launches, is one time.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Final

import torch

from engine.profiling.kernel_work import Work
from engine.runtime.graph_capture import GraphSpace

_REPLAYS: Final = 5
_FEWEST_LAUNCHES, _MOST_LAUNCHES = 2, 128
_COLD_BYTES: Final = 128 << 20  # of a replay: more than twice the L2 cache of an H200
_LEAST_SECONDS: Final = 6e-4  # of a replay, as far as launches allow
_SHORTEST_SECONDS: Final = 2e-6  # of a kernel in a graph, about
_BYTES, _FLOPS = 4e12, 6e14  # of a second, about


class LaunchTimer:
    """Times launches on a CPU, one by one."""

    def times(self, work: Work) -> list[float]:
        """ns of each of some launches; the first, which may allocate, is not among them."""
        work.launch(0)
        marks = [time.perf_counter_ns()]
        for launch in range(_REPLAYS):
            work.launch(1 + launch)
            marks.append(time.perf_counter_ns())
        return [float(end - begin) for begin, end in pairwise(marks)]


class GraphTimer:
    """Times launches on a GPU, many in one graph.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._space = GraphSpace(device)
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
