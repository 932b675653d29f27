"""Where a request's token ids come from: real ids, or synthetic ones made only when looked at."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

_STRIDE_MULTIPLIER = 0x9E3779B1  # 2**32 / golden ratio: neighbouring keys get unrelated strides


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

    Position p of a segment with key k has id `(k + p * stride(k)) % vocab_size`. The first id of a
    segment is the key itself modulo the vocabulary, so segments of different keys part at their
    first token as long as there are fewer keys than vocabulary entries.
    """

    __slots__ = ("_ends", "_keys", "_strides", "_vocab_size")

    def __init__(self, keys: NDArray[np.int64], lengths: Int32, vocab_size: int) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {vocab_size}")
        self._keys = keys % vocab_size
        self._strides = 1 + (keys * _STRIDE_MULTIPLIER % 0xFFFFFFFB) % (vocab_size - 1)
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._vocab_size = vocab_size

    def ids(self, start: int, stop: int) -> Int32:
        if stop <= start:
            return np.empty(0, np.int32)
        ends = self._ends
        if stop > ends[-1]:
            raise IndexError(f"token ids [{start}, {stop}) asked for, {ends[-1]} known")
        first = int(np.searchsorted(ends, start, "right"))
        last = int(np.searchsorted(ends, stop - 1, "right")) + 1
        begins = np.empty(last - first, np.int64)
        begins[0] = ends[first - 1] if first else 0
        begins[1:] = ends[first : last - 1]
        counts = np.minimum(ends[first:last], stop) - np.maximum(begins, start)
        position = np.arange(start, stop, dtype=np.int64)
        position -= np.repeat(begins, counts)
        position *= np.repeat(self._strides[first:last], counts)
        position += np.repeat(self._keys[first:last], counts)
        position %= self._vocab_size
        return position.astype(np.int32)
