"""Which experts tokens choose, and what that makes of a mixture's time.

Tables hold mixtures measured at tokens, experts that any of them chose, and tokens of the expert
that most of them chose: with all experts alike, with some liked more, and with a part of them never
chosen. Time follows first of all the weights that are read, hence the experts that are chosen;
beyond that, a bit, the longest queue. So at each number of tokens the time relative to that of even
choice is fitted as 1 + active * (A / A_even - 1) + largest * ln(L / L_even).

How uneven a step's choice is, nobody knows before it is made. It is *assumed*: the n-th of the
experts of a layer is liked as 1 / n ** skew, another order in each layer, each token alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.composition.kernel_file import Series

Float64 = NDArray[np.float64]
Sizes = tuple[int, ...]

_HELD: Final = 0.1  # how firmly `largest` is held near 0, where points hardly tell
_LEAST_FACTOR: Final = 0.05
_ROUNDS: Final = 60  # of halving, until a float64 has no more digits


class Chosen(NamedTuple):
    """What tokens are expected to choose in a layer.

    Attributes:
        active: experts that any of them chooses.
        largest: tokens of the one that most of them choose.
    """

    active: Float64
    largest: Float64


def expected_choice(experts: int, top_k: int, tokens: Float64, skew: float) -> Chosen:
    """What tokens choose, each `top_k` experts, the n-th liked as 1 / n ** skew.

    Args:
        experts: of a layer.
        top_k: of them that a token chooses.
        tokens: float64[n].
        skew: 0: all experts are alike.
    """
    share = chances(experts, top_k, skew)[:, None]
    active = np.sum(1.0 - (1.0 - share) ** tokens, axis=0)
    # Of the n most liked experts one has as many as the largest of n draws would.
    ranks = np.arange(1, experts + 1)
    lucky = np.array([NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) for n in ranks.tolist()])
    spread = np.sqrt(tokens * share * (1.0 - share))
    largest = np.max(tokens * share + lucky[:, None] * spread, axis=0)
    return Chosen(np.maximum(active, top_k), np.clip(largest, 1.0, tokens))


def chances(experts: int, top_k: int, skew: float) -> Float64:
    """How likely a token is to choose each expert: float64[experts], descending; sums to `top_k`.

    Experts are drawn one after the other without putting back, which is as good as each being
    chosen within the same time, at its own rate.
    """
    if top_k >= experts:
        return np.ones(experts)
    rates = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    low, high = 0.0, experts * float(experts) ** skew * 50.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if float(np.sum(1.0 - np.exp(-middle * rates))) < top_k:
            low = middle
        else:
            high = middle
    return np.asarray(1.0 - np.exp(-high * rates), np.float64)


class _Effects(NamedTuple):
    """What uneven choice does at ascending numbers of tokens, float64[n] each."""

    tokens: Float64
    active: Float64
    largest: Float64


class ExpertChoice:
    """How uneven choice changes the time of a mixture.

    Args:
        series: of one op.
    """

    def __init__(self, series: Iterable[Series]) -> None:
        fitted = {each.sizes: _effects(each) for each in series}
        self._effects = {sizes: found for sizes, found in fitted.items() if len(found.tokens)}

    def factor(self, sizes: Sizes, tokens: Float64, skew: float) -> Float64:
        """Time of a mixture as a multiple of that with even choice: float64[n].

        Sizes that were not measured are taken for the most similar ones.
        """
        if not self._effects or skew == 0.0:
            return np.ones(len(tokens))
        effects = self._effects[min(self._effects, key=lambda other: _distance(sizes, other))]
        experts, top_k, *_ = sizes
        even, uneven = (expected_choice(experts, top_k, tokens, each) for each in (0.0, skew))
        at, places = np.log(np.maximum(tokens, 1.0)), np.log(effects.tokens)
        active = np.interp(at, places, effects.active) * (uneven.active / even.active - 1.0)
        largest = np.interp(at, places, effects.largest) * np.log(uneven.largest / even.largest)
        return np.asarray(np.maximum(1.0 + active + largest, _LEAST_FACTOR), np.float64)


def _distance(sizes: Sizes, other: Sizes) -> tuple[float, Sizes]:
    logs = np.log(np.array(sizes, np.float64) / np.array(other, np.float64))
    return float(np.sum(logs**2)), other


def _effects(series: Series) -> _Effects:
    """Where several choices were measured of the same tokens."""
    by_tokens: dict[int, list[tuple[float, float, float]]] = {}
    for (tokens, active, largest), ns in zip(series.points, series.ns, strict=True):
        by_tokens.setdefault(tokens, []).append((active, largest, ns))
    found = []
    for tokens in sorted(by_tokens):
        active, largest, ns = np.array(by_tokens[tokens]).T
        if len(ns) < 3:
            continue
        even = int(np.lexsort((-largest, active))[-1])
        columns = np.column_stack(
            [active / active[even] - 1.0, np.log(largest / largest[even])],
        )
        held = np.vstack([columns, [[0.0, _HELD]]])
        effects = np.linalg.lstsq(held, np.append(ns / ns[even] - 1.0, 0.0), rcond=None)[0]
        found.append((float(tokens), *effects.tolist()))
    return _Effects(*np.array(found, np.float64).reshape(-1, 3).T)
