"""Kernel tables as functions, whatever model they are asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from simulator.composition.kernel_curves import (
    DecodeAttention,
    RowCurves,
    Sizes,
    of_op,
    similar_heads,
)
from simulator.composition.kernel_experts import ExpertChoice
from simulator.composition.kernel_file import AttentionFit, KernelFile
from simulator.profile import ProfileError


class MostPrompts(NamedTuple):
    """Up to which attention of prompts was measured.

    Attributes:
        chunks: in a step.
        context: tokens cached before them, of all.
        longest: tokens of one as far as it goes.
    """

    chunks: int
    context: int
    longest: int


_HOST_PARTS: Final = ("plan", "prepare", "commit")


class KernelTables:
    """A file's series as functions.

    Args:
        kernels: the file.
    """

    def __init__(self, kernels: KernelFile) -> None:
        self.attention_fits: dict[Sizes, AttentionFit] = {
            (fit.heads, fit.kv_heads, fit.head_dim): fit for fit in kernels.composition.attention
        }
        self.exchange, self.gpu = kernels.exchange, kernels.identity.gpu
        self._series = kernels.series
        self._curves: dict[str, RowCurves] = {}
        self._choices: dict[str, ExpertChoice] = {}

    def rows(self, op: str) -> RowCurves:
        """An op that depends on rows. Raises ProfileError if it was not measured."""
        if op not in self._curves:
            self._curves[op] = RowCurves(of_op(self._series, op))
        return self._curves[op]

    def choice(self, op: str) -> ExpertChoice:
        """What uneven choice of experts does to a mixture's op."""
        if op not in self._choices:
            self._choices[op] = ExpertChoice(of_op(self._series, op))
        return self._choices[op]

    def has(self, op: str) -> bool:
        """Whether an op was measured."""
        return any(each.op == op for each in self._series)

    @cached_property
    def decode(self) -> DecodeAttention:
        """Attention of decode items. Raises ProfileError if it was not measured."""
        return DecodeAttention(of_op(self._series, "decode_attention"))

    def prefill(self, heads: Sizes) -> AttentionFit:
        """Attention of prompts; of heads that were not measured in proportion to similar ones.

        Raises:
            ProfileError: it was not measured at all.
        """
        if not self.attention_fits:
            raise ProfileError("the kernel tables have no prefill_attention")
        nearest = similar_heads(heads, self.attention_fits)
        fit = self.attention_fits[nearest]
        if nearest == heads:
            return fit
        scale = heads[0] * heads[2] / (nearest[0] * nearest[2])
        return AttentionFit(
            heads=heads[0], kv_heads=heads[1], head_dim=heads[2], call_ns=fit.call_ns,
            chunk_ns=fit.chunk_ns * scale, token_ns=fit.token_ns * scale,
            pair_ns=fit.pair_ns * scale, context_ns=fit.context_ns * scale,
            max_context_ns=fit.max_context_ns,
        )  # fmt: skip

    def most_prompts(self, heads: Sizes) -> MostPrompts:
        """Of these heads, or of those that stand for them. Raises ProfileError as `prefill`."""
        measured = {each.sizes: each for each in of_op(self._series, "prefill_attention")}
        if not measured:
            raise ProfileError("the kernel tables have no prefill_attention")
        points = measured[similar_heads(heads, measured)].points
        chunks, tokens, prefix = np.array(points, np.int64).T
        most = chunks.max(), (chunks * prefix).max(), (tokens + prefix).max()
        return MostPrompts(*map(int, most))

    @cached_property
    def host_work(self) -> tuple[float, float] | None:
        """(ns of a step, ns of each request) that planning, preparing and committing take.

        None: they were not measured. Launching and writing texts are not in it.
        """
        if not all(self.has(op) for op in _HOST_PARTS):
            return None
        total: dict[int, float] = {}
        for series in (of_op(self._series, op)[0] for op in _HOST_PARTS):
            for (requests,), ns in zip(series.points, series.ns, strict=True):
                total[requests] = total.get(requests, 0.0) + ns
        at, sums = np.array(list(total), np.float64), np.array(list(total.values()))
        slope, base = np.polyfit(at, sums, 1, w=1 / sums) if len(at) > 1 else (0.0, sums[0])
        return max(0.0, float(base)), max(0.0, float(slope))
