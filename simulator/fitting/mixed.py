"""The fit of all steps that are no decode graph.

It is one nonnegative least squares fit of relative errors; its table of tokens is made of rises
between knots, so that no cost can be negative and none can fall. Where the larger of two times
counts, the fit goes back and forth between which that is for each step, and what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulator.cost_model import Int64, StepFeatures
from simulator.fitting.base import Float64, Steps, may_be_knots, nonnegative_costs
from simulator.mixed_costs import counted_tokens, launch_kinds, padded_tokens
from simulator.profile import LaunchFit, MixedFit, ProfileError

FEWEST_MIXED: Final = 20  # twice as many as a fit with two knots has unknowns
_MOST_KNOTS: Final = 150  # of the table of tokens
_GUESSES: Final = 25  # of what bounds each step; they settle in about 10
# Times the launches: a step that takes less, and has less work, tells only of them. What the host
# takes to launch varies by a quarter.
_LAUNCHES_VARY: Final = 1.25
_NO_MORE_WORK: Final = 1.03
_FEWEST_OF_KIND: Final = 3  # steps that tell what launches take
# Times its work: launches that take longer are what a step tells of, with others or all alone.
_CLEARLY: Final = 1.25
_BEYOND_DOUBT: Final = 3.0
_ONE_BY_ONE: Final = ("eager_prefill_ns", "eager_mixed_ns")
_OUTLIER: Final = 2.5  # times the typical error: beyond that a step counts for less
_AS_GOOD: Final = 1.1  # times the loss of the other fit
_LEAST_ERROR: Final = 0.005  # of a step's time, which is as good as none
_OWN_TOKENS: Final = 64  # of a mixture, until nearly all experts are visited: 98 % of 128
_FAR_BETTER: Final = 0.8  # times the loss of the other fit
_FEW_TOKENS: Final = 256  # of a prompt: its attention leaves multiprocessors idle, at first guess

# Where the cost of attending to the KV of decode items bends, in tokens: few hide latencies worse.
_DECODE_KNOTS: Final = (0, 4096, 16384, 65536, 262144)
_LAST_CONTEXT: Final = 1.5  # of that table: its end is at least this multiple of the knot before

# The columns that follow the table's in a fit of mixed steps: fields of `MixedFit`. Those of the
# table of decode_context come last.
_RATES: Final = (
    "pair_ns",
    "context_ns",
    "max_context_ns",
    "prefill_request_ns",
    "decode_request_ns",
    "logits_ns",
    "logit_row_ns",
)
_ATTENTION: Final = 3  # of these, only the first two or the third count for a step


def fit_mixed(steps: Steps, graph_tokens: Sequence[int]) -> MixedFit:
    """The fit of all steps that are no decode graph.

    Args:
        steps: measured.
        graph_tokens: to which steps with prefill are padded.

    Raises:
        ProfileError: they are too few, or all of one size.
    """
    if len(steps) < FEWEST_MIXED:
        raise ProfileError(
            f"{len(steps)} samples of steps with prefill or without a graph, a fit needs"
            f" {FEWEST_MIXED}"
        )
    if len(np.unique(padded_tokens(steps.features, graph_tokens))) < 2:
        raise ProfileError("all steps with prefill have one number of tokens, a fit needs two")
    return best_mixed_fit(steps, graph_tokens)


def best_mixed_fit(steps: Steps, graph_tokens: Sequence[int]) -> MixedFit:
    """The better of two fits: small steps by their graphs, or by their own tokens.

    Rows that only fill a graph take as long as others, or hardly any time where tokens choose
    experts. That they take none must show clearly.
    """
    by_graph, loss = _best_fit(steps, graph_tokens, 0)
    tokens = steps.features.prefill_tokens + steps.features.decode_tokens
    padded = padded_tokens(steps.features, graph_tokens)
    if not np.any((tokens < padded) & (padded <= _OWN_TOKENS)):
        return by_graph
    by_own, own_loss = _best_fit(steps, graph_tokens, _OWN_TOKENS)
    return by_own if own_loss < _FAR_BETTER * loss else by_graph


def _best_fit(steps: Steps, graph_tokens: Sequence[int], own_tokens: int) -> tuple[MixedFit, float]:
    """The best of a series of fits, each with what the one before says of what bounds each step.

    Where one without launches is as good, it is taken: what is fitted to noise looks like them.

    Returns:
        the fit, and its loss.
    """
    f = steps.features
    tokens = counted_tokens(f, graph_tokens, own_tokens)
    knots, decode_knots = _token_knots(f, tokens, graph_tokens), _decode_knots(f)
    rises = _rises(tokens, knots)
    rates = np.hstack([_rate_columns(f), _rises(f.decode_context, decode_knots)[:, 1:]])
    kinds = launch_kinds(f, graph_tokens)
    found = _series(steps, rises, rates, kinds, _first_launches(kinds, steps.ns))
    without = _series(steps, rises, rates, kinds, None)
    loss, costs, least = without if without[0] <= _AS_GOOD * found[0] else found
    of_tokens, of_rates, of_decodes = np.split(costs, [len(knots), len(knots) + len(_RATES)])
    fit = MixedFit(
        tokens=tuple(knots.tolist()),
        ns=tuple(np.cumsum(of_tokens).tolist()),
        decode_context=tuple(decode_knots.tolist()),
        decode_context_ns=(0.0, *np.cumsum(of_decodes).tolist()),
        **dict(zip(_RATES, of_rates.tolist(), strict=True)),
        launches=LaunchFit(**dict(zip(LaunchFit.__struct_fields__, least.tolist(), strict=True))),
        own_tokens=own_tokens,
    )
    return fit, loss


def _series(
    steps: Steps, rises: Float64, rates: Float64, kinds: Int64, first: Float64 | None
) -> tuple[float, Float64, Float64]:
    """(error, costs, launches) of the best fit of a series.

    Args:
        steps: n of them.
        rises: float64[n, knots], of tokens.
        rates: float64[n, m], see `_costs`.
        kinds: int64[n], of `launch_kinds`.
        first: float64[kinds], launches to begin with; None: there are none.
    """
    least = np.zeros(len(LaunchFit.__struct_fields__)) if first is None else first
    f, knots = steps.features, rises.shape[1]
    serial = (f.prefill_requests == 1) & (f.prefill_context > 0) & (f.prefill_tokens <= _FEW_TOKENS)
    bound = steps.ns <= _LAUNCHES_VARY * least[kinds]
    trust = np.ones(len(steps))
    best: tuple[float, Float64, Float64] = np.inf, np.zeros(0), least
    for _ in range(_GUESSES):
        costs = _costs(rises, rates, steps.ns, trust, serial, bound)
        own = costs[knots:]
        all_ns, longest_ns = rates[:, :2] @ own[:2], rates[:, 2] * own[2]
        work_ns = rises @ costs[:knots] + rates[:, _ATTENTION:] @ own[_ATTENTION:]
        work_ns += np.maximum(all_ns, longest_ns)
        if first is not None:
            least = _best_launches(kinds, work_ns, steps.ns)
        error, trust = _loss(np.abs(np.maximum(work_ns, least[kinds]) / steps.ns - 1))
        if error < best[0]:
            best = error, costs, least
        before = serial, bound
        serial = longest_ns > all_ns
        bound = steps.ns <= _LAUNCHES_VARY * least[kinds]
        bound &= work_ns <= _NO_MORE_WORK * least[kinds]
        if all(map(np.array_equal, before, (serial, bound))):
            break
    return best


def _loss(errors: Float64) -> tuple[float, Float64]:
    """(Huber's loss, what each error is to be trusted): squares up to typical ones, then lines.

    Args:
        errors: float64[n], absolute and relative ones.
    """
    typical = _OUTLIER * max(_LEAST_ERROR, float(np.median(errors)))
    losses = np.where(errors < typical, errors**2, typical * (2 * errors - typical))
    return float(np.sum(losses)), np.sqrt(typical / np.maximum(errors, typical))


def _costs(
    rises: Float64,
    rates: Float64,
    ns: Float64,
    trust: Float64,
    serial: NDArray[np.bool_],
    bound: NDArray[np.bool_],
) -> Float64:
    """Costs of `rises` and `rates`.

    Args:
        rises: float64[n, knots], of tokens.
        rates: float64[n, m], what `_RATES` are multiplied by, and rises of decode_context.
        ns: float64[n], times of the steps.
        trust: float64[n], weights of relative errors.
        serial: bool[n], which attend to prompts for as long as the longest takes.
        bound: bool[n], which tell only what launches take.
    """
    rows = ~bound if np.count_nonzero(~bound) >= FEWEST_MIXED // 2 else np.ones_like(bound)
    rates = rates.copy()
    rates[serial, :2] = 0.0
    rates[~serial, 2] = 0.0
    # What all steps have in the same amount belongs to the table: it cannot be told apart.
    rates[:, np.ptp(rates[rows], axis=0) == 0] = 0.0
    return nonnegative_costs(np.hstack([rises, rates])[rows], ns[rows], (trust / ns)[rows])


def _rate_columns(f: StepFeatures) -> Float64:
    """What `_RATES` are multiplied by: float64[n, len(_RATES)]."""
    columns = (
        f.prefill_pairs,
        f.prefill_context,
        np.maximum(f.prefill_max_context, 0),
        f.prefill_requests,
        f.decode_requests,
        f.sampled_tokens > 0,
        f.sampled_tokens,
    )
    return np.column_stack(columns).astype(np.float64)


def _first_launches(kinds: Int64, ns: Float64) -> Float64:
    """What launches of each kind take at most, by the shortest steps: float64[kinds]."""
    least = np.zeros(len(LaunchFit.__struct_fields__))
    for kind in range(len(least)):
        of_kind = ns[kinds == kind]
        if len(of_kind) >= _FEWEST_OF_KIND:
            least[kind] = np.quantile(of_kind, 0.1)
    return least


def _best_launches(kinds: Int64, work_ns: Float64, ns: Float64) -> Float64:
    """What launches of each kind take if the work takes `work_ns`: float64[kinds].

    Nothing, where hardly a step has clearly less work than that. But beside decode items there are
    no fewer kernels to launch one by one than without them.
    """
    least = np.zeros(len(LaunchFit.__struct_fields__))
    for kind in range(len(least)):
        rows = kinds == kind
        if np.count_nonzero(rows) < _FEWEST_OF_KIND:
            continue
        tried = np.quantile(ns[rows], np.linspace(0, 0.9, 40))
        waiting = np.sum(_CLEARLY * work_ns[rows] < tried[:, None], axis=1)
        beyond_doubt = np.any(_BEYOND_DOUBT * work_ns[rows] < tried[:, None], axis=1)
        tried = np.append(0.0, tried[(waiting >= _FEWEST_OF_KIND) | beyond_doubt])
        errors = np.maximum(tried[:, None], work_ns[rows]) / ns[rows] - 1
        least[kind] = tried[np.argmin(np.sum(np.abs(errors), axis=1))]
    alone, beside = (LaunchFit.__struct_fields__.index(name) for name in _ONE_BY_ONE)
    least[beside] = max(least[alone], least[beside])
    return least


def _decode_knots(features: StepFeatures) -> Int64:
    """Where the table of decode_context bends: int64, ascending from 0, 2 and more."""
    most = max(1, int(features.decode_context.max()))
    kept = (knot for knot in _DECODE_KNOTS if knot * _LAST_CONTEXT <= most)
    return np.array([*kept, most], np.int64)


def _token_knots(features: StepFeatures, tokens: Int64, graph_tokens: Sequence[int]) -> Int64:
    """Where the table of tokens may bend: int64, ascending, 2 and more, about _MOST_KNOTS at most.

    These are the sizes of steps of one chunk or of decode items alone, so that each knot has a
    sample that hardly anything else enters into. Neighbours stay knots however close they are:
    where the engine changes from graphs to launches, or from one kernel to another, time jumps.

    Args:
        features: n steps.
        tokens: int64[n], at which the table is to be read for them.
        graph_tokens: to which steps with prefill are padded.
    """
    f = features
    alone = (f.prefill_tokens == 0) | ((f.prefill_requests == 1) & (f.decode_tokens == 0))
    sizes = np.unique(tokens[alone])
    if len(sizes) < 2:
        sizes = np.unique(tokens)
    knots = sizes[may_be_knots(sizes)]
    padded = np.isin(knots, graph_tokens)  # all that steps of few tokens are ever read at
    others, most = knots[~padded], max(2, _MOST_KNOTS - int(padded.sum()))
    if len(others) > most:
        others = others[np.linspace(0, len(others) - 1, most).round().astype(np.int64)]
    knots = np.union1d(knots[padded], others)
    return knots if len(knots) > 1 else np.array([sizes[0], max(sizes[-1], sizes[0] + 1)])


def _rises(tokens: Int64, knots: Int64) -> Float64:
    """How much of the rise to each knot steps have: float64[n, knots].

    The first column is the value at the first knot, which all have; beyond the last knot the last
    rise goes on.
    """
    share = (tokens[:, None] - knots[:-1]) / np.diff(knots)
    share[:, :-1] = np.minimum(share[:, :-1], 1.0)
    return np.hstack([np.ones((len(tokens), 1)), np.maximum(share, 0.0)])
