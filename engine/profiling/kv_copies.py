"""Copies of KV pages: to other pages of the GPU, to pinned memory of the host, and back.

No step of the engine copies pages; whoever moves them (to make room, to another GPU's host) would
gather those of a layer, which lie anywhere, and send them in one piece. That is what is measured:
keys and values of one layer, each with one gather or scatter and, to and from the host, one copy.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.profiling.kernel_cases import KernelCase
from engine.profiling.kernel_work import Work

_SEED = 1


class KVCopies:
    """Makes copies of pages ready to run.

    Args:
        layers: (keys, values) of each layer, flat.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._layers = layers
        self._host: torch.Tensor | None = None

    def work(self, case: KernelCase) -> Work:
        """A copy of so many pages of one layer."""
        (page_bytes,), (pages,) = case.sizes, case.point
        keys = self._layers[0][0]
        elements = page_bytes // 2 // keys.element_size()  # of a page's keys
        held = len(keys) // elements
        order = torch.from_numpy(np.random.default_rng(_SEED).permutation(held)).to(keys.device)
        parts = [
            (keys[: held * elements].view(held, elements),
             values[: held * elements].view(held, elements))
            for keys, values in self._layers
        ]  # fmt: skip
        staged = torch.empty(2, pages, elements, dtype=keys.dtype, device=keys.device)
        host = self._pinned(staged)
        # Others each time, as far as there are any.
        rounds = max(1, min(64, held // (2 * pages)))

        def places(time: int) -> tuple[torch.Tensor, torch.Tensor]:
            first = time % rounds * 2 * pages
            return order[first : first + pages], order[first + pages : first + 2 * pages]

        def within(time: int) -> None:
            source, target = places(time)
            for part, stage in zip(parts[time % len(parts)], staged, strict=True):
                torch.index_select(part, 0, source, out=stage)
                part.index_copy_(0, target, stage)

        def to_host(time: int) -> None:
            source, _ = places(time)
            for part, stage in zip(parts[time % len(parts)], staged, strict=True):
                torch.index_select(part, 0, source, out=stage)
            host.copy_(staged, non_blocking=True)

        def from_host(time: int) -> None:
            _, target = places(time)
            staged.copy_(host, non_blocking=True)
            for part, stage in zip(parts[time % len(parts)], staged, strict=True):
                part.index_copy_(0, target, stage)

        launch = {"kv_copy": within, "kv_to_host": to_host, "kv_from_host": from_host}[case.op]
        copied = page_bytes * pages
        # The host's side is about a sixtieth as fast as the GPU's memory.
        return Work(launch, read_bytes=0, moved_bytes=copied * (4 if case.op == "kv_copy" else 60))

    def _pinned(self, staged: torch.Tensor) -> torch.Tensor:
        """Memory of the host as large as `staged`, which the GPU can reach."""
        size = staged.numel()
        if self._host is None or len(self._host) < size:
            self._host = torch.empty(
                size, dtype=staged.dtype, pin_memory=staged.device.type == "cuda"
            )
        return self._host[:size].view(staged.shape)
