"""`--set load.request_rate=20`: changes to a scenario's data before it is validated.

A path names keys with dots and list entries by index (`deployment.pools.0.replicas`); the value is
YAML, so `'load={kind: closed_loop, max_concurrency: 8}'` replaces a whole part. Parts that the file
leaves out are created. Whether a key exists is left to validation, which points at the override.
"""

from __future__ import annotations

from typing import Any

from workbench.scenario.base import Path
from workbench.scenario.errors import ScenarioError, Source, Span, quoted
from workbench.scenario.yaml_text import ParsedYaml, parse_yaml

_EXAMPLE = "an override looks like `--set load.request_rate=20`"


def apply_overrides(parsed: ParsedYaml, overrides: tuple[str, ...]) -> None:
    """Change the data of `parsed`, a mapping, in order; note places and errors there."""
    for order, override in enumerate(overrides, start=1):
        error = _apply(parsed, Source("--set", override, order))
        if error is not None:
            parsed.errors.append(error)


def _apply(parsed: ParsedYaml, source: Source) -> ScenarioError | None:
    dotted, equals, _ = source.text.partition("=")
    whole = Span(source, 0, max(1, len(dotted)))
    if not equals:
        return ScenarioError("S112", "an override needs `=` and a value", _EXAMPLE, whole)
    steps = _steps(source, dotted)
    if not all(step for step, _ in steps):
        message = "an override needs a path of keys before `=`, with dots between them"
        return ScenarioError("S112", message, _EXAMPLE, whole)
    path: Path = ()
    made: Path | None = None  # the first part that the file leaves out
    target: Any = parsed.data
    for i, (step, span) in enumerate(steps):
        key = _key_in(target, step)
        if key is None:
            error = _no_such_entry(target, path, step, span)
            if made is not None:
                _take_back(parsed, made)
            return error
        path = (*path, key)
        if i == len(steps) - 1:
            _assign(parsed, target, path, span, len(dotted) + 1)
        else:
            if made is None and not _present(target, key):
                made = path
            target = _descend(parsed, target, path, span, steps[i + 1][0])
    return None


def _present(target: Any, key: str | int) -> bool:
    return key < len(target) if isinstance(key, int) else target.get(key) is not None


def _take_back(parsed: ParsedYaml, made: Path) -> None:
    """Remove a part that was made for an override that failed, lest it be an error as well."""
    target: Any = parsed.data
    for key in made[:-1]:
        target = target[key]
    del target[made[-1]]
    _forget(parsed, made)


def _steps(source: Source, dotted: str) -> list[tuple[str, Span]]:
    steps, start = [], 0
    for step in dotted.split("."):
        steps.append((step.strip(), Span(source, start, max(start + 1, start + len(step)))))
        start += len(step) + 1
    return steps


def _key_in(target: Any, step: str) -> str | int | None:
    """The key or index that a step means; one past the end of a list appends."""
    if isinstance(target, dict):
        return step
    if isinstance(target, list) and step.isdecimal() and len(step) < 10:
        index = int(step)
        return index if index <= len(target) else None
    return None


def _no_such_entry(target: Any, path: Path, step: str, span: Span) -> ScenarioError:
    name = quoted(".".join(map(str, path)))
    if isinstance(target, list):
        entries = "1 entry" if len(target) == 1 else f"{len(target)} entries"
        message = f"{name} is a list of {entries}; {quoted(step)} is not one of them"
        last = len(target) - 1
        there = f"0 to {last} change" if last > 0 else "0 changes" if last == 0 else ""
        appends = f"{len(target)} appends the next one" if there else "0 writes the first one"
        return ScenarioError("S112", message, ", ".join(filter(None, [there, appends])), span)
    message = f"{name} is a single value; it has no key {quoted(step)}"
    dotted = ".".join(map(str, path))
    return ScenarioError("S112", message, f"replace it whole: `--set '{dotted}={{...}}'`", span)


def _descend(parsed: ParsedYaml, target: Any, path: Path, span: Span, next_step: str) -> Any:
    """The mapping or list at `path`, made if the file leaves it out."""
    key = path[-1]
    if not _present(target, key):
        _put(target, key, [] if next_step.isdecimal() else {})
        parsed.keys[path] = parsed.values[path] = span
    return target[key]


def _assign(parsed: ParsedYaml, target: Any, path: Path, span: Span, value_start: int) -> None:
    value = parse_yaml(span.source, value_start, path)
    parsed.errors += value.errors
    if value.errors:
        return
    _forget(parsed, path)
    parsed.keys[path] = parsed.values[path] = span
    parsed.keys.update(value.keys)
    parsed.values.update(value.values)
    _put(target, path[-1], value.data)


def _put(target: Any, key: str | int, value: Any) -> None:
    if isinstance(key, int) and key == len(target):
        target.append(value)
    else:
        target[key] = value


def _forget(parsed: ParsedYaml, path: Path) -> None:
    """Drop the places of everything at and below a path that is about to be replaced."""
    for places in (parsed.keys, parsed.values):
        for old in [p for p in places if p[: len(path)] == path]:
            del places[old]
