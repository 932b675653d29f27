"""YAML text to plain data, with the place of every key and value.

Only what a scenario needs: mappings with text keys, lists, text, numbers, booleans, null, and
anchors within reason. ruamel.yaml composes the nodes; the values are made here, so a problem is
reported with its place instead of being resolved silently (duplicate keys, merge keys, tags).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from workbench.scenario.errors import ScenarioError, Source, SourceMap, Span, quoted

MAX_NODES = 100_000  # after aliases are followed
MAX_DEPTH = 50
_MAX_NUMBER_CHARS = 64

_TAG: Final = "tag:yaml.org,2002:"
_COLLECTIONS: Final = {"map", "seq"}
_SYNTAX_HELP: Final = {
    "mapping values are not allowed here": "a second `:` on a line, or a line indented too far? "
    'Put text that contains `: ` in "quotes"',
    "found character '\\t' that cannot start any token": "indent with blanks, not with tabs",
    "found undefined alias": "text that starts with `*` must stand in quotes",
    "expected a single document in the stream": "a scenario file holds one document; "
    "remove the second `---`",
}


@dataclass(slots=True)
class ParsedYaml:
    """Data of a YAML text, where each part of it stands, and what is wrong with it."""

    data: Any
    keys: dict[tuple[str | int, ...], Span] = field(default_factory=dict)
    values: dict[tuple[str | int, ...], Span] = field(default_factory=dict)
    root: Span | None = None
    errors: list[ScenarioError] = field(default_factory=list)

    def source_map(self, source: Source) -> SourceMap:
        """Places of everything, given the text that was parsed."""
        return SourceMap(self.root or Span(source, 0, 1), self.keys, self.values)


def parse_yaml(source: Source, start: int = 0, prefix: tuple[str | int, ...] = ()) -> ParsedYaml:
    """Parse `source.text[start:]` as the value at path `prefix`. Never raises on bad text."""
    parsed = ParsedYaml(None)
    try:
        node = YAML(typ="safe", pure=True).compose(source.text[start:])
    except RecursionError:
        parsed.errors.append(_too_deep(Span(source, start, start + 1)))
    except YAMLError as error:
        parsed.errors.append(_syntax_error(error, source, start))
    except (ValueError, ArithmeticError) as error:  # e.g. an escape beyond Unicode
        message = f"not valid YAML: {error}"
        parsed.errors.append(ScenarioError("S107", message, "", Span(source, start, start + 1)))
    else:
        if node is not None:
            _Builder(source, start, parsed).build_root(node, prefix)
    return parsed


def _too_deep(span: Span) -> ScenarioError:
    return ScenarioError("S108", f"nested more than {MAX_DEPTH} levels deep", "", span)


def _syntax_error(error: YAMLError, source: Source, start: int) -> ScenarioError:
    if isinstance(error, ReaderError):
        offset = start + int(error.position)
        message = f"character U+{ord(source.text[offset]):04X} is not allowed in YAML"
        return ScenarioError("S107", message, "", Span(source, offset, offset + 1))
    problem, mark = "not valid YAML", None
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if error.context and "single document" in error.context:
            problem = error.context
        else:
            problem = error.problem or error.context or problem
    offset = start + (mark.index if mark is not None else 0)
    help_ = next((text for key, text in _SYNTAX_HELP.items() if problem.startswith(key)), "")
    span = Span(source, offset, offset + 1)
    return ScenarioError("S107", f"not valid YAML: {problem}", help_, span)


class _Builder:
    """Turns composed nodes into plain data and notes the place of each."""

    def __init__(self, source: Source, start: int, parsed: ParsedYaml) -> None:
        self._source = source
        self._start = start
        self._parsed = parsed
        self._nodes = 0

    def build_root(self, node: Node, prefix: tuple[str | int, ...]) -> None:
        self._parsed.root = self._first_span(node)
        self._parsed.values[prefix] = self._parsed.root
        try:
            self._parsed.data = self._build(node, prefix)
        except _RefusedError as refused:
            self._parsed.errors.append(refused.error)

    def _build(self, node: Node, path: tuple[str | int, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            message = f"more than {MAX_NODES:,} values once aliases (`*name`) are followed"
            raise _RefusedError(ScenarioError("S108", message, "", self._span(node)))
        if len(path) > MAX_DEPTH:
            raise _RefusedError(_too_deep(self._span(node)))
        if isinstance(node, MappingNode) and self._is_plain(node, "map"):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and self._is_plain(node, "seq"):
            return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node) if isinstance(node, ScalarNode) else None

    def _mapping(self, node: MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            span = self._span(key_node)
            if not isinstance(key_node, ScalarNode):
                self._error("S108", "a key must be plain text", span)
                continue
            key = str(key_node.value)
            child = (*path, key)
            if key in data:
                line, column = self._parsed.keys[child].source.position(
                    self._parsed.keys[child].start
                )
                help_ = f"first at {line}:{column}; keep one of them"
                self._error("S106", f"duplicate key {quoted(key)}", span, help_)
                continue
            self._parsed.keys[child] = span
            self._parsed.values[child] = self._value_span(value_node, span)
            data[key] = self._build(value_node, child)
        return data

    def _item(self, node: Node, path: tuple[str | int, ...]) -> Any:
        self._parsed.values[path] = self._first_span(node)
        return self._build(node, path)

    def _scalar(self, node: ScalarNode) -> Any:
        tag, text = str(node.tag), str(node.value)
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() in {"true", "yes", "on"}
            case "int" | "float" as kind:
                return self._number(node, kind, text)
            case "str" | "timestamp" | "merge" | "value":
                return text
        self._is_plain(node, "str")
        return text

    def _number(self, node: ScalarNode, kind: str, text: str) -> int | float | str:
        try:
            if len(text) <= _MAX_NUMBER_CHARS:
                return _parse_int(text) if kind == "int" else _parse_float(text)
        except ValueError:
            pass
        self._error("S107", f"{quoted(text)} is not a number", self._span(node))
        return text

    def _is_plain(self, node: Node, kind: str) -> bool:
        tag = str(node.tag)
        if tag != _TAG + kind:
            shown = quoted(tag.replace(_TAG, "!!"))
            self._error("S108", f"YAML tag {shown} is not used in scenarios", self._span(node))
        return tag == _TAG + kind

    def _error(self, code: str, message: str, span: Span, help_: str = "") -> None:
        self._parsed.errors.append(ScenarioError(code, message, help_, span))

    def _span(self, node: Node) -> Span:
        start = self._start + node.start_mark.index
        return Span(self._source, start, max(start + 1, self._start + node.end_mark.index))

    def _value_span(self, node: Node, key: Span) -> Span:
        """Scalars are pointed at; empty values, mappings and lists by the key that opens them."""
        if not isinstance(node, ScalarNode) or node.start_mark.index == node.end_mark.index:
            return key
        return self._span(node)

    def _first_span(self, node: Node) -> Span:
        """The first key of a block mapping, or the node itself."""
        depth = 0
        while isinstance(node, CollectionNode) and node.value and depth < MAX_DEPTH:
            if node.flow_style:
                break
            node = node.value[0][0] if isinstance(node, MappingNode) else node.value[0]
            depth += 1
        return self._span(node)


class _RefusedError(Exception):
    """Stops building: going on would not end in reasonable time."""

    def __init__(self, error: ScenarioError) -> None:
        super().__init__(error)
        self.error = error


def _parse_int(text: str) -> int:
    digits = text.replace("_", "").lower()
    body = digits.lstrip("+-")
    if body.startswith(("0x", "0o", "0b")):
        return int(digits, 0)
    return int(digits)


def _parse_float(text: str) -> float:
    plain = text.replace("_", "").lower()
    body = plain.lstrip("+-")
    if body in {".inf", ".nan"}:
        return float(plain.replace(".", ""))
    return float(plain)
