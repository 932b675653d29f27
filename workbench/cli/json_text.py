"""Results as JSON for other programs."""

from __future__ import annotations

from typing import Any


def to_json(result: Any) -> str:
    """A result made of dataclasses, indented, with a newline at the end."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"
