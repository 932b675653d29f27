"""Reads a scenario: a file or a shipped name, with overrides, into a validated `Scenario`.

Everything that is wrong is collected and raised as one `ScenarioErrors`, each error at its line.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from workbench.scenario.diagnosis import diagnose
from workbench.scenario.errors import (
    ScenarioError,
    ScenarioErrors,
    Source,
    SourceMap,
    Span,
    did_you_mean,
    listed,
    quoted,
)
from workbench.scenario.overrides import apply_overrides
from workbench.scenario.schema import SCHEMA, Scenario
from workbench.scenario.serving import ANALYTIC, WHO_WRITES_PROFILES
from workbench.scenario.yaml_text import ParsedYaml, parse_yaml

MAX_BYTES: Final = 1 << 20
_START_HELP = "`workbench init` writes a commented scenario to start from"
_SUFFIXES = {".yaml", ".yml", ".json"}


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario and where it came from.

    Attributes:
        scenario: validated; relative paths in it work from the current folder.
        source_text: the file as it stands.
        overrides: what `--set` gave.
        resolved: the whole scenario as JSON data, with defaults and overrides; paths as written.
        sha256: of `resolved` as canonical JSON, in hex.
        path: the file, or None for a shipped scenario.
        sources: where each part is written, for `error`.
    """

    scenario: Scenario
    source_text: str
    overrides: tuple[str, ...]
    resolved: dict[str, Any]
    sha256: str
    path: Path | None
    sources: SourceMap = field(repr=False)

    def error(
        self,
        path: tuple[str | int, ...],
        code: str,
        message: str,
        help: str = "",  # noqa: A002
    ) -> ScenarioError:
        """An error at a key's place, for what only a later stage can see (not enough memory).

        A key that is not written is shown at the closest one around it. Raise it, with others if
        there are any, as `ScenarioErrors([...])`.
        """
        return ScenarioError.at(self.sources, path, code, message, help)

    def settled(self, profile: Path | None) -> LoadedScenario:
        """The scenario with the source of its step times, where it leaves the choice to us.

        `resolved` then says `analytic`, so that profiles which ship later change nothing. It does
        not name a shipped profile, whose place is another on every machine: it is found again.

        Args:
            profile: the file that was chosen; None: the analytic cost model.
        """
        hardware = self.scenario.hardware
        if hardware.profile is not None:
            return self
        named = str(profile) if profile else ANALYTIC
        changed = hardware.model_copy(update={"profile": named})
        resolved = self.resolved
        if profile is None:
            resolved = {**resolved, "hardware": {**resolved["hardware"], "profile": ANALYTIC}}
        return replace(
            self,
            scenario=self.scenario.model_copy(update={"hardware": changed}),
            resolved=resolved,
            sha256=hashlib.sha256(canonical_json(resolved)).hexdigest(),
        )


class ShippedScenario(NamedTuple):
    """A scenario that comes with the program: its name and its first comment line."""

    name: str
    lesson: str


def load_scenario(path_or_name: str | Path, overrides: Sequence[str] = ()) -> LoadedScenario:
    """Read, override and validate a scenario.

    Args:
        path_or_name: a file, or the name of a shipped scenario.
        overrides: `path=value` each, in order.

    Raises:
        ScenarioErrors: everything that is wrong with it.
    """
    path, source = _read(path_or_name)
    return _load(path, source, tuple(overrides))


def load_text(
    text: str, label: str, path: Path | None, overrides: Sequence[str] = ()
) -> LoadedScenario:
    """Read, override and validate the text of a scenario that stands in no file yet.

    Args:
        text: of the scenario.
        label: what errors call it.
        path: the file that it would stand in, for relative paths; None: among the shipped ones.
        overrides: `path=value` each, in order.

    Raises:
        ScenarioErrors: everything that is wrong with it.
    """
    return _load(path, Source(label, text), tuple(overrides))


def _load(path: Path | None, source: Source, overrides: tuple[str, ...]) -> LoadedScenario:
    parsed = parse_yaml(source)
    if not isinstance(parsed.data, dict):
        raise ScenarioErrors(parsed.errors or [_not_a_mapping(parsed, source)])
    apply_overrides(parsed, overrides)
    sources = parsed.source_map(source)
    scenario = _validate(parsed, sources)
    resolved = scenario.model_dump(mode="json", by_alias=True)
    return LoadedScenario(
        scenario=_with_usable_paths(scenario, path, sources),
        source_text=source.text,
        overrides=overrides,
        resolved=resolved,
        sha256=hashlib.sha256(canonical_json(resolved)).hexdigest(),
        path=path,
        sources=sources,
    )


