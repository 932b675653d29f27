"""An op on its operands, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Launch = Callable[[int], object]
"""Runs an op; the argument says for which time, and so on which part of the stores."""


class Work(NamedTuple):
    """An op on its operands.

    Attributes:
        launch: runs it.
        read_bytes: of the stores, each time.
        moved_bytes: of activations, about; of copies all that go through the slower side.
        flops: of its products, about.
    """

    launch: Launch
    read_bytes: int = 0
    moved_bytes: int = 0
    flops: int = 0
