"""The fit of what decode items save that share their context.

One of them reads it from memory, the others may find it in the GPU's cache: the sooner, the shorter
the text is. What they save is context that costs nothing: a table, by how much each item shares,
which brings the tables of steps without shared context nearest to steps with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simulator.cost_model import Int64, sum_of_terms
from simulator.curves import DecodeCurves, SharedContext
from simulator.fit_base import Float64, Steps, nonnegative_costs
from simulator.mixed_costs import MixedCosts
from simulator.profile import DecodeTable, MixedFit, SharedFit

_KNOTS: Final = (0, 1024, 8192)  # tokens that an item shares; more would be fitted to noise
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
    """The table whose relative errors are least, as far as time is linear in the context."""
    f = steps.features
    whole_ns = predictions.ns(steps, f.decode_context)
    least_ns = predictions.ns(steps, f.decode_context - f.shared_context)
    token_ns = (whole_ns - least_ns) / f.shared_context
    each = f.shared_context / f.decode_requests
    parts = np.clip(each[:, None] - np.array(_KNOTS[:-1]), 0, np.diff(_KNOTS))
    columns = parts * (token_ns * f.decode_requests)[:, None]
    slopes = nonnegative_costs(columns, np.maximum(whole_ns - steps.ns, 0.0), 1 / steps.ns)
    saved = np.cumsum(np.minimum(slopes, 1.0) * np.diff(_KNOTS))
    return SharedFit(shared=_KNOTS, saved=(0.0, *saved.tolist()))
