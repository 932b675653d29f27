"""How much of a text is copied from the training text: spans of 50 tokens or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SPAN_TOKENS: Final = 50


class TrainingText:
    """The training text, to be searched for spans; 400 MB for 48 million tokens."""

    def __init__(self, tokens: NDArray[np.uint16]) -> None:
        self._known = _hashes(tokens)
        self._known.sort()

    def copied(self, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Tokens in copied spans, and texts that have any."""
        tokens = covered = with_span = 0
        for text in texts:
            places = self._places(np.asarray(text, np.uint16))
            inside = np.zeros(len(text), bool)
            for place in places:
                inside[place : place + SPAN_TOKENS] = True
            tokens += len(text)
            covered += int(inside.sum())
            with_span += bool(len(places))
        return {
            "texts": len(texts),
            "tokens": tokens,
            "copied_tokens": covered,
            "copied_percent": 100 * covered / tokens,
            "texts_with_a_copied_span": with_span,
        }

    def _places(self, text: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Where spans begin that are in the training text, too."""
        if len(text) < SPAN_TOKENS:
            return np.empty(0, np.int64)
        wanted = _hashes(text)
        found = np.searchsorted(self._known, wanted) % len(self._known)
        return np.flatnonzero(self._known[found] == wanted)


def _hashes(tokens: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """uint64 of each span; by chance one is among 48 million others once in 4e11 times."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    count = len(tokens) - SPAN_TOKENS + 1
    hashes = np.zeros(count, np.uint64)
    for offset in range(SPAN_TOKENS):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += mixed[offset : offset + count]
    return hashes
