"""pydantic's view of what is wrong with a scenario, in the words of the scenario file.

Each error of pydantic becomes a `ScenarioError` at the key or value to blame, with what is allowed
there. No name of a Python class or of a union branch reaches the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from workbench.scenario.base import REFUSAL, Path, Problem
from workbench.scenario.errors import (
    ScenarioError,
    SourceMap,
    closest,
    did_you_mean,
    listed,
    quoted,
)
from workbench.scenario.shape import (
    branches,
    choices,
    describe,
    follow,
    keys_of,
    model_of,
    places_of,
)

# What users of other serving tools call our keys; offered where the right one is allowed.
_SYNONYMS: Final[dict[str, str]] = {
    "tp": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "ep": "expert_parallel_size",
    "ep_size": "expert_parallel_size",
    "dp": "replicas",
    "qps": "request_rate",
    "rps": "request_rate",
    "rate": "request_rate",
    "num_prompts": "num_requests",
    "concurrency": "max_concurrency",
    "input_len": "prompt_len",
    "isl": "prompt_len",
    "osl": "output_len",
    "max_num_seqs": "max_running_requests",
    "gpu_memory_utilization": "memory_fraction",
    "mem_fraction_static": "memory_fraction",
    "block_size": "page_size",
    "chunked_prefill_size": "max_prefill_tokens",
    "chunk_size": "max_prefill_tokens",
    "num_gpu_blocks": "num_pages",
    "dtype": "weight_dtype",
    "ramp_up_start_rps": "start_request_rate",
    "ramp_up_end_rps": "end_request_rate",
    "speedup": "time_scale",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "e2el": "e2el_ms",
}

_LIMITS: Final[dict[str, tuple[str, str]]] = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}

_WANTED: Final[dict[str, str]] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "`true` or `false`",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "model": "a mapping of keys to values",
    "dict": "a mapping of keys to values",
}


def diagnose(
    error: ValidationError, root: type[BaseModel], sources: SourceMap
) -> list[ScenarioError]:
    """All of pydantic's errors about `root`, at their places."""
    findings = [
        finding
        for details in error.errors(include_url=False)
        for finding in _Translator(root, details).findings()
    ]
    misspelt = {finding.instead for finding in findings}
    return [
        ScenarioError.at(
            sources,
            finding.path,
            finding.code,
            finding.message,
            finding.help,
            at_key=finding.at_key,
        )
        for finding in findings
        if finding.missing is None or finding.missing not in misspelt
    ]


class _Finding(NamedTuple):
    """An error with its path.

    `instead` is the path that an unknown key was probably meant to be, and `missing` that of a
    missing key: a misspelt key is both, and is reported once.
    """

    path: Path
    code: str
    message: str
    help: str = ""
    at_key: bool = False
    instead: Path | None = None
    missing: Path | None = None


