"""Randomness by name instead of by turn.

A draw is a function of its key alone, so removing an operation from a run changes no draw of the
operations that stay. That is what lets a failing run be shrunk.
"""

from __future__ import annotations

from typing import Final

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_BITS: Final = 32


def draw(*key: int) -> int:
    """32 bits that are a function of the key, in every process."""
    return hash(key) * _MULTIPLIER >> 24 & 0xFFFFFFFF


def chance(probability: float, *key: int) -> bool:
    """True with this probability over keys."""
    return draw(*key) < probability * (1 << _BITS)
