"""Text that has to fit a number of cells."""

from __future__ import annotations

import textwrap


def shortened(text: str, room: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `room` cells."""
    return text if len(text) <= room else text[: max(0, room - 1)] + "…" * (room > 0)


def whole_parts(text: str, room: int) -> str:
    """As many of the parts between double blanks as fit, or the beginning of the first."""
    while len(text) > room and "  " in text:
        text = text.rpartition("  ")[0]
    return shortened(text, room)


def wrapped(text: str, room: int, indent: str = "") -> list[str]:
    """The text in lines of at most `room` cells; all start as far in as the text, later ones more.

    Args:
        text: a sentence, or nothing, which is one empty line.
        room: cells; less than 1 counts as 1.
        indent: what later lines have before them.
    """
    start = text[: len(text) - len(text.lstrip())]
    if len(start) + len(indent) >= room:
        start = indent = ""
    lines = textwrap.wrap(
        text.strip(), max(room, 1), initial_indent=start, subsequent_indent=start + indent,
        break_on_hyphens=False,
    )  # fmt: skip
    return lines or [""]