class _Translator:
    """One error of pydantic."""

    def __init__(self, root: type[BaseModel], details: ErrorDetails) -> None:
        self._root = root
        self._type = details["type"]
        self._input = details["input"]
        self._context: dict[str, Any] = details.get("ctx", {})
        self._text = details["msg"]
        self._loc = details["loc"]
        self._path, self._annotation = follow(root, details["loc"])

    def findings(self) -> Iterator[_Finding]:
        if self._type == "default_factory_not_called" or self._is_about_bad_entries():
            return  # only says that other errors are there
        if self._type == REFUSAL:
            yield from self._refusal()
            return
        yield self._finding()

    def _is_about_bad_entries(self) -> bool:
        """Pydantic counts only the valid entries of a list against its least length."""
        least = self._context.get("min_length", 0)
        return self._type == "too_short" and len(self._input) >= least

    def _finding(self) -> _Finding:
        match self._type:
            case "extra_forbidden":
                return self._unknown_key()
            case "missing":
                return self._missing_key()
            case "union_tag_not_found":
                return self._no_kind()
            case "union_tag_invalid":
                return self._unknown_kind()
            case "literal_error":
                return self._unknown_choice()
            case "finite_number":
                return self._not_finite()
            case "too_short" | "too_long" | "string_too_short" | "string_too_long":
                return self._wrong_size()
            case "string_pattern_mismatch":
                return self._wrong_pattern()
        return self._outside_limit() if self._type in _LIMITS else self._by_family()

    def _refusal(self) -> Iterator[_Finding]:
        problems: Sequence[Problem] = self._context["problems"]
        for problem in problems:
            path = self._path + problem.path
            yield _Finding(path, problem.code, problem.message, problem.help)

    def _unknown_key(self) -> _Finding:
        key = str(self._loc[-1])
        parent, annotation = follow(self._root, self._loc[:-1])
        model = model_of(annotation)
        allowed = list(keys_of(model)) if model else []
        message = f"unknown key {quoted(key)}"
        meant = self._meant(key, allowed)
        if meant:
            help_, instead = f"did you mean `{meant}`?", (*parent, meant)
        else:
            help_, instead = f"{self._elsewhere(key)}allowed here: {listed(allowed)}", None
        return _Finding((*parent, key), "S101", message, help_, at_key=True, instead=instead)

    def _meant(self, key: str, allowed: list[str]) -> str | None:
        """The key that an unknown one was probably meant to be."""
        synonym = _SYNONYMS.get(_plain(key))
        if synonym in allowed:
            return synonym
        return None if self._kinds_with(key) else closest(key, allowed)

    def _elsewhere(self, key: str) -> str:
        """Where else an unknown key would be right, as a line of help."""
        kinds = self._kinds_with(key)
        if kinds:
            return f"`{key}` is a key of kind {listed(kinds)}\n"
        for name in (key, _SYNONYMS.get(_plain(key), "")):
            places = places_of(self._root, name)
            if places:
                return f"did you mean {listed(places[:3])}?\n"
        return ""

    def _kinds_with(self, key: str) -> list[str]:
        """Other kinds of the union around the unknown key that do have it."""
        _, annotation = follow(self._root, self._loc[:-2])
        by_kind = branches(annotation)
        return [kind for kind, model in by_kind.items() if key in keys_of(model)]

    def _missing_key(self) -> _Finding:
        key = str(self._loc[-1])
        parent, annotation = follow(self._root, self._loc[:-1])
        model = model_of(annotation)
        dotted = ".".join(map(str, (*parent, key)))
        where = f" in `{parent[-1]}`" if parent and isinstance(parent[-1], str) else ""
        about = describe(model, key) if model else ""
        options = choices(keys_of(model)[key]) if model else ()
        allowed = f"allowed: {listed(options)}\n" if options else ""
        help_ = f"{about}\n{allowed}add it, or give it as `--set {dotted}=...`"
        message = f"missing key `{key}`{where}"
        return _Finding(parent, "S102", message, help_, at_key=True, missing=(*parent, key))

    def _no_kind(self) -> _Finding:
        kinds = list(branches(self._annotation))
        name = self._path[-1] if self._path else "it"
        help_ = f"allowed: {listed(kinds)}"
        message = f"missing key `kind` in `{name}`"
        missing = (*self._path, "kind")
        return _Finding(self._path, "S102", message, help_, at_key=True, missing=missing)

    def _unknown_kind(self) -> _Finding:
        return self._not_allowed("kind", list(branches(self._annotation)), (*self._path, "kind"))

    def _unknown_choice(self) -> _Finding:
        name = str(self._path[-1]) if self._path else ""
        return self._not_allowed(name, list(choices(self._annotation)), self._path)

    def _not_allowed(self, name: str, options: list[str], path: Path) -> _Finding:
        value = self._input.get("kind") if name == "kind" else self._input
        if not isinstance(value, str):
            wanted = f"`{name}` must be one of the allowed values, not {_kind_of(value)}"
            return _Finding(path, "S103", wanted, f"allowed: {listed(options)}")
        guess = did_you_mean(value, options)
        help_ = "\n".join(filter(None, [guess, f"allowed: {listed(options)}"]))
        return _Finding(path, "S104", f"unknown {name} {quoted(value)}", help_)

    def _outside_limit(self) -> _Finding:
        word, key = _LIMITS[self._type]
        limit = self._context[key]
        shown = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        return self._about_value("S105", f"must be {word} {shown}, not {quoted(self._input)}")

    def _not_finite(self) -> _Finding:
        return self._about_value("S105", f"must be a finite number, not {quoted(self._input)}")

    def _wrong_size(self) -> _Finding:
        least, most = self._context.get("min_length"), self._context.get("max_length")
        limit = f"at most {most}" if self._type.endswith("too_long") else f"at least {least}"
        unit = "character" if self._type.startswith("string") else "entry"
        return self._about_value("S105", f"must have {limit} {unit}")

    def _wrong_pattern(self) -> _Finding:
        return self._about_value("S105", f"cannot be {quoted(self._input)}")

    def _by_family(self) -> _Finding:
        """The word before the first `_` of `int_type`, `int_from_float`, ... is what is wanted."""
        wanted = _WANTED.get(self._type.split("_")[0])
        if branches(self._annotation):
            wanted = _WANTED["model"]
        if wanted is None:
            return self._about_value("S103", f"is not usable: {self._text}")
        return self._about_value("S103", f"must be {wanted}, not {_kind_of(self._input)}")

    def _about_value(self, code: str, predicate: str) -> _Finding:
        return _Finding(self._path, code, f"{self._named()} {predicate}", self._description())

    def _named(self) -> str:
        """The key, with its index for a list's entry."""
        if not self._path:
            return "a scenario"
        *_, key = self._path
        if isinstance(key, int):
            return f"entry {key} of `{self._path[-2]}`"
        return f"`{key}`"

    def _description(self) -> str:
        for depth in range(len(self._loc), 0, -1):
            key = self._loc[depth - 1]
            _, annotation = follow(self._root, self._loc[: depth - 1])
            model = model_of(annotation)
            if model is not None:
                return describe(model, str(key))
        return ""


def _plain(key: str) -> str:
    return key.casefold().replace("-", "_")


def _kind_of(value: Any) -> str:
    """`text `abc``, `a list`, ...: what was found, for messages."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return f"the number {quoted(value)}"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "a list" if isinstance(value, (list, tuple)) else "a mapping"
