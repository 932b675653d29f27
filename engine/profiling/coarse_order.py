"""An order of steps in which any beginning covers the whole range, for who has little time.

Where a profile's range ends, predictions count as extrapolated. So the largest steps of each kind
come first, and then always the one that is least like all before it (the farthest-first traversal
of Rosenkrantz, Stearns and Lewis, 1977), by how many times larger or smaller one is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.profiling.step_shapes import StepDesign


def coarse_first(designs: Sequence[StepDesign]) -> list[StepDesign]:
    """The same steps: those that bound the range, then each as far as can be from all before."""
    if not designs:
        return []
    sizes = np.array([_sizes(design) for design in designs], np.float64)
    places = np.log2(1 + sizes)
    found = list(dict.fromkeys(_largest(sizes)))
    distance = np.min([_distances(places, at) for at in found], axis=0)
    while len(found) < len(designs):
        distance[found] = -1.0  # two designs may have the same sizes
        found.append(int(distance.argmax()))
        distance = np.minimum(distance, _distances(places, found[-1]))
    return [designs[at] for at in found]


def _largest(sizes: np.ndarray) -> list[int]:
    """Rows that together hold the largest value of each column, the busiest row first."""
    shares = sizes / np.maximum(sizes.max(axis=0), 1)
    left, found = np.ones(sizes.shape[1], np.bool_), []
    while left.any():
        reached = (shares >= 1) | (sizes.max(axis=0) == 0)
        row = int(np.argmax((reached & left).sum(axis=1) + shares.mean(axis=1) / 2))
        found.append(row)
        left &= ~reached[row]
    return found


def _distances(places: np.ndarray, at: int) -> np.ndarray:
    """Of all rows to one: float64[n]."""
    return np.abs(places - places[at]).sum(axis=1)


def _sizes(design: StepDesign) -> tuple[int, ...]:
    """What a step's time depends on."""
    chunks, decodes = design.chunks, design.decodes
    return (
        sum(chunk.tokens for chunk in chunks),
        len(chunks),
        sum(chunk.context for chunk in chunks),
        sum(c.tokens * c.context + c.tokens * (c.tokens + 1) // 2 for c in chunks),
        max((chunk.tokens + chunk.context for chunk in chunks), default=0),
        len(decodes),
        sum(decodes),
        max(decodes, default=0),
        design.shared * max(0, len(decodes) - design.groups),
        len(decodes) + (len(chunks) if design.samples else 0),
    )
