"""What is wrong with a file that was to be read as JSON, in words for whoever gave it."""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

WRONG: Final = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError,
    RecursionError, zlib.error,
)  # fmt: skip
"""What reading someone else's data raises."""

_MOST: Final = 1e24  # more than anything here is: us, bytes, rates


def checked(name: str, value: Any, *, positive: bool = False, most: float = _MOST) -> float:
    """A number of a file, which is finite and not below 0.

    Args:
        name: of the number, for the error.
        value: as it was read.
        positive: whether 0 is wrong, too.
        most: that it can be.

    Raises:
        ValueError: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value <= most and (value or not positive):
        return float(value)
    end = "on" if most == _MOST else f"to {most:g}"
    wanted = "above 0" if positive else f"from 0 {end}"
    raise ValueError(f"`{name}` is {repr(value)[:40]}, and has to be a number {wanted}")


def in_words(error: Exception) -> str:
    """One of `WRONG`, as the end of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, KeyError):
        return f"`{error.args[0]}` is missing" if error.args else "something is missing"
    if isinstance(error, TypeError | AttributeError):
        return "a value in it is of another kind than it has to be"
    return str(error)
