"""The fit of what decode items save that share their context.

One of them reads it from memory, the others may find it in the GPU's cache: the sooner, the shorter
the text is, and it depends on how many there are, by whom a kernel is divided up. What they save is
context that costs nothing: a table by how much each item shares, times one by how many they are,
which bring the tables of steps without shared context nearest to steps with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simulator.cost_model import Int64, sum_of_terms
from simulator.curves import DecodeCurves, SharedContext
from simulator.fitting.base import Float64, Steps, nonnegative_costs
from simulator.mixed_costs import MixedCosts
from simulator.profile import DecodeTable, MixedFit, SharedFit

_KNOTS: Final = (0, 512, 1024, 2048, 8192)  # tokens that an item shares
# How firmly the second table is held at 1, where steps hardly tell: as if a difference of 0.1 were
# an error of 0.5 % of a step.
_HELD: Final = 0.05
_ROUNDING: Final = 1.0 + 1e-9  # so that nothing saves more than there is, however sums are rounded
_ROUNDS: Final = 20  # in turn for both tables
_FEWEST: Final = 6  # steps that tell what the table says
_FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class _Predictions:
    """What fits to other steps say of steps that share context.

    Attributes:
        curves: of decode graphs.
        mixed: all other steps, if anything is known of them.
    """

    curves: DecodeCurves
    mixed: MixedCosts | None

    def known(self, steps: Steps) -> Steps:
        """Those steps of which they say anything."""
        f = steps.features
        graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0) & bool(self.curves)
        return steps if self.mixed is not None else steps.at(graphed)

    def ns(self, steps: Steps, context: Int64) -> Int64:
        """gpu_ns, if decode items attended to so much: int64[n]."""
        f = steps.features
        graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0) & bool(self.curves)
        ns = np.zeros(len(steps), np.int64)
        if graphed.any():
            ns[graphed] = sum(
                self.curves.terms(
                    f.graph_batch[graphed], context[graphed], f.decode_requests[graphed]
                )
            )
        if not graphed.all() and self.mixed is not None:
            others = replace(steps, features=replace(f, decode_context=context)).at(~graphed)
            ns[~graphed] = sum_of_terms(self.mixed.terms(others.features))
        return ns


def fit_shared(
    steps: Steps, tables: Sequence[DecodeTable], mixed: MixedFit | None, graph_tokens: Sequence[int]
) -> tuple[SharedFit, Float64]:
    """(fit, percent by which steps are missed that it was not made of: float64[n]).

    Args:
        steps: n that share context.
        tables: of decode graphs, made of steps that do not.
        mixed: the fit of all other such steps, if there is one.
        graph_tokens: to which steps with prefill are padded.

    Returns:
        The fit says that nothing is saved if there are too few steps.
    """
    predictions = _Predictions(
        DecodeCurves(tables), None if mixed is None else MixedCosts(mixed, graph_tokens)
    )
    steps = predictions.known(steps.at(steps.features.decode_requests > 0))
    if len(steps) < _FEWEST:
        return SharedFit(), np.zeros(0)
    fold = np.random.default_rng(0).permutation(len(steps)) % _FOLDS
    errors = np.zeros(len(steps))
    for index in np.unique(fold).tolist():
        unseen = steps.at(fold == index)
        shared = SharedContext(_fit(steps.at(fold != index), predictions))
        predicted = predictions.ns(unseen, shared.attended(unseen.features))
        errors[fold == index] = 100 * (predicted / unseen.ns - 1)
    return _fit(steps, predictions), errors


def _fit(steps: Steps, predictions: _Predictions) -> SharedFit:
    """The tables whose relative errors are least, as far as time is linear in the context."""
    f = steps.features
    whole_ns = predictions.ns(steps, f.decode_context)
    least_ns = predictions.ns(steps, f.decode_context - f.shared_context)
    saving = np.maximum(whole_ns - steps.ns, 0.0) / steps.ns
    each = f.shared_context / f.decode_requests
    ends = np.array(_KNOTS[1:])
    # Of a longer text no larger share is saved: a sum of what is saved up to each knot alone.
    upto = np.minimum(each[:, None], ends)
    upto *= ((whole_ns - least_ns) / f.shared_context * f.decode_requests / steps.ns)[:, None]
    requests, rows = _requests_columns(f.decode_requests)
    once = _HELD * np.eye(len(requests))
    shares, times = np.ones(len(ends)), np.ones(len(requests))
    for _ in range(_ROUNDS):
        shares = _factors(upto * (rows @ times)[:, None], saving)
        columns = np.vstack([rows * (upto @ shares)[:, None], once])
        times = _factors(columns, np.append(saving, np.full(len(once), _HELD)))
    shares /= max(1.0, _ROUNDING * shares.sum() * times.max())
    saved = np.minimum(ends[:, None], ends) @ shares
    return SharedFit(
        shared=_KNOTS, saved=(0.0, *saved.tolist()), requests=requests, times=tuple(times.tolist())
    )


def _requests_columns(requests: Int64) -> tuple[tuple[int, ...], Float64]:
    """(knots of the second table, how much of each steps have: float64[n, knots])."""
    knots = np.unique(requests)
    rows = [np.interp(requests, knots, unit) for unit in np.eye(len(knots))]
    return tuple(knots.tolist()), np.column_stack(rows)


def _factors(columns: Float64, saving: Float64) -> Float64:
    """Nonnegative factors of columns, float64[n, m], that add up to savings: float64[m]."""
    return nonnegative_costs(columns, saving, np.ones(len(saving)))
