"""The calibrated cost model: predicts steps with what a profile's fit says of one engine.

There are two kinds of steps.

Pure decode steps that run as a CUDA Graph: the table of that graph batch, linear in decode_context
between its knots. Without a table of the batch, the tables of the next smaller and the next larger
one are read at the same context per row of the graph, so that neither leaves the range in which it
was measured, and mixed in proportion to the batch. Outside all tables the nearest one is read at
the step's own context, and the step counts as extrapolated. A profile without tables (of a CPU)
has no steps of this kind.

All other steps: the sum of what `simulator.profile.MixedFit` names. The table of tokens is read at
the tokens of the step, which a step with prefill pads to the next of the engine's graph_tokens.

The terms of gpu_ns:

    tokens             the table of tokens; of a decode table what its first knot says
    attention_prefill  pairs, and context before the chunks
    attention_decode   context of the decode items; of a decode table what is above its first knot
    requests           chunks and decode items, and that a step decodes without a graph
    logits             a constant where there are any, and their rows

Context that several requests share is read from memory once and from the cache of the GPU by all
others: of each token of shared_context, which is counted once more for each of them, only the share
`shared_share` enters into the tables, rounded to a whole token.

Rounding: each term is rounded by itself to whole ns, halves up, and gpu_ns is their sum; tokens is
at least 1, and attention_decode of a decode table is the difference of two rounded values. Every
float operation is one IEEE double +, -, * or max, in the same order in Python and in numpy, so
that both give the same integers.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.graph_sizes import FEWEST_CHUNKS, TOKENS_PER_CHUNK, graph_tokens_for
from simulator.cost_model import Int64, StepCosts, StepFeatures, StepShape, sum_of_terms, whole_ns
from simulator.power_state import PowerFit
from simulator.profile import (
    DecodeTable,
    HostFit,
    LaunchFit,
    MixedFit,
    Profile,
    ProfileError,
)

TERMS: Final = (
    "tokens", "attention_prefill", "attention_decode", "requests", "logits", "launches"
)  # fmt: skip

_EMPTY_STEP: Final = "a step has at least one token"
_NO_LIMIT: Final = 1 << 62
_EAGER_DECODE: Final = LaunchFit.__struct_fields__.index("eager_decode_ns")


class CalibratedCostModel:
    """Step costs as a profile has them; implements `CostModel`.

    Args:
        profile: what was measured and fitted.
    """

    def __init__(self, profile: Profile) -> None:
        fit = profile.fit
        self._name = profile.name
        self._power = fit.power
        self._decode = DecodeCurves(fit.decode)
        self._mixed = None
        self._saved = 1.0 - fit.shared_share
        if fit.mixed is not None:
            self._mixed = MixedCosts(fit.mixed, profile.engine.graph_tokens)
        self._host = HostCosts(fit.host)
        self._graph_tokens = profile.engine.graph_tokens
        self._known_kinds = _measured_kinds(profile)
        self._limits = tuple(fit.limits.get(name, _NO_LIMIT) for name in StepShape._fields)

    @property
    def name(self) -> str:
        """The profile's name; stands in every result that this model made."""
        return self._name

    @property
    def power(self) -> PowerFit | None:
        """As it was fitted."""
        return self._power

    def step_costs(self, features: StepFeatures) -> StepCosts:
        """Costs of many steps, with their terms."""
        f = features
        if len(f) and int((f.prefill_tokens + f.decode_tokens).min()) < 1:
            raise ValueError(_EMPTY_STEP)
        extrapolated = np.zeros(len(f), np.bool_)
        for column, limit in zip(_columns(f), self._limits, strict=True):
            extrapolated |= column > limit
        unknown_kind = ~self._known_kinds[launch_kinds(f, self._graph_tokens)]
        f = replace(f, decode_context=attended_context(f, self._saved))
        if not self._decode:
            extrapolated |= unknown_kind
            terms = self._other_steps().terms(f)
        else:
            graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0)
            extrapolated |= np.where(graphed, self._decode.are_outside(f.graph_batch), unknown_kind)
            terms = self._terms_of_both(f, graphed)
        return StepCosts(sum_of_terms(terms), self._host.column(f), terms, extrapolated)

    def _terms_of_both(self, f: StepFeatures, graphed: NDArray[np.bool_]) -> dict[str, Int64]:
        """The terms of steps some of which are decode graphs."""
        if len(f) and not graphed.any():
            return self._other_steps().terms(f)
        terms = {name: np.zeros(len(f), np.int64) for name in TERMS}
        terms["tokens"][graphed], terms["attention_decode"][graphed] = self._decode.terms(
            f.graph_batch[graphed], f.decode_context[graphed]
        )
        if not graphed.all():
            others = StepFeatures(*(column[~graphed] for column in _columns(f)))
            for name, ns in self._other_steps().terms(others).items():
                terms[name][~graphed] = ns
        return terms

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        """(gpu_ns, host_ns, extrapolated) of one step."""
        prefill, _, _, _, _, _, tokens, context, _, shared, _, graph_batch, _ = shape
        if prefill + tokens < 1:
            raise ValueError(_EMPTY_STEP)
        extrapolated = any(map(operator.gt, shape, self._limits))
        if shared:
            context -= int(self._saved * shared + 0.5)
        if graph_batch > 0 and not prefill and self._decode:
            gpu_ns = self._decode.curve(graph_batch).whole_ns(context)
            extrapolated = extrapolated or self._decode.is_outside(graph_batch)
        else:
            gpu_ns = self._other_steps().gpu_ns(shape, context)
            extrapolated = extrapolated or self._is_of_unknown_kind(shape)
        return gpu_ns, self._host.host_ns(shape), extrapolated

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        """gpu_ns of successive pure decode steps, the host_ns of each, whether extrapolated."""
        prefill, _, _, _, _, _, tokens, context, longest, shared, _, graph_batch, _ = shape
        if prefill or tokens < 1:
            raise ValueError("a decode run decodes and does not prefill")
        first = context - int(self._saved * shared + 0.5)
        contexts = range(first, first + num_steps * tokens, tokens)
        last = shape._replace(
            decode_context=context + (num_steps - 1) * tokens,
            decode_max_context=longest + num_steps - 1,
        )
        extrapolated = num_steps > 0 and any(map(operator.gt, last, self._limits))
        if graph_batch > 0 and self._decode:
            gpu_ns = self._decode.curve(graph_batch).run(contexts)
            extrapolated = extrapolated or (num_steps > 0 and self._decode.is_outside(graph_batch))
        else:
            gpu_ns = self._other_steps().run(shape, contexts)
            extrapolated = extrapolated or (num_steps > 0 and self._is_of_unknown_kind(shape))
        return gpu_ns, self._host.host_ns(shape), extrapolated

    def _is_of_unknown_kind(self, shape: StepShape) -> bool:
        """Whether no step was measured that launches its kernels as this one does."""
        return not self._known_kinds[_launch_kind(shape, self._graph_tokens)]

    def _other_steps(self) -> MixedCosts:
        if self._mixed is None:
            raise ProfileError(
                f"the profile {self._name} has only decode steps that run as CUDA Graphs: calibrate"
                " with prefill to predict other steps"
            )
        return self._mixed


