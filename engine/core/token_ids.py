"""Where a request's token ids come from: real ids, or synthetic ones made only when looked at."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

_TABLE_MASK = 0xFFFF  # the table of ids has 2**16 places
_HASH_MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: neighbouring keys land far apart
_HASH_SHIFT = 48  # takes the upper 16 of 64 bits


class TokenSource(Protocol):
    """Token ids of one request: its prompt, then what it has generated."""

    def ids(self, start: int, stop: int) -> Int32:
        """int32[stop - start] token ids of positions [start, stop)."""
        ...


class TokenBuffer:
    """Real token ids that grow as they are generated."""

    __slots__ = ("_ids", "_length")

    def __init__(self, prompt_ids: NDArray[np.integer] | list[int], capacity: int = 0) -> None:
        prompt = np.asarray(prompt_ids, np.int32)
        self._length = len(prompt)
        self._ids = np.empty(max(capacity, len(prompt), 1), np.int32)
        self._ids[: len(prompt)] = prompt

    def __len__(self) -> int:
        return self._length

    def append(self, token_id: int) -> None:
        """Add one generated id; the buffer doubles when it is full."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._length] = token_id
        self._length += 1

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._length = min(self._length, length)

    def ids(self, start: int, stop: int) -> Int32:
        if stop > self._length:
            raise IndexError(f"token ids [{start}, {stop}) asked for, {self._length} known")
        return self._ids[start:stop]


class SyntheticTokens:
    """Deterministic ids for text that exists only as `(key, length)` segments.

    The first id of a segment is its key modulo the vocabulary, so segments of different keys part
    at their first token as long as there are fewer keys than vocabulary entries. The others are
    copied from one table of arbitrary ids, from a place that depends on the key.

    Args:
        keys: identity of each segment's text.
        lengths: tokens of each, at least 0.
        vocab_size: ids are below it; at least 2.
    """

    __slots__ = ("_ends", "_keys", "_vocab_size")

    def __init__(self, keys: list[int], lengths: list[int], vocab_size: int) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {vocab_size}")
        self._keys = keys
        self._ends = list(accumulate(lengths, initial=0))
        self._vocab_size = vocab_size

    def ids(self, start: int, stop: int) -> Int32:
        ends = self._ends
        if stop > ends[-1]:
            raise IndexError(f"token ids [{start}, {stop}) asked for, {ends[-1]} known")
        out = np.empty(max(0, stop - start), np.int32)
        table = _arbitrary_ids(self._vocab_size)
        segment, at = bisect_right(ends, start), start
        while at < stop:
            begin, end, key = ends[segment - 1], ends[segment], self._keys[segment - 1]
            if end > stop:
                end = stop
            place = (key * _HASH_MULTIPLIER >> _HASH_SHIFT) + at - begin & _TABLE_MASK
            if end - at > _TABLE_MASK:
                end = at + _TABLE_MASK
            out[at - start : end - start] = table[place : place + end - at]
            if at == begin < end:
                out[at - start] = key % self._vocab_size
            at = end
            if at == ends[segment]:
                segment += 1
        return out


@cache
def _arbitrary_ids(vocab_size: int) -> Int32:
    """int32[2 * (_TABLE_MASK + 1)] ids below `vocab_size`; the second half repeats the first."""
    index = np.arange(_TABLE_MASK + 1, dtype=np.uint64)
    mixed = (index + np.uint64(1)) * np.uint64(_HASH_MULTIPLIER)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)  # from splitmix64 (Steele, Lea, Flood, 2014)
    ids = ((mixed >> np.uint64(32)) % np.uint64(vocab_size)).astype(np.int32)
    table = np.concatenate([ids, ids])
    table.flags.writeable = False
    return table
