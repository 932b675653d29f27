"""Percentages on the command line."""

from __future__ import annotations

from workbench.cli.failures import UsageError


def parse_percent(option: str, text: str) -> float:
    """`"5%"` or `"5"` as 5.0.

    Raises:
        UsageError: it is no percentage from 0 on.
    """
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < float("inf"):
        raise UsageError(f"{option}: '{text}' is no percentage; for example 5%")
    return percent