def load_resolved(
    resolved: Mapping[str, Any],
    label: str,
    overrides: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> LoadedScenario:
    """A scenario from what `LoadedScenario.resolved` once was, with overrides.

    Args:
        resolved: as a run record holds it.
        label: what errors call its source.
        overrides: `path=value` each, in order.
        files: dotted key -> where the file that it names is now; the others are taken as written.

    Raises:
        ScenarioErrors: everything that is wrong with it.
    """
    source = Source(label, "")
    parsed = ParsedYaml(copy.deepcopy(dict(resolved)))
    apply_overrides(parsed, tuple(overrides))
    sources = parsed.source_map(source)
    scenario = _validate(parsed, sources)
    changed = scenario.model_dump(mode="json", by_alias=True)
    for key, path in (files or {}).items():
        part, _, name = key.partition(".")
        model = getattr(scenario, part).model_copy(update={name: path})
        scenario = scenario.model_copy(update={part: model})
    return LoadedScenario(
        scenario=scenario,
        source_text="",
        overrides=tuple(overrides),
        resolved=changed,
        sha256=hashlib.sha256(canonical_json(changed)).hexdigest(),
        path=None,
        sources=sources,
    )


def canonical_json(data: Any) -> bytes:
    """The one spelling of JSON data that is hashed: sorted keys, no blanks, ASCII."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _not_a_mapping(parsed: ParsedYaml, source: Source) -> ScenarioError:
    span = parsed.root or Span(source, 0, 1)
    if parsed.data is None:
        return ScenarioError("S102", "the scenario is empty", _START_HELP, span)
    found = "a list" if isinstance(parsed.data, list) else "a single value"
    message = f"a scenario must be a mapping of keys to values, not {found}"
    return ScenarioError("S103", message, _START_HELP, span)


def _validate(parsed: ParsedYaml, sources: SourceMap) -> Scenario:
    version = parsed.data.get("schema", SCHEMA)
    if version != SCHEMA:
        message = f"unknown scenario format {quoted(version)}"
        help_ = f"this program reads `{SCHEMA}`"
        error = ScenarioError.at(sources, ("schema",), "S109", message, help_)
        raise ScenarioErrors([*parsed.errors, error])
    errors = parsed.errors
    try:
        scenario = Scenario.model_validate(parsed.data)
    except ValidationError as error:
        raise ScenarioErrors([*errors, *diagnose(error, Scenario, sources)]) from None
    if errors:
        raise ScenarioErrors(errors)
    return scenario


# Files that a scenario names


def _with_usable_paths(scenario: Scenario, file: Path | None, sources: SourceMap) -> Scenario:
    """The scenario with the paths of its files as they are seen from the current folder.

    A shipped scenario (`file` is None) names files beside it, which are shipped with it.
    """
    beside = Path(str(resources.files("scenarios"))) if file is None else file.parent
    errors: list[ScenarioError] = []
    for part, key in (("model", "path"), ("workload", "path"), ("hardware", "profile")):
        model = getattr(scenario, part)
        written = getattr(model, key, None)
        if written is None or (key == "profile" and written == ANALYTIC):
            continue
        span = sources.find((part, key))
        folder = Path() if span.source.is_override else beside
        usable = _join(folder, written)
        if not _is_file(usable):
            errors.append(_no_such_file(usable, span, key == "profile"))
        named = f"./{usable}" if str(usable) == ANALYTIC else str(usable)  # not the word
        changed = model.model_copy(update={key: named})
        scenario = scenario.model_copy(update={part: changed})
    if errors:
        raise ScenarioErrors(errors)
    return scenario


def _join(folder: Path, written: str) -> Path:
    try:
        return folder / Path(written).expanduser()
    except RuntimeError:  # `~somebody` who does not exist
        return folder / written


def _is_file(path: Path) -> bool:
    return _holds(path, Path.is_file)


def _holds(path: Path, test: Callable[[Path], bool]) -> bool:
    try:
        return test(path)
    except OSError:  # a name that is too long, a folder without permission
        return False


def _no_such_file(path: Path, span: Span, is_profile: bool) -> ScenarioError:
    """A profile may also be a word, and has a name as its likes have."""
    if _holds(path, Path.exists):
        what = "is a folder, not a file" if path.is_dir() else "is no regular file"
        config = path / "config.json"
        guess = f"did you mean `{config}`?" if _is_file(config) else ""
        return ScenarioError("S114", f"`{path}` {what}", guess, span)
    others = _siblings(path)
    if is_profile:
        others = [ANALYTIC, *(name for name in others if name.endswith(".json"))]
    guess = did_you_mean(path.name, others) or (WHO_WRITES_PROFILES if is_profile else "")
    return ScenarioError("S114", f"`{path}` does not exist", guess, span)


def _siblings(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return []


# Finding and reading the scenario itself


def shipped_scenarios() -> list[ShippedScenario]:
    """The scenarios that come with the program, by name."""
    found = []
    for name in shipped_names():
        first = shipped_text(name).splitlines()[0]
        found.append(ShippedScenario(name, first.lstrip("# ").rstrip(".")))
    return found


def shipped_names() -> list[str]:
    """Names of the shipped scenarios, sorted."""
    entries = resources.files("scenarios").iterdir()
    return sorted(
        entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")
    )


def shipped_text(name: str) -> str:
    """The text of a shipped scenario. Raises KeyError for an unknown name."""
    if name not in shipped_names():
        raise KeyError(name)
    return resources.files("scenarios").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def scenario_text(path_or_name: str | Path) -> tuple[Path | None, str]:
    """The file of a scenario (None for a shipped one) and its text.

    Raises:
        ScenarioErrors: there is none, or it is no text.
    """
    path, source = _read(path_or_name)
    return path, source.text


def _read(path_or_name: str | Path) -> tuple[Path | None, Source]:
    name = str(path_or_name)
    path = Path(path_or_name)
    is_name = path.name == name and path.suffix not in _SUFFIXES
    if is_name and name in shipped_names():
        return None, Source(f"{name}.yaml", shipped_text(name))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ScenarioErrors([_unreadable(path, name, is_name, error)]) from None
    return path, Source(name, _decode(content, name))


def _unreadable(path: Path, name: str, is_name: bool, error: Exception) -> ScenarioError:
    if not isinstance(error, FileNotFoundError):
        reason = error.strerror if isinstance(error, OSError) else str(error)
        folder = isinstance(error, IsADirectoryError)
        help_ = "`workbench scenarios` lists the shipped ones; yours is a file" if folder else ""
        return ScenarioError("S100", f"`{name}` cannot be read: {reason}", help_, label=name)
    shipped = shipped_names()
    if is_name:
        message = f"no scenario {quoted(name)}: neither a shipped name nor a file"
        guess = did_you_mean(name, shipped)
        help_ = "\n".join(filter(None, [guess, f"shipped: {listed(shipped)}"]))
        return ScenarioError("S113", message, help_, label=name)
    if path.stem in shipped:
        help_ = f"`{path.stem}` is a shipped scenario: give its name alone"
    else:
        others = [other for other in _siblings(path) if Path(other).suffix in _SUFFIXES]
        help_ = did_you_mean(path.name, others)
    return ScenarioError("S100", f"`{name}` does not exist", help_, label=name)


def _decode(content: bytes, name: str) -> str:
    if len(content) > MAX_BYTES:
        message = f"larger than {MAX_BYTES:,} bytes, which no scenario is"
        help_ = "a trace is named by `workload: {kind: trace, path: ...}`"
        raise ScenarioErrors([ScenarioError("S100", message, help_, label=name)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScenarioErrors([_not_utf8(content, name, error)]) from None
    if "\0" in text:
        message = f"not a text file: NUL character at offset {text.index(chr(0))}"
        raise ScenarioErrors([ScenarioError("S100", message, label=name)])
    return text


def _not_utf8(content: bytes, name: str, error: UnicodeDecodeError) -> ScenarioError:
    line = content.count(b"\n", 0, error.start) + 1
    column = error.start - content.rfind(b"\n", 0, error.start)
    byte = content[error.start]
    message = f"not UTF-8 text: byte 0x{byte:02x} at {line}:{column}"
    return ScenarioError("S100", message, "save the file as UTF-8", label=f"{name}:{line}:{column}")
