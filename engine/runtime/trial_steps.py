"""Made-up steps, to compile what real ones need and to measure what they cost.

They compute on the dummy page alone, so they may run beside real requests, or over a cache of a
single page.
"""

from __future__ import annotations

import numpy as np

from engine.core.request import Request
from engine.runtime.host_step import HostPrefill, HostStep

_NONE = np.empty(0, np.int32)
_NOBODY = Request(-1, 1, 1)


def trial_prefill(tokens: int, longest: int, dummy_row: int, *, context: int = 0) -> HostStep:
    """Chunks of at most `longest` tokens, each after `context` tokens, that sample one token each.

    Args:
        tokens: of the step.
        longest: of a chunk.
        dummy_row: row of the page table that points to the dummy page.
        context: tokens before each chunk; `context + longest` must fit into a row.
    """
    lengths = [longest] * (tokens // longest)
    if rest := tokens - sum(lengths):
        lengths.append(rest)
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    rows = np.full(len(lengths), dummy_row, np.int32)
    positions = [np.arange(context, context + length, dtype=np.int32) for length in lengths]
    return HostStep(
        np.zeros(tokens, np.int32),
        np.concatenate(positions),
        np.full(tokens, dummy_row, np.int32),
        HostPrefill(starts, rows, np.full(len(lengths), context, np.int32)),
        starts[1:] - 1,
        _NONE,
        _NONE,
        [(_NOBODY, 0)] * len(lengths),
    )


def trial_decode(batch: int, dummy_row: int) -> HostStep:
    """One token of each of `batch` requests."""
    rows = np.full(batch, dummy_row, np.int32)
    zeros = np.zeros(batch, np.int32)
    everybody = [(_NOBODY, 0)] * batch
    return HostStep(
        zeros, zeros, rows, None, np.arange(batch, dtype=np.int32), _NONE, _NONE, everybody
    )
