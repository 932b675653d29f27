"""Captures work into CUDA Graphs that share memory.

`torch.cuda.graph` collects garbage, empties the allocator's cache and synchronises around every
capture, which is wise for one and slow for a thousand small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class GraphSpace:
    """One memory pool and one stream for all graphs of an engine.

    Its graphs are replayed one after the other, never side by side. Tensors that captured work
    makes live in the pool; those that are still referred to afterwards keep their place.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def rehearse(self, work: Callable[[], object]) -> None:
        """Run work that is to be captured: compiling and allocations of libraries cannot be."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # memory of work that failed half-way may be given to others, behind it
            current.wait_stream(self._stream)

    def capture(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """What `work` launches, as a graph, and what it returned."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads may use the device meanwhile: a watchdog, another engine.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        return graph, result
