"""Tables that are read between their places, by the same operations everywhere."""

from __future__ import annotations

from collections.abc import Sequence


def interpolated(place: float, at: Sequence[float], values: Sequence[float]) -> float:
    """A table's value, linear between ascending places and constant outside."""
    if place <= at[0]:
        return values[0]
    for index in range(1, len(at)):
        if place < at[index]:
            share = (place - at[index - 1]) / (at[index] - at[index - 1])
            return values[index - 1] + (values[index] - values[index - 1]) * share
    return values[-1]
