"""Text that has to fit a number of cells."""

from __future__ import annotations


def shortened(text: str, room: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `room` cells."""
    return text if len(text) <= room else text[: max(0, room - 1)] + "…" * (room > 0)
