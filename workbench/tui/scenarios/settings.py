"""Values as YAML on one line, and the settings that lead from one scenario to another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z_./~][A-Za-z0-9_./~-]*")
_WORDS: Final = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"}


def one_line(value: Any) -> str:
    """A value of JSON as YAML on one line, with as few quotes as possible."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {one_line(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(one_line, value)) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if isinstance(value, str):
        return '"' + "".join(map(_in_quotes, value)) + '"'
    return json.dumps(value)


def _in_quotes(char: str) -> str:
    """A character between double quotes: what is not printable as YAML escapes it."""
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def settings_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE` for each `--set` that makes the one resolved scenario of the other.

    A part whose `kind` changes is given whole, since its keys are others then.
    """
    return [f"{key}={one_line(value)}" for key, value in _differences(before, after, ())]


def _differences(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping) and _same_keys(before, after):
        for key in after:
            yield from _differences(before[key], after[key], (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            if not isinstance(new, Mapping):
                yield ".".join(path), after
                return
            yield from _differences(old, new, (*path, str(i)))
    else:
        yield ".".join(path), after


def _same_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before.keys() == after.keys() and before.get("kind") == after.get("kind")