class Curve:
    """A function linear between knots: flat before the first, beyond the last with its slope.

    At whole places it never descends: what rounding adds to a segment is less than what the place
    before its end falls short of the end, unless knots are 2**51 apart.

    Args:
        at: ascending whole places, two at least.
        ns: values there, not descending.
        least: no whole value is less: 0 or 1.
    """

    def __init__(self, at: Sequence[float], ns: Sequence[float], *, least: int = 1) -> None:
        self._least = least
        self.at = np.array(at, np.float64)
        self._ns = np.array(ns, np.float64)
        self._slope = np.diff(self._ns) / np.diff(self.at)
        segments = (self.at[:-1].tolist(), self._ns[:-1].tolist(), self._slope.tolist())
        self._segments: list[tuple[float, float, float]] = list(zip(*segments, strict=True))
        self._inner: list[float] = self.at[1:-1].tolist()
        self.first_ns = max(least, int(self._ns[0] + 0.5))

    def whole_ns(self, place: int) -> int:
        """The value at a place in whole ns."""
        start, ns, slope = self._segments[bisect_right(self._inner, place)]
        beyond = place - start
        return int(ns + slope * (beyond if beyond > 0.0 else 0.0) + 0.5) or self._least

    def whole_column(self, places: Int64) -> Int64:
        """`whole_ns` of many places."""
        return np.maximum(whole_ns(self.column(places)), self._least)

    def column(self, places: NDArray[np.integer | np.floating]) -> NDArray[np.float64]:
        """Values at many places, not rounded."""
        index = np.searchsorted(self.at[1:-1], places.astype(np.float64), side="right")
        beyond = np.maximum(places - self.at[index], 0.0)
        values: NDArray[np.float64] = self._ns[index] + self._slope[index] * beyond
        return values

    def run(self, places: range) -> list[int]:
        """`whole_ns` of ascending places."""
        whole: list[int] = []
        least = self._least
        while len(whole) < len(places):
            rest = places[len(whole) :]
            segment = bisect_right(self._inner, rest[0])
            if segment < len(self._inner):
                rest = rest[: bisect_left(rest, self._inner[segment])]
            start, ns, slope = self._segments[segment]
            if rest[0] < start:  # before the first knot
                whole += map(self.whole_ns, rest)
            else:
                whole += [int(ns + slope * (place - start) + 0.5) or least for place in rest]
        return whole


