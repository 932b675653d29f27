"""The tables of decode steps that run as a CUDA Graph, straight from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulator.cost_model import Int64, StepFeatures
from simulator.curves import Curve
from simulator.fitting.base import LAST_INTERVAL, Float64, Steps, may_be_knots
from simulator.profile import DecodeTable, ProfileError

_FEWEST_OF_ROWS: Final = 5  # steps of a graph that tell what idle rows take off
_MOST_OF_ROWS: Final = 0.3  # of a step's time, all that were idle in any
_MOST_OF_GRAPH: Final = 0.9  # of it, all rows of the graph
_TOLD: Final = 2.0  # times its standard error: what is less is noise
_EVEN: Final = 6.0  # times the mean context: no request of a usual batch has a longer one


@dataclass(frozen=True, slots=True)
class GraphKnots:
    """What a decode table is made of.

    Attributes:
        graph_batch: whose.
        context: int64[n], ascending.
        ns: float64[n], median time at each, with what idle rows take off.
        weights: float64[n], how often each was measured.
        idle_row_ns: that each of `idle_rows` takes off.
        steps: that these were made of.
        others: steps of the graph that are no knots.
    """

    graph_batch: int
    context: Int64
    ns: Float64
    weights: Float64
    idle_row_ns: float
    steps: Steps
    others: Steps

    @classmethod
    def of(cls, graph_batch: int, steps: Steps, others: Steps) -> GraphKnots:
        """The knots that steps of a graph make."""
        idle = idle_rows(steps.features).astype(np.float64)
        idle_row_ns = _idle_row_ns(graph_batch, steps.features.decode_context, steps.ns, idle)
        full_ns = steps.ns + idle_row_ns * idle
        contexts, knot = np.unique(steps.features.decode_context, return_inverse=True)
        kept = np.flatnonzero(may_be_knots(contexts))
        return cls(
            graph_batch,
            contexts[kept],
            np.array([np.median(full_ns[knot == index]) for index in kept]),
            np.array([steps.repeats[knot == index].sum() for index in kept], np.float64),
            idle_row_ns,
            steps,
            others,
        )

    def curve(self) -> Curve:
        """The table of them."""
        return Curve(self.context.tolist(), ascending(self.ns, self.weights).tolist())

    def ns_of(self, steps: Steps) -> Float64:
        """What they say of steps of the graph: float64[n]."""
        full_ns = self.curve().column(steps.features.decode_context)
        return full_ns - self.idle_row_ns * idle_rows(steps.features)

    def without(self, context: int) -> tuple[GraphKnots, Steps]:
        """(what they would be without the steps of a context, these steps)."""
        left_out = self.steps.features.decode_context == context
        others = GraphKnots.of(self.graph_batch, self.steps.at(~left_out), self.others)
        return others, self.steps.at(left_out)


def decode_tables(graphs: Sequence[GraphKnots]) -> Iterator[DecodeTable]:
    """The tables of those graphs that have one; the others lie between their neighbours."""
    tabled = [knots for knots in graphs if len(knots.context) > 1]
    if graphs and not tabled:
        raise ProfileError(
            f"graph batch {graphs[0].graph_batch} was measured at one context, its table needs two"
            f" that differ by {LAST_INTERVAL - 1:.0%}"
        )
    for knots in tabled:
        yield DecodeTable(
            graph_batch=knots.graph_batch,
            context=tuple(knots.context.tolist()),
            ns=tuple(ascending(knots.ns, knots.weights).tolist()),
            idle_row_ns=knots.idle_row_ns,
        )


def knots_by_graph(steps: Steps) -> Iterator[GraphKnots]:
    """The knots of each graph batch, ascending."""
    for graph_batch in np.unique(steps.features.graph_batch).tolist():
        of_graph = steps.at(steps.features.graph_batch == graph_batch)
        typical = _are_typical(of_graph.features)
        if len(np.unique(of_graph.features.decode_context[typical])) < 2:
            typical[:] = True
        yield GraphKnots.of(graph_batch, of_graph.at(typical), of_graph.at(~typical))


def idle_rows(f: StepFeatures) -> Int64:
    """Rows of each step's graph without a request that are like another such row: int64[n]."""
    alike: Int64 = np.maximum(f.graph_batch - f.decode_requests - 1, 0)
    return alike


def _idle_row_ns(graph_batch: int, context: Int64, ns: Float64, idle: Float64) -> float:
    """What each idle row takes off: so much that steps lie on lines between their neighbours.

    Args:
        graph_batch: rows of the graph.
        context: int64[n], of steps of one graph.
        ns: float64[n], what they take.
        idle: float64[n], `idle_rows` of each.
    """
    at = np.unique(context, return_index=True)[1]
    context, ns, idle = context[at].astype(np.float64), ns[at], idle[at]
    if len(context) < _FEWEST_OF_ROWS:
        return 0.0
    share = (context[1:-1] - context[:-2]) / (context[2:] - context[:-2])
    beside = [column[:-2] + share * (column[2:] - column[:-2]) for column in (ns, idle)]
    above_ns, more_idle = ns[1:-1] - beside[0], idle[1:-1] - beside[1]
    if not more_idle.any():
        return 0.0
    told = float(more_idle @ more_idle)
    found = -float(above_ns @ more_idle) / told
    off_ns = above_ns + found * more_idle
    if found < _TOLD * np.sqrt(float(off_ns @ off_ns) / (len(off_ns) - 1) / told):
        return 0.0
    most = min(_MOST_OF_ROWS / max(1.0, float(idle.max())), _MOST_OF_GRAPH / graph_batch)
    return min(max(0.0, found), most * float(ns.min()))


def _are_typical(f: StepFeatures) -> NDArray[np.bool_]:
    """Which steps of one graph tell how it depends on context alone.

    Those without a request that is much longer than the others. With one they take the same time
    if the model is right; between knots they would bend the table if it is not.
    """
    typical: NDArray[np.bool_] = (
        f.decode_max_context * f.decode_requests <= _EVEN * f.decode_context
    )
    return typical


def ascending(values: Float64, weights: Float64) -> Float64:
    """The nearest values that do not descend, by weighted least squares (pool adjacent violators).

    Args:
        values: float64[n].
        weights: float64[n], above 0.
    """
    pools: list[tuple[float, float, int]] = []  # (mean, weight, how many)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = value, weight, 1
        while pools and pools[-1][0] > pool[0]:
            pool = _pooled(pools.pop(), pool)
        pools.append(pool)
    return np.concatenate([np.full(count, mean) for mean, _, count in pools])


def _pooled(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> tuple[float, float, int]:
    weight = one[1] + other[1]
    return (one[0] * one[1] + other[0] * other[1]) / weight, weight, one[2] + other[2]
