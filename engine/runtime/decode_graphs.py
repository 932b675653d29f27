"""CUDA Graphs of decode steps, one per bucket of the plan, captured once and replayed.

The largest is captured first, and all share one memory pool, so that together they need little more
than the largest. A graph holds the whole step: new pages into the page table, the model, and, where
all rows are greedy, the choice of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.sampling_batch import SampleResult
from engine.runtime.graph_capture import GraphSpace
from engine.runtime.transfers_to_device import pieces

_COLUMNS = 5  # token ids, positions, rows, places and pages of the page table


@dataclass(frozen=True, slots=True)
class DecodeColumns:
    """The inputs of a decode step of B rows, int32[B] each; see `engine.runtime.host_step`."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    new_at: torch.Tensor
    new_pages: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeOutputs:
    """What a decode step leaves: the greedy choice if it is part of the step, else logits [B, V].

    Not both: what is kept here stays allocated for each bucket, and logits are large. So they are
    in a buffer that all buckets share, good until the next step.
    """

    logits: torch.Tensor | None
    sampled: SampleResult | None


@dataclass(frozen=True, slots=True)
class CapturedDecode:
    """A captured step: write the inputs, replay, read the outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    columns: DecodeColumns
    outputs: DecodeOutputs


class DecodeGraphs:
    """Captures decode steps and keeps them.

    Args:
        run: launches a decode step on its columns; whether it chooses tokens is the argument.
        dummy_row: row of padding.
        device: a GPU.
        space: that all graphs of the engine share.
    """

    def __init__(
        self,
        run: Callable[[DecodeColumns, bool], DecodeOutputs],
        dummy_row: int,
        device: torch.device,
        space: GraphSpace,
    ) -> None:
        self._run = run
        self._dummy_row = dummy_row
        self._device = device
        self._space = space
        self._captured: dict[tuple[int, bool], CapturedDecode] = {}

    def get(self, batch: int, *, chooses: bool) -> CapturedDecode:
        """The graph of a bucket, captured now if it has not been asked for before."""
        key = (batch, chooses)
        if key not in self._captured:
            self._captured[key] = self._capture(batch, chooses)
        return self._captured[key]

    def padded(self, arrays: list[NDArray[np.int32]], batch: int) -> list[NDArray[np.int32]]:
        """Columns of fewer rows than the bucket's, filled up with rows that do nothing."""
        fills = (-1 - self._dummy_row, 0, self._dummy_row, -1, 0)
        return [
            array if len(array) == batch else _filled(array, batch, fill)
            for array, fill in zip(arrays, fills, strict=True)
        ]

    def _capture(self, batch: int, chooses: bool) -> CapturedDecode:
        starts, size = pieces([batch] * _COLUMNS)
        inputs = torch.empty(size, dtype=torch.int32, device=self._device)
        views = [inputs[start : start + batch] for start in starts]
        empty = np.empty(0, np.int32)
        for view, column in zip(views, self.padded([empty] * _COLUMNS, batch), strict=True):
            view.copy_(torch.from_numpy(column))
        columns = DecodeColumns(*views)
        self._space.rehearse(lambda: self._run(columns, chooses))
        graph, outputs = self._space.capture(lambda: self._run(columns, chooses))
        return CapturedDecode(graph, inputs, columns, outputs)


def _filled(array: NDArray[np.int32], length: int, fill: int) -> NDArray[np.int32]:
    out = np.full(length, fill, np.int32)
    out[: len(array)] = array
    return out