class DecodeCurves:
    """Pure decode steps by the batch of their graph; false if there are none.

    Args:
        tables: by ascending graph batch.
    """

    def __init__(self, tables: Sequence[DecodeTable]) -> None:
        self._measured = [table.graph_batch for table in tables]
        self._curves = {table.graph_batch: Curve(table.context, table.ns) for table in tables}

    def __bool__(self) -> bool:
        return bool(self._measured)

    def curve(self, graph_batch: int) -> Curve:
        """Time over decode_context of a graph batch, measured or not."""
        known = self._curves.get(graph_batch)
        if known is not None:
            return known
        if self.is_outside(graph_batch):
            nearest = 0 if graph_batch < self._measured[0] else -1
            return self._curves[self._measured[nearest]]
        at = bisect_left(self._measured, graph_batch)
        curve = self._between(self._measured[at - 1], self._measured[at], graph_batch)
        self._curves[graph_batch] = curve  # there are no more of these than rows of a graph
        return curve

    def is_outside(self, graph_batch: int) -> bool:
        """Whether a graph batch is smaller or larger than all that were measured."""
        return graph_batch < self._measured[0] or graph_batch > self._measured[-1]

    def are_outside(self, graph_batches: Int64) -> NDArray[np.bool_]:
        """`is_outside` of many graph batches."""
        return (graph_batches < self._measured[0]) | (graph_batches > self._measured[-1])

    def terms(self, graph_batches: Int64, contexts: Int64) -> tuple[Int64, Int64]:
        """(tokens, attention_decode) of many steps."""
        tokens, attention = np.zeros_like(contexts), np.zeros_like(contexts)
        for graph_batch in np.unique(graph_batches).tolist():
            rows = np.flatnonzero(graph_batches == graph_batch)
            curve = self.curve(graph_batch)
            tokens[rows] = curve.first_ns
            attention[rows] = curve.whole_column(contexts[rows]) - curve.first_ns
        return tokens, attention

    def _between(self, smaller: int, larger: int, graph_batch: int) -> Curve:
        """Both neighbours at the same context per row, mixed: linear between the knots of both."""
        low, high = self._curves[smaller], self._curves[larger]
        per_row = np.union1d(low.at / smaller, high.at / larger)
        at = np.unique(np.floor(per_row * graph_batch + 0.5))  # knots that are one in truth
        low_ns = low.column(at * (smaller / graph_batch))
        high_ns = high.column(at * (larger / graph_batch))
        share = (graph_batch - smaller) / (larger - smaller)
        ns = np.maximum.accumulate(low_ns + share * (high_ns - low_ns))
        return Curve(at.tolist(), ns.tolist())


