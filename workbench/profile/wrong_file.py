"""What is wrong with a file that was to be read as JSON, in words for whoever gave it."""

from __future__ import annotations

import json
import zlib
from typing import Final

WRONG: Final = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError,
    RecursionError, zlib.error,
)  # fmt: skip
"""What reading someone else's data raises."""


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
