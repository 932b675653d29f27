"""The columns of a batch strip: what the steps up to the cursor did, a column for each few."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.player import Player
from workbench.tui.store.step_log import StepLog

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

NS_PER_MS: Final = 1e6
MEANS: Final = (
    "prefill_tokens",
    "hit_tokens",
    "decode_requests",
    "period_ns",
    "running",
    "waiting",
    "cached_pages",
)
PEAKS: Final = ("prefill_tokens", "decode_requests", "period_ns")
SUMS: Final = ("retracted", "evicted_pages")


@dataclass(frozen=True, slots=True)
class StripWindow:
    """A stretch of columns, oldest first; arrays have an entry per column.

    Attributes:
        first, last: int64, positions of the first step of each column, and after its last.
        heaviest: int64, position of the step with most tokens; -1 in a column without steps.
        mean: series -> float64, per step of the column.
        peak: series -> int64, the most of any step of the column.
        total: series -> int64, over all steps of the column.
        start_ns, end_ns: what the window spans.
        column_ns: how long each column is, where columns are equally long; else 0.
    """

    first: Int64
    last: Int64
    heaviest: Int64
    mean: dict[str, Float64]
    peak: dict[str, Int64]
    total: dict[str, Int64]
    start_ns: int
    end_ns: int
    column_ns: int

    def __len__(self) -> int:
        return len(self.first)


def strip_window(player: Player, width: int) -> StripWindow | None:
    """The `width` columns, or fewer, that end with the cursor; None while there is no step."""
    if player.empty or width < 1:
        return None
    return window_at(player.steps, player.position, width, player.zoom, player.by_time)


def window_at(
    steps: StepLog, position: int, width: int, zoom: int, by_time: bool = False
) -> StripWindow:
    """As `strip_window`, for any steps; the column of `position` is the last."""
    return (_of_time if by_time else _of_steps)(steps, position, width, zoom)


def _of_steps(steps: StepLog, position: int, width: int, zoom: int) -> StripWindow:
    last_block = position >> zoom
    bounds = (zoom, last_block - width + 1, last_block + 1)
    blocks = {name: steps.blocks(name, *bounds) for name in {*MEANS, *PEAKS, *SUMS, "tokens"}}
    tokens = blocks["tokens"]
    number = np.arange(tokens.first, tokens.first + len(tokens))
    first = np.maximum(number << zoom, steps.first)
    last = np.minimum((number + 1) << zoom, steps.end)
    return StripWindow(
        first=first,
        last=last,
        heaviest=tokens.argmax,
        mean={name: blocks[name].mean for name in MEANS},
        peak={name: blocks[name].max for name in PEAKS},
        total={name: blocks[name].sum for name in SUMS},
        start_ns=steps.at(int(first[0]))["plan_ns"],
        end_ns=steps.at(int(last[-1]) - 1)["end_ns"],
        column_ns=0,
    )


def _of_time(steps: StepLog, position: int, width: int, zoom: int) -> StripWindow:
    column_ns = _column_ns(steps) << zoom
    end = steps.at(position)["end_ns"] // column_ns + 1
    edges = np.arange(max(end - width, 0), end + 1) * column_ns
    at = np.searchsorted(steps.column("end_ns"), edges)  # a step belongs where it ends
    first, last = at[:-1], at[1:]
    low, high = int(at[0]), int(at[-1])
    filled = last > first

    def reduce(name: str, how: np.ufunc) -> Int64:
        found = np.zeros(len(first), np.int64)
        if high > low:
            values = steps.column(name)[low:high].astype(np.int64)
            found[filled] = how.reduceat(values, first[filled] - low)
        return found

    count = np.maximum(last - first, 1)
    return StripWindow(
        first=first + steps.first,
        last=last + steps.first,
        heaviest=_heaviest(steps, first, filled, low, high),
        mean={name: reduce(name, np.add) / count for name in MEANS},
        peak={name: reduce(name, np.maximum) for name in PEAKS},
        total={name: reduce(name, np.add) for name in SUMS},
        start_ns=int(edges[0]),
        end_ns=int(edges[-1]),
        column_ns=column_ns,
    )


def _heaviest(
    steps: StepLog, first: Int64, filled: NDArray[np.bool_], low: int, high: int
) -> Int64:
    found = np.full(len(first), -1)
    if high > low:
        tokens = steps.column("tokens")[low:high]
        # one key per step: more tokens win, then the earlier step
        key = tokens * (high - low) + np.arange(high - low)[::-1]
        best = np.maximum.reduceat(key, first[filled] - low)
        found[filled] = steps.first + high - 1 - best % (high - low)
    return found


def _column_ns(steps: StepLog) -> int:
    """A round number of ns close to what a step takes."""
    span = int(steps.column("period_ns").sum()) / max(len(steps), 1)
    return round_up(max(span, 1.0))


def round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, ... that is not below a value."""
    if value <= 1:
        return 1
    power = 10 ** floor(log10(value))
    return int(next(power * m for m in (1, 2, 5, 10) if power * m >= value * (1 - 1e-12)))