class MixedCosts:
    """Steps that are no graph of decode items.

    Args:
        fit: what their parts cost.
        graph_tokens: ascending token counts to which steps with prefill are padded.
    """

    def __init__(self, fit: MixedFit, graph_tokens: Sequence[int]) -> None:
        self._graph_tokens = tuple(graph_tokens)
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
            "tokens": self._tokens.whole_column(padded_tokens(f, self._graph_tokens)),
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
        least = self._whole_launch_ns[_launch_kind(shape, self._graph_tokens)]
        if prefill:
            tokens = graph_tokens_for(self._graph_tokens, tokens, prefills) or tokens
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


class HostCosts:
    """CPU time of steps, as fitted."""

    def __init__(self, fit: HostFit) -> None:
        self._ns = (fit.step_ns, fit.request_ns, fit.prefill_request_ns, fit.prefill_token_ns)

    def column(self, features: StepFeatures) -> Int64:
        """host_ns of many steps."""
        step_ns, request_ns, prompt_ns, token_ns = self._ns
        f = features
        requests = f.prefill_requests + f.decode_requests
        prompts_ns = prompt_ns * f.prefill_requests + token_ns * f.prefill_tokens
        return whole_ns(step_ns + request_ns * requests + prompts_ns)

    def host_ns(self, shape: StepShape) -> int:
        """host_ns of one step."""
        step_ns, request_ns, prompt_ns, token_ns = self._ns
        requests = shape.prefill_requests + shape.decode_requests
        prompts_ns = prompt_ns * shape.prefill_requests + token_ns * shape.prefill_tokens
        return int(step_ns + request_ns * requests + prompts_ns + 0.5)


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


def attended_context(features: StepFeatures, saved: float) -> Int64:
    """decode_context without what costs nothing because requests share it: int64[n].

    Where more is shared than decode items attend to, it is below 0: a table is flat there.

    Args:
        features: n steps.
        saved: share of each token of shared_context that costs nothing.
    """
    return features.decode_context - whole_ns(saved * features.shared_context)


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


def _graph_tokens_for(features: StepFeatures, graph_tokens: Sequence[int]) -> Int64:
    """`graph_tokens_for` of n steps: int64[n]."""
    if not graph_tokens:
        return np.zeros(len(features), np.int64)
    tokens = features.prefill_tokens + features.decode_tokens
    room = TOKENS_PER_CHUNK * (features.prefill_requests - FEWEST_CHUNKS)
    sizes = np.append(np.array(graph_tokens, np.int64), 0)
    found = sizes[np.searchsorted(sizes[:-1], np.maximum(tokens, room))]
    return np.where((room > tokens) & (2 * found > sizes[-2]), 0, found)


def _launch_kind(shape: StepShape, graph_tokens: Sequence[int]) -> int:
    """`launch_kinds` of a step."""
    prefill, decode = shape.prefill_tokens, shape.decode_tokens
    if not prefill:
        return _EAGER_DECODE
    size = graph_tokens_for(graph_tokens, prefill + decode, shape.prefill_requests)
    return (0 if size else 2) + (1 if decode else 0)


def _measured_kinds(profile: Profile) -> NDArray[np.bool_]:
    """Whether steps of each of the `launch_kinds` were measured: bool[kinds]."""
    kinds = np.zeros(len(LaunchFit.__struct_fields__), np.bool_)
    f = profile.samples.features()
    others = (f.prefill_tokens > 0) | (f.graph_batch == 0)
    kinds[launch_kinds(f, profile.engine.graph_tokens)[others]] = True
    return kinds


def _columns(features: StepFeatures) -> list[Int64]:
    return [getattr(features, field.name) for field in fields(features)]
