"""A checker for the part of JSON Schema that the scenario's schema uses.

It knows few keywords and fails on any other, so a schema cannot pass by using one it ignores.
"""

from __future__ import annotations

import re
from typing import Any

_NOTES = {"$schema", "$id", "$defs", "title", "description", "default", "discriminator"}
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


def conforms(data: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> bool:
    """Whether JSON data is valid under a schema. Raises ValueError for an unknown keyword."""
    root = schema if root is None else root
    return all(_holds(key, value, data, schema, root) for key, value in schema.items())


def _holds(key: str, value: Any, data: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    match key:
        case "$ref":
            return conforms(data, root["$defs"][value.removeprefix("#/$defs/")], root)
        case "anyOf":
            return any(conforms(data, option, root) for option in value)
        case "oneOf":
            return sum(conforms(data, option, root) for option in value) == 1
        case "type":
            return _is_type(data, value)
        case "enum":
            return data in value
        case "const":
            return data == value
        case _ if key in _NOTES:
            return True
    return _structure(key, value, data, schema, root)


def _is_type(data: Any, name: str) -> bool:
    if name in ("number", "integer"):
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            return False
        return name == "number" or data == int(data)
    return isinstance(data, _TYPES[name])


def _structure(
    key: str, value: Any, data: Any, schema: dict[str, Any], root: dict[str, Any]
) -> bool:
    match key, data:
        case "properties", dict():
            return all(conforms(data[name], value[name], root) for name in value if name in data)
        case "required", dict():
            return set(value) <= set(data)
        case "additionalProperties", dict():
            assert value is False
            return set(data) <= set(schema["properties"])
        case "items", list():
            return all(conforms(entry, value, root) for entry in data)
        case ("minItems", list()) | ("minLength", str()):
            return len(data) >= value
        case ("maxItems", list()) | ("maxLength", str()):
            return len(data) <= value
        case "pattern", str():
            return re.search(value, data) is not None
    return _number(key, value, data)


def _number(key: str, value: Any, data: Any) -> bool:
    limits = {
        "minimum": lambda: data >= value,
        "maximum": lambda: data <= value,
        "exclusiveMinimum": lambda: data > value,
        "exclusiveMaximum": lambda: data < value,
    }
    if key in limits:
        return not isinstance(data, (int, float)) or limits[key]()
    known = {"properties", "required", "additionalProperties", "items", "pattern"}
    if key in known | {"minItems", "maxItems", "minLength", "maxLength"}:
        return True  # says nothing about data of another type
    raise ValueError(f"unknown keyword {key}")
