"""Steps that are no graph of decode items: what their parts cost, and how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.graph_sizes import FEWEST_CHUNKS, TOKENS_PER_CHUNK, graph_tokens_for
from simulator.cost_model import Int64, StepFeatures, StepShape, sum_of_terms, whole_ns
from simulator.curves import Curve
from simulator.profile import LaunchFit, MixedFit

_EAGER_DECODE: Final = LaunchFit.__struct_fields__.index("eager_decode_ns")


class MixedCosts:
    """Steps that are no graph of decode items.

    Args:
        fit: what their parts cost.
        graph_tokens: ascending token counts to which steps with prefill are padded.
    """

    def __init__(self, fit: MixedFit, graph_tokens: Sequence[int]) -> None:
        self._graph_tokens, self._own_tokens = tuple(graph_tokens), fit.own_tokens
        self._tokens = Curve(fit.tokens, fit.ns)
        self._prefill_ns = (fit.pair_ns, fit.context_ns, fit.max_context_ns)
        self._decode_context = Curve(fit.decode_context, fit.decode_context_ns, least=0)
        self._request_ns = (fit.prefill_request_ns, fit.decode_request_ns)
        self._logits_ns = (fit.logits_ns, fit.logit_row_ns)
        least = msgspec.structs.astuple(fit.launches)
        self._launch_ns = np.array([int(ns + 0.5) for ns in least], np.int64)  # by `launch_kinds`
        self._whole_launch_ns: list[int] = self._launch_ns.tolist()

    def terms(self, features: StepFeatures) -> dict[str, Int64]:
        """The terms of many steps, by their names."""
        f = features
        pair_ns, context_ns, max_context_ns = self._prefill_ns
        prefill_request_ns, decode_request_ns = self._request_ns
        step_ns, row_ns = self._logits_ns
        terms = {
            "tokens": self._tokens.whole_column(
                counted_tokens(f, self._graph_tokens, self._own_tokens)
            ),
            "attention_prefill": whole_ns(
                np.maximum(
                    pair_ns * f.prefill_pairs + context_ns * f.prefill_context,
                    max_context_ns * f.prefill_max_context,
                )
            ),
            "attention_decode": self._decode_context.whole_column(f.decode_context),
            "requests": whole_ns(
                prefill_request_ns * f.prefill_requests + decode_request_ns * f.decode_requests
            ),
            "logits": whole_ns(
                np.where(f.sampled_tokens > 0, step_ns + row_ns * f.sampled_tokens, 0.0)
            ),
        }
        least = self._launch_ns[launch_kinds(f, self._graph_tokens)]
        terms["launches"] = np.maximum(least - sum_of_terms(terms), 0)
        return terms

    def rise_ns(self, fewer: int, more: int) -> float:
        """What more decode items take than fewer, but for attention: of products and logits."""
        at = np.array([fewer, more], np.int64)
        from_ns, to_ns = self._tokens.column(at).tolist()
        row_ns = self._request_ns[1] + self._logits_ns[1]
        return float(to_ns - from_ns + row_ns * (more - fewer))

    def gpu_ns(self, shape: StepShape, decode_context: int) -> int:
        """The time of one step, with what of its decode_context costs something."""
        ns, least = self._without_decode_context(shape)
        ns += self._decode_context.whole_ns(decode_context)
        return ns if ns > least else least

    def run(self, shape: StepShape, decode_contexts: range) -> list[int]:
        """The times of steps that differ in decode_context only."""
        base_ns, least = self._without_decode_context(shape)
        return [max(base_ns + ns, least) for ns in self._decode_context.run(decode_contexts)]

    def _without_decode_context(self, shape: StepShape) -> tuple[int, int]:
        """(time without attention of decode items, time of launches)."""
        prefill, prefills, context, pairs, longest, decodes, decode, _, _, _, sampled, _, _ = shape
        tokens = prefill + decode
        least = self._whole_launch_ns[launch_kind(shape, self._graph_tokens)]
        if prefill:
            size = graph_tokens_for(self._graph_tokens, tokens, prefills)
            tokens = size if size > self._own_tokens else tokens
        pair_ns, context_ns, max_context_ns = self._prefill_ns
        prefill_request_ns, decode_request_ns = self._request_ns
        ns = self._tokens.whole_ns(tokens)
        all_ns, longest_ns = pair_ns * pairs + context_ns * context, max_context_ns * longest
        ns += int((all_ns if all_ns > longest_ns else longest_ns) + 0.5)
        ns += int(prefill_request_ns * prefills + decode_request_ns * decodes + 0.5)
        if sampled > 0:
            step_ns, row_ns = self._logits_ns
            ns += int(step_ns + row_ns * sampled + 0.5)
        return ns, least


def counted_tokens(features: StepFeatures, graph_tokens: Sequence[int], own_tokens: int) -> Int64:
    """Tokens at which the table of tokens is read: those of the graph, if it is a larger one.

    Args:
        features: n steps.
        graph_tokens: ascending.
        own_tokens: graphs of no more than that are read at the tokens of the step itself.

    Returns:
        int64[n].
    """
    padded = padded_tokens(features, graph_tokens)
    tokens = features.prefill_tokens + features.decode_tokens
    return np.where(padded > own_tokens, padded, tokens)


def padded_tokens(features: StepFeatures, graph_tokens: Sequence[int]) -> Int64:
    """Tokens that steps compute: those of the next graph where they prefill and there is one.

    Args:
        features: n steps.
        graph_tokens: ascending.

    Returns:
        int64[n].
    """
    tokens = features.prefill_tokens + features.decode_tokens
    size = _graph_tokens_for(features, graph_tokens)
    return np.where((features.prefill_tokens > 0) & (size > 0), size, tokens)


def launch_kinds(features: StepFeatures, graph_tokens: Sequence[int]) -> Int64:
    """Which field of `LaunchFit` speaks of each step, by its place.

    Args:
        features: n steps.
        graph_tokens: ascending.

    Returns:
        int64[n].
    """
    eager = _graph_tokens_for(features, graph_tokens) == 0
    kinds = np.where(eager, 2, 0) + (features.decode_tokens > 0)
    return np.where(features.prefill_tokens > 0, kinds, _EAGER_DECODE)


def is_eager_prefill(features: StepFeatures, graph_tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Which of n steps have prompts and are no graph: bool[n]."""
    eager: NDArray[np.bool_] = _graph_tokens_for(features, graph_tokens) == 0
    eager &= features.prefill_tokens > 0
    return eager


def _graph_tokens_for(features: StepFeatures, graph_tokens: Sequence[int]) -> Int64:
    """`graph_tokens_for` of n steps: int64[n]."""
    if not graph_tokens:
        return np.zeros(len(features), np.int64)
    tokens = features.prefill_tokens + features.decode_tokens
    room = TOKENS_PER_CHUNK * (features.prefill_requests - FEWEST_CHUNKS)
    sizes = np.append(np.array(graph_tokens, np.int64), 0)
    found = sizes[np.searchsorted(sizes[:-1], np.maximum(tokens, room))]
    return np.where((room > tokens) & (2 * found > sizes[-2]), 0, found)


def launch_kind(shape: StepShape, graph_tokens: Sequence[int]) -> int:
    """`launch_kinds` of a step."""
    prefill, decode = shape.prefill_tokens, shape.decode_tokens
    if not prefill:
        return _EAGER_DECODE
    size = graph_tokens_for(graph_tokens, prefill + decode, shape.prefill_requests)
    return (0 if size else 2) + (1 if decode else 0)
