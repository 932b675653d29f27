"""Kernel tables as functions: what an op takes at sizes and points that may not have been measured.

Along a series time is linear between points and goes on beyond the last one with the last slope.
Between series it is the *efficiency* that is read off, not the time: an op takes, by what it reads
and computes, a time that anybody can work out (`_ideal_ns`), times a factor that changes slowly
with its sizes. The factor of sizes that were not measured is the mean of the nearest ones'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulator.composition.kernel_file import Series
from simulator.profile import ProfileError

Float64 = NDArray[np.float64]
Sizes = tuple[int, ...]

# The scale of efficiencies. Any GPU's would do: they are divided by it and multiplied by it again.
_START_NS: Final = 2000.0
_BYTES_PER_NS: Final = 4200.0
_FLOPS_PER_NS: Final = 7e5
_HOST_IS_SLOWER: Final = 80.0  # its memory, to reach, than the GPU's own
_MIXTURES: Final = ("moe_mlp", "moe_layer")
_NEAREST: Final = 4  # measured sizes that tell of others
_SIMILAR: Final = 1.5  # times the nearest sizes, within which others are read off


class RowCurves:
    """Ops whose time depends on rows: tokens, or rows of logits.

    Args:
        series: of one op.
    """

    def __init__(self, series: Iterable[Series]) -> None:
        self._curves: dict[Sizes, tuple[Float64, Float64]] = {}
        for each in series:
            self._op = each.op
            self._curves[each.sizes] = _rows_and_ns(each)

    def ns(self, sizes: Sizes, rows: Float64) -> Float64:
        """float64[n], time at each number of rows; it does not descend as rows ascend."""
        known = self._curves.get(sizes)
        if known is not None:
            return linear(rows, *known)
        near = self._near(sizes)
        grid = np.unique(np.concatenate([self._curves[other][0] for other, _ in near]))
        logs = np.zeros(len(grid))
        for other, weight in near:
            factors = linear(grid, *self._curves[other]) / _ideal_ns(self._op, other, grid)
            logs += weight * np.log(factors)
        return linear(rows, grid, monotone(_ideal_ns(self._op, sizes, grid) * np.exp(logs)))

    @property
    def rows(self) -> Float64:
        """Ascending numbers of rows at which any sizes were measured."""
        return np.unique(np.concatenate([rows for rows, _ in self._curves.values()]))

    def covers(self, sizes: Sizes) -> bool:
        """Whether sizes were measured, or lie among some that were."""
        if sizes in self._curves:
            return True
        measured = np.log(1.0 + np.array(list(self._curves), np.float64))
        place = np.log(1.0 + np.array(sizes, np.float64))
        margin = math.log(_SIMILAR)
        return bool(
            np.all(place <= measured.max(axis=0) + margin)
            and np.all(place >= measured.min(axis=0) - margin)
        )

    def _near(self, sizes: Sizes) -> list[tuple[Sizes, float]]:
        """The nearest measured sizes, and how much each says."""
        place = np.log(1.0 + np.array(sizes, np.float64))
        others = [
            (float(np.sum((np.log(1.0 + np.array(other)) - place) ** 2)), other)
            for other in self._curves
        ]
        nearest = sorted(others)[:_NEAREST]
        weights = [1.0 / (1e-6 + distance) for distance, _ in nearest]
        total = sum(weights)
        return [(other, weight / total)
                for (_, other), weight in zip(nearest, weights, strict=True)]  # fmt: skip


class DecodeAttention:
    """Attention of one token of each of some requests, in one layer.

    Args:
        series: by heads; each of some numbers of requests at two contexts at least.
    """

    def __init__(self, series: Iterable[Series]) -> None:
        self._tables: dict[Sizes, dict[int, tuple[Float64, Float64]]] = {}
        for each in series:
            table: dict[int, list[tuple[int, float]]] = {}
            for (requests, context), ns in zip(each.points, each.ns, strict=True):
                table.setdefault(requests, []).append((context, ns))
            self._tables[each.sizes] = {
                requests: _knots(table[requests]) for requests in sorted(table)
            }

    def ns(self, sizes: Sizes, requests: int, contexts: Float64) -> Float64:
        """float64[n], time of so many requests that have each of these contexts in total.

        Heads that were not measured take what the most similar ones take over as many bytes.
        """
        known, scale = self._similar(sizes)
        table = self._tables[known]
        measured = list(table)
        at = int(np.searchsorted(measured, requests))
        contexts = contexts * scale
        if at < len(measured) and measured[at] == requests:
            return linear(contexts, *table[requests])
        if at in (0, len(measured)):
            return linear(contexts, *table[measured[min(at, len(measured) - 1)]])
        low, high = measured[at - 1], measured[at]
        low_ns = linear(contexts * (low / requests), *table[low])
        high_ns = linear(contexts * (high / requests), *table[high])
        share = (requests - low) / (high - low)
        mixed: Float64 = low_ns + share * (high_ns - low_ns)
        return mixed

    def most(self, sizes: Sizes) -> tuple[int, int, int]:
        """(requests, context in total, of one) up to which these heads or similar were measured."""
        known, scale = self._similar(sizes)
        most = {requests: float(contexts[-1]) for requests, (contexts, _) in
                self._tables[known].items()}  # fmt: skip
        longest = max(context / requests for requests, context in most.items())
        return max(most), int(max(most.values()) / scale), int(longest / scale)

    def covers(self, sizes: Sizes) -> bool:
        """Whether these heads were measured."""
        return sizes in self._tables

    def _similar(self, sizes: Sizes) -> tuple[Sizes, float]:
        """Measured heads, and how many bytes a token of these has as a multiple of theirs."""
        if sizes in self._tables:
            return sizes, 1.0
        nearest = similar_heads(sizes, self._tables)
        return nearest, (sizes[1] * sizes[2]) / (nearest[1] * nearest[2])


def similar_heads(sizes: Sizes, measured: Iterable[Sizes]) -> Sizes:
    """The measured (heads, kv_heads, head_dim) that are most like some others."""

    def distance(other: Sizes) -> tuple[float, Sizes]:
        group = math.log((sizes[0] / sizes[1]) / (other[0] / other[1]))
        rest = math.log(sizes[1] / other[1]), math.log(sizes[2] / other[2])
        return 4 * group**2 + sum(part**2 for part in rest), other

    return min(measured, key=distance)


def linear(places: Float64, at: Float64, values: Float64) -> Float64:
    """Linear between knots: flat before the first, beyond the last with its slope."""
    inside = np.interp(places, at, values)
    if len(at) < 2:
        return np.asarray(inside, np.float64)
    slope = (values[-1] - values[-2]) / (at[-1] - at[-2])
    beyond: Float64 = inside + np.maximum(places - at[-1], 0.0) * slope
    return beyond


def monotone(values: Float64) -> Float64:
    """Values that do not descend: halfway between the least that are above and the most below."""
    above = np.maximum.accumulate(values)
    below = np.minimum.accumulate(values[::-1])[::-1]
    return (above + below) / 2


def of_op(series: Sequence[Series], op: str) -> list[Series]:
    """The series of one op.

    Raises:
        ProfileError: there is none.
    """
    found = [each for each in series if each.op == op]
    if not found:
        raise ProfileError(f"the kernel tables have no {op}")
    return found


def _rows_and_ns(series: Series) -> tuple[Float64, Float64]:
    """Rows and times of a series; of experts, where each token chooses among all of them."""
    if series.op not in _MIXTURES:
        return _knots([(point[0], ns) for point, ns in zip(series.points, series.ns, strict=True)])
    even: dict[int, tuple[tuple[int, int], float]] = {}
    for (tokens, active, largest), ns in zip(series.points, series.ns, strict=True):
        spread = active, -largest
        if tokens not in even or spread > even[tokens][0]:
            even[tokens] = spread, ns
    return _knots([(tokens, ns) for tokens, (_, ns) in even.items()])


def _knots(points: Sequence[tuple[int, float]]) -> tuple[Float64, Float64]:
    ordered = sorted(points)
    at = np.array([place for place, _ in ordered], np.float64)
    return at, monotone(np.array([ns for _, ns in ordered], np.float64))


def _ideal_ns(op: str, sizes: Sizes, rows: Float64) -> Float64:
    """What an op takes if nothing but bytes and operations counts."""
    read, moved, flops = _work(op, sizes)
    if op in _MIXTURES:
        experts, top_k, hidden, width = sizes
        visited = experts * (1.0 - (1.0 - top_k / experts) ** rows)
        bytes_ = 6.0 * visited * hidden * width + moved * rows
    else:
        bytes_ = read + moved * rows
    ideal: Float64 = _START_NS + np.maximum(bytes_ / _BYTES_PER_NS, flops * rows / _FLOPS_PER_NS)
    return ideal


def _work(op: str, sizes: Sizes) -> tuple[float, float, float]:
    """(bytes of weights, bytes of each row, FLOPs of each row)."""
    match op:
        case "norm" | "embed_tokens":
            return 0.0, 8.0 * sizes[0], 0.0
        case "sample":
            return 0.0, 2.0 * sizes[0], 0.0
        case "route":
            return 0.0, 8.0 * sizes[0], 0.0
        case "kv_copy":
            return 0.0, 4.0 * sizes[0], 0.0
        case "kv_to_host" | "kv_from_host":
            return 0.0, _HOST_IS_SLOWER * sizes[0], 0.0
        case "rotary_kv_write":
            heads, kv_heads, head_dim, _ = sizes
            return 0.0, 4.0 * (heads + 2 * kv_heads) * head_dim, 0.0
        case "mlp":
            hidden, width = sizes
            return 6.0 * hidden * width, 4.0 * (hidden + width), 6.0 * hidden * width
        case "projections":
            heads, kv_heads, head_dim, _, hidden = sizes
            products = 2.0 * (heads + kv_heads) * head_dim * hidden
            return 2.0 * products, 8.0 * (hidden + heads * head_dim), 2.0 * products
        case "moe_mlp" | "moe_layer":
            _, top_k, hidden, width = sizes
            return 0.0, 4.0 * top_k * (hidden + width), 6.0 * top_k * hidden * width
    out_features, inner = sizes
    return 2.0 * out_features * inner, 2.0 * (out_features + inner), 2.0 * out_features * inner
