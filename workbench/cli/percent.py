"""Percentages on the command line."""

from __future__ import annotations

import math

from workbench.cli.failures import UsageError


def parse_percent(option: str, text: str, most: float = math.inf) -> float:
    """`"5%"` or `"5"` as 5.0.

    Raises:
        UsageError: it is no finite percentage from 0 to `most`.
    """
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not (0 <= percent <= most and math.isfinite(percent)):
        limits = "" if most == math.inf else f" from 0 to {most:g}"
        raise UsageError(f"{option}: '{text}' is no percentage{limits}; for example 5%")
    return percent
