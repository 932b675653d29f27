"""CUDA Graphs of steps with prefill, piece by piece: what lies before and between attentions.

That depends on the number of tokens only, so it is captured for some numbers of tokens, and a step
is padded up to the next. Attention, which depends on the requests, is launched between the replays,
and so is what follows the last one, for the tokens whose logits are wanted. A step of few tokens
then costs the host two launches a layer and not a dozen, and is no longer bound by them.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import partial

import torch

from engine.core.model_spec import ModelSpec
from engine.models.kv_cache import KvCache
from engine.models.step_inputs import StepInputs
from engine.models.transformer import Hidden, Transformer
from engine.runtime.graph_capture import GraphSpace

SIZES = (16, 32, *range(64, 321, 64), *range(384, 1025, 128), *range(1280, 4097, 256))
LAUNCH_SECONDS = 330e-6  # of a layer's kernels, one by one, as measured
FLOPS = 6e14  # of a second of prefill, as measured


def default_graph_tokens(spec: ModelSpec) -> tuple[int, ...]:
    """Numbers of tokens for which the GPU would wait for launches, and the next larger one.

    Larger steps gain nothing from graphs and would be padded for nothing.
    """
    flops = spec.flops_per_token_by_group()
    flops.pop("lm_head", None)  # of sampled tokens only
    most = spec.num_layers * LAUNCH_SECONDS * FLOPS / sum(flops.values())
    return SIZES[: bisect.bisect_left(SIZES, most) + 1]


@dataclass(frozen=True, slots=True)
class CapturedTokens:
    """The pieces of a step of so many tokens.

    Attributes:
        graphs: before the first attention, and between two.
        columns: token ids, positions and rows, int32 each, to be filled before the first piece.
        residual: [T, H], the stream as the last piece leaves it.
    """

    graphs: list[torch.cuda.CUDAGraph]
    columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    residual: torch.Tensor


class TokenGraphs:
    """Captures pieces and replays them.

    Args:
        transformer: the model.
        cache: its pages.
        template: page table, last tokens and counters of the engine.
        sizes: numbers of tokens to capture, ascending.
        space: that all graphs of the engine share.
    """

    def __init__(
        self,
        transformer: Transformer,
        cache: KvCache,
        template: StepInputs,
        sizes: tuple[int, ...],
        space: GraphSpace,
    ) -> None:
        self._transformer, self._cache, self._template = transformer, cache, template
        self._sizes, self._space = sizes, space
        self._device = cache.pool.device
        self._captured: dict[int, CapturedTokens] = {}
        spec = transformer.spec
        shape = (sizes[-1], spec.num_heads, spec.head_dim)
        self._query = torch.zeros(shape, dtype=cache.pool.dtype, device=self._device)
        self._attended = torch.zeros_like(self._query)

    def size_for(self, tokens: int) -> int | None:
        """The captured number of tokens that a step is padded to; None: it is too large."""
        at = bisect.bisect_left(self._sizes, tokens)
        return self._sizes[at] if at < len(self._sizes) else None

    def get(self, size: int) -> CapturedTokens:
        """The pieces of a size, captured now if they have not been asked for before."""
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        return self._captured[size]

    def fill(self, captured: CapturedTokens, step: StepInputs, dummy_row: int) -> None:
        """Put a step's tokens into the inputs of the pieces, and padding behind them."""
        count, (ids, positions, rows) = len(step.rows), captured.columns
        ids[:count].copy_(step.token_ids)
        positions[:count].copy_(step.positions)
        rows[:count].copy_(step.rows)
        if count < len(rows):
            ids[count:].zero_()
            positions[count:].zero_()
            rows[count:].fill_(dummy_row)

    def run(self, captured: CapturedTokens, step: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Replay the pieces around all attentions of a step but the last.

        Args:
            captured: pieces of at least as many tokens, filled.
            step: the real tokens.

        Returns:
            Queries of the last layer [T, Hq, D] and the residual stream [T, H], of real tokens.
        """
        first, *others = captured.graphs
        size, count = len(captured.residual), len(step.rows)
        query, attended = self._query[:size], self._attended[:size]
        first.replay()
        for index, graph in enumerate(others):
            self._transformer.attend(index, query, step, self._cache, out=attended)
            graph.replay()
        return query[:count], captured.residual[:count]

    def _capture(self, size: int) -> CapturedTokens:
        ids, positions, rows = torch.zeros((3, size), dtype=torch.int32, device=self._device)
        rows.fill_(self._template.page_table.shape[0] - 1)  # nothing but dummy pages is written
        template = self._template
        step = StepInputs(
            ids, positions, rows, template.page_table, template.last_tokens, template.counters
        )
        self._space.rehearse(lambda: self._all_pieces(step))
        graphs: list[torch.cuda.CUDAGraph] = []
        between: Hidden | None = None
        for index in range(self._transformer.spec.num_layers):
            graph, between = self._space.capture(partial(self._piece, index, between, step))
            graphs.append(graph)
        if between is None:
            raise ValueError("a model needs at least one layer")
        return CapturedTokens(graphs, (ids, positions, rows), between.residual)

    def _all_pieces(self, step: StepInputs) -> None:
        hidden: Hidden | None = None
        for index in range(self._transformer.spec.num_layers):
            hidden = self._piece(index, hidden, step)

    def _piece(self, index: int, hidden: Hidden | None, step: StepInputs) -> Hidden:
        """From the attention of layer `index - 1`, or the start, to that of layer `index`."""
        model, size = self._transformer, len(step.rows)
        if hidden is None:
            hidden = model.embed(step)
        else:
            hidden = model.merge(index - 1, self._attended[:size], hidden)
            hidden = model.feed_forward(index - 1, hidden)
        model.project(index, hidden, step, self._cache, out=self._query[:size])
        return hidden
