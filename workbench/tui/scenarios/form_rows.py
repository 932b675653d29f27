"""A scenario as a form: one row for each key that it has, whatever its kinds are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from engine.core.hardware_spec import gpu_names
from engine.core.model_spec import model_card_names
from workbench.scenario.schema import Scenario
from workbench.scenario.shape import branches, choices, describe, keys_of, model_of
from workbench.tui.scenarios.draft import DETAILS, EXECUTORS, RUN_SECTION, Draft
from workbench.tui.scenarios.settings import one_line

_SECTIONS: Final = (
    "workload", "load", "model", "hardware", "deployment", "scheduler", "slo", "aborts",
)  # fmt: skip
_ALONE: Final = ("seed", "too_long")
_HIDDEN: Final = {"pools", "kind"}
_RUN_HELP: Final = {
    "executor": "simulate: predict it here; run: serve it on the real engine",
    "detail": "how much is recorded; the map of KV pages needs pages",
    "weights": "of the engine: dummy makes random ones, auto reads the checkpoint",
}


@dataclass(frozen=True, slots=True)
class FormRow:
    """A line of the form.

    Attributes:
        section: heading that it stands under.
        key: dotted key of the scenario; of `RUN_SECTION`, the name of an attribute of the draft.
        label: what the line calls it.
        value: as YAML on one line, to be edited; "" where the scenario leaves it to the program.
        options: values it may take, if they are few.
        help: a sentence.
        changed: whether it differs from the file.
    """

    section: str
    key: str
    label: str
    value: str
    options: tuple[str, ...]
    help: str
    changed: bool

    @property
    def shown(self) -> str:
        """The value as the form shows it: distributions in short."""
        return in_short(self.value)


def in_short(value: str) -> str:
    """`{kind: lognormal, mean: 600, max: 4096}` as `lognormal mean 600 max 4096`."""
    if not value.startswith("{kind: "):
        return value
    return value.strip("{}").removeprefix("kind: ").replace(":", "").replace(",", "")


def form_rows(draft: Draft, resolved: Mapping[str, Any]) -> list[FormRow]:
    """The rows of a draft whose text resolves to `resolved`."""
    rows = [
        *_run_rows(draft, resolved["model"]["name"]),
        *(row for section in _SECTIONS for row in _section(draft, resolved, section)),
    ]
    for key in _ALONE:
        annotation = keys_of(Scenario)[key]
        options = choices(annotation)
        rows.append(_row(draft, "other", key, key, resolved[key], options, describe(Scenario, key)))
    return rows


def _run_rows(draft: Draft, model: str | None) -> Iterator[FormRow]:
    yield _run_row("executor", "on", draft.executor, EXECUTORS)
    yield _run_row("detail", "detail", draft.detail, DETAILS)
    if draft.executor == "run":
        weights = "dummy" if draft.makes_weights(model) else "auto"
        yield _run_row("weights", "weights", weights, ("dummy", "auto"))


def _run_row(key: str, label: str, value: str, options: tuple[str, ...]) -> FormRow:
    return FormRow(RUN_SECTION, key, label, value, options, _RUN_HELP[key], False)


def _section(draft: Draft, resolved: Mapping[str, Any], section: str) -> Iterator[FormRow]:
    annotation, part = keys_of(Scenario)[section], resolved.get(section)
    if part is None:
        about = describe(Scenario, section)
        yield _row(draft, section, section, section, None, (), about)
        return
    kinds = branches(annotation)
    if kinds:
        about = " ".join((kinds[part["kind"]].__doc__ or "").split())
        kind_key = f"{section}.kind"
        yield _row(draft, section, kind_key, "kind", part["kind"], (), about)
    model = kinds[part["kind"]] if kinds else model_of(annotation)
    if model is None:
        return
    yield from _keys(draft, section, section, model, part)
    for i, pool in enumerate(part.get("pools") or ()):
        pool_model = _pool_model()
        yield from _keys(draft, f"pool {i}", f"{section}.pools.{i}", pool_model, pool)


def _keys(
    draft: Draft, section: str, prefix: str, model: type[BaseModel], part: Mapping[str, Any]
) -> Iterator[FormRow]:
    for key, annotation in keys_of(model).items():
        if key in _HIDDEN or key not in part:
            continue
        inner = model_of(annotation)
        value = part[key]
        if inner is not None and isinstance(value, Mapping) and not branches(annotation):
            for row in _keys(draft, section, f"{prefix}.{key}", inner, value):
                label = f"{key}.{row.label}"
                yield FormRow(section, row.key, label, *_rest(row))
            continue
        dotted = f"{prefix}.{key}"
        options = _options(dotted, annotation)
        yield _row(draft, section, dotted, key, value, options, describe(model, key))


def _rest(row: FormRow) -> tuple[str, tuple[str, ...], str, bool]:
    return row.value, row.options, row.help, row.changed


def _options(dotted: str, annotation: Any) -> tuple[str, ...]:
    if dotted == "model.name":
        return tuple(model_card_names())
    if dotted == "hardware.gpu":
        return tuple(gpu_names())
    if annotation is bool:
        return ("false", "true")
    return tuple(map(str, choices(annotation)))


def _pool_model() -> type[BaseModel]:
    from workbench.scenario.schema import Pool

    return Pool


def _row(
    draft: Draft,
    section: str,
    key: str,
    label: str,
    value: Any,
    options: tuple[str, ...],
    about: str,
) -> FormRow:
    text = "" if value is None else one_line(_short(value))
    if key in draft.settings and not draft.settings[key].startswith("{"):
        text = draft.settings[key]  # as it is being typed, right or wrong
    return FormRow(section, key, label, text, options, about, key in draft.settings)


def _short(value: Any) -> Any:
    """A fixed length as its number, which stands for it."""
    if (
        isinstance(value, Mapping)
        and value.get("kind") == "fixed"
        and set(value) == {"kind", "value"}
    ):
        return value["value"]
    return value
