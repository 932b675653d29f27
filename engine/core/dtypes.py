"""Number formats of weights, KV cache and arithmetic, by the short names used everywhere."""

from __future__ import annotations

import difflib
from typing import Final

DTYPE_BYTES: Final[dict[str, int]] = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "int8": 1}

QUANTIZED_DTYPES: Final[frozenset[str]] = frozenset({"fp8", "int8"})

SCALE_BYTES: Final = 4  # scales are fp32


class UnknownDtypeError(ValueError):
    """A number format that no weight, KV cache or GPU here has."""


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of `dtype`. Raises UnknownDtypeError for any other name."""
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        allowed = ", ".join(DTYPE_BYTES)
        raise UnknownDtypeError(f"unknown dtype {dtype!r}; allowed: {allowed}")
    return size


def did_you_mean(word: str, allowed: tuple[str, ...]) -> str:
    """A hint such as `; did you mean "h200"?`, or an empty string if nothing is close."""
    folded = {name.casefold(): name for name in allowed}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.5)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
