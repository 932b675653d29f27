"""The fit of what a context costs that several decode items of a step share.

One of them reads it from memory, the others find it in the GPU's cache. What a token costs those
others, as a share of one that is read alone, is the one number that brings the tables of steps
without shared context nearest to steps with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from simulator.calibrated import DecodeCurves, MixedCosts, attended_context
from simulator.cost_model import Int64, sum_of_terms
from simulator.fit_base import Float64, Steps
from simulator.profile import DecodeTable, MixedFit

_TRIED: Final = np.linspace(0.0, 1.0, 201)  # shares; finer than any measurement tells them apart
_FEWEST: Final = 3  # steps that tell a share
_FOLDS: Final = 5


def fit_shared(
    steps: Steps, tables: Sequence[DecodeTable], mixed: MixedFit | None, graph_tokens: Sequence[int]
) -> tuple[float, Float64]:
    """(share, percent by which steps are missed that the share was not fitted to: float64[n]).

    Args:
        steps: n that share context.
        tables: of decode graphs, made of steps that do not.
        mixed: the fit of all other such steps, if there is one.
        graph_tokens: to which steps with prefill are padded.

    Returns:
        The share is 1 if there are too few steps.
    """
    curves = DecodeCurves(tables)
    costs = None if mixed is None else MixedCosts(mixed, graph_tokens)
    f = steps.features
    known = (f.prefill_tokens == 0) & (f.graph_batch > 0) & bool(curves)
    steps = steps if costs is not None else steps.at(known)
    if len(steps) < _FEWEST:
        return 1.0, np.zeros(0)
    errors = np.array([_predicted(steps, 1.0 - share, curves, costs) for share in _TRIED])
    errors = 100 * (errors / steps.ns - 1)
    fold = np.random.default_rng(0).permutation(len(steps)) % _FOLDS
    unseen = np.empty(len(steps))
    for index in np.unique(fold).tolist():
        best = np.abs(errors[:, fold != index]).mean(axis=1).argmin()
        unseen[fold == index] = errors[best, fold == index]
    return float(_TRIED[np.abs(errors).mean(axis=1).argmin()]), unseen


def _predicted(steps: Steps, saved: float, curves: DecodeCurves, costs: MixedCosts | None) -> Int64:
    """gpu_ns of all steps, if shared tokens save such a share: int64[n]."""
    f = steps.features
    features = replace(f, decode_context=attended_context(f, saved))
    graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0) & bool(curves)
    ns = np.zeros(len(steps), np.int64)
    at = replace(steps, features=features)
    if graphed.any():
        chosen = at.at(graphed).features
        ns[graphed] = sum(curves.terms(chosen.graph_batch, chosen.decode_context))
    if not graphed.all() and costs is not None:
        ns[~graphed] = sum_of_terms(costs.terms(at.at(~graphed).features))
    return ns
