"""CUDA Graphs of steps with prefill, for some numbers of tokens; a step is padded up to the next.

Which requests a step has, and how much of each, the kernels read on the device, so one graph serves
every mixture: rooms for chunks and decoding requests that are not there are found empty. A graph
ends before the attention of the last layer: what follows is computed only for the tokens whose
logits are wanted, and is launched as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.core.graph_sizes import graph_chunks, graph_tokens_for
from engine.models.kv_cache import KvCache
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.models.transformer import Transformer
from engine.runtime.graph_capture import GraphSpace
from engine.runtime.host_step import HostPrefill, HostStep
from engine.runtime.transfers_to_device import pieces

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CapturedPrefill:
    """A captured step of so many tokens: write the inputs, replay, go on from the last queries.

    Attributes:
        graph: all but the last layer, and that one's queries.
        inputs: int32, all columns of `step`, as `PrefillGraphs.columns` lays them out.
        step: what was captured; without logit rows.
        query: [T, Hq, D], of the last layer.
        residual: [T, H], the stream before the last layer's attention.
    """

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    step: StepInputs
    query: torch.Tensor
    residual: torch.Tensor


class PrefillGraphs:
    """Captures steps with prefill and keeps them.

    Args:
        transformer: the model.
        cache: its pages.
        template: page table, last tokens and counters of the engine.
        sizes: numbers of tokens to capture, ascending.
        max_decodes: most decoding requests of a step.
        space: that all graphs of the engine share.
    """

    def __init__(
        self,
        transformer: Transformer,
        cache: KvCache,
        template: StepInputs,
        sizes: tuple[int, ...],
        max_decodes: int,
        space: GraphSpace,
    ) -> None:
        self._transformer, self._cache, self._template = transformer, cache, template
        self._sizes, self._max_decodes, self._space = sizes, max_decodes, space
        self._device = cache.pool.device
        self._dummy_row = template.page_table.shape[0] - 1
        self._captured: dict[int, CapturedPrefill] = {}
        spec = transformer.spec
        shape = (sizes[-1], spec.num_heads, spec.head_dim)
        self._query = torch.zeros(shape, dtype=cache.pool.dtype, device=self._device)
        # Zeros, because padding is computed with what lies there, and must stay finite.
        self._attended = torch.zeros_like(self._query)

    def size_for(self, tokens: int, chunks: int) -> int | None:
        """The captured number of tokens that a step is padded to; None: it runs without a graph."""
        return graph_tokens_for(self._sizes, tokens, chunks) or None

    def get(self, size: int) -> CapturedPrefill:
        """The graph of a size, captured now if it has not been asked for before."""
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        return self._captured[size]

    def columns(self, host: HostStep, chunks: HostPrefill, size: int) -> Int32:
        """A step's numbers as the inputs of a graph, filled up with what does nothing."""
        decodes, end = chunks.decodes, int(chunks.starts[-1])
        row, lengths = self._dummy_row, self._lengths(size)
        starts, total = pieces(lengths)
        out = np.zeros(total, np.int32)
        columns: Sequence[tuple[Int32, int]] = (
            (host.token_ids, 0),
            (host.positions, 0),
            (host.rows, row),
            (chunks.starts, end),
            (chunks.rows, row),
            (chunks.contexts, 0),
            (host.rows[:decodes], row),
            (host.positions[:decodes], -1),
        )
        for start, length, (column, fill) in zip(starts, lengths, columns, strict=True):
            out[start : start + len(column)] = column
            out[start + len(column) : start + length] = fill
        return out

    def walk(self, size: int) -> None:
        """Launch what a graph of a size would hold, as it comes."""
        self._begin(self._padding(size)[1])

    def _begin(self, step: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(step.rows)
        return self._transformer.begin(
            step, self._cache, query=self._query[:size], attended=self._attended[:size]
        )

    def _capture(self, size: int) -> CapturedPrefill:
        inputs, step = self._padding(size)
        self._space.rehearse(lambda: self._begin(step))
        graph, (query, residual) = self._space.capture(lambda: self._begin(step))
        return CapturedPrefill(graph, inputs, step, query, residual)

    def _padding(self, size: int) -> tuple[torch.Tensor, StepInputs]:
        """Inputs of a graph that hold nothing but padding, and the step that lies in them."""
        nothing = np.empty(0, np.int32)
        chunks = HostPrefill(np.zeros(1, np.int32), nothing, nothing)
        host = HostStep(nothing, nothing, nothing, chunks, nothing, nothing, nothing, [])
        inputs = torch.from_numpy(self.columns(host, chunks, size)).to(self._device)
        lengths = self._lengths(size)
        views = (inputs[s : s + n] for s, n in zip(pieces(lengths)[0], lengths, strict=True))
        ids, positions, rows, *prefill = views
        step = replace(
            self._template,
            token_ids=ids,
            positions=positions,
            rows=rows,
            prefill=PrefillInputs(*prefill),
        )
        return inputs, step

    def _lengths(self, size: int) -> tuple[int, ...]:
        """Of the columns of a graph's inputs."""
        chunks, decodes = graph_chunks(size), min(size, self._max_decodes)
        return (size, size, size, chunks + 1, chunks, chunks, decodes, decodes)
