"""The shape of the scenario models: which keys are allowed where. For error messages only."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from workbench.scenario.base import Path


def keys_of(model: type[BaseModel]) -> dict[str, Any]:
    """The keys of a model as they stand in a file, required ones first, with their annotations."""
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    return {field.alias or name: field.annotation for name, field in fields}


def describe(model: type[BaseModel], key: str) -> str:
    """The one-line description of a key."""
    for name, field in model.model_fields.items():
        if key == (field.alias or name):
            return " ".join((field.description or "").split())
    return ""


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union without None, or the annotation alone; `Annotated` is unwrapped."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = get_args(annotation)
        return tuple(option for member in members for option in _options(member))
    return () if annotation is type(None) else (annotation,)


def branches(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models of a union by their `kind`; empty if the annotation is not such a union."""
    models = [option for option in _options(annotation) if _is_model(option)]
    if len(models) < 2:
        return {}
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation stands for, if it is exactly one."""
    models = [option for option in _options(annotation) if _is_model(option)]
    return models[0] if len(models) == 1 else None


def choices(annotation: Any) -> tuple[str, ...]:
    """The values of a `Literal`, possibly inside a union."""
    return tuple(
        value
        for option in _options(annotation)
        if get_origin(option) is Literal
        for value in get_args(option)
    )


def _element(annotation: Any) -> Any:
    """The element annotation of a list, or None."""
    tuples = (option for option in _options(annotation) if get_origin(option) is tuple)
    return next((get_args(option)[0] for option in tuples), None)


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def follow(annotation: Any, loc: tuple[str | int, ...]) -> tuple[Path, Any]:
    """Turn a location of pydantic into a path in the file, and the annotation at its end.

    pydantic puts the `kind` of the chosen union branch into its locations, which no key stands for.
    """
    path: Path = ()
    for part in loc:
        by_kind = branches(annotation)
        if by_kind:
            annotation = by_kind.get(str(part))
            continue
        model, element = model_of(annotation), _element(annotation)
        if model is not None:
            annotation = keys_of(model).get(str(part))
        elif element is not None and isinstance(part, int):
            annotation = element
        else:
            break
        path = (*path, part)
    return path, annotation


def places_of(root: type[BaseModel], key: str) -> list[str]:
    """Dotted paths at which a key is allowed, list elements as index 0, without duplicates."""
    return list(dict.fromkeys(path for path, name in _all_keys(root) if name == key))


@cache
def _all_keys(root: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    return tuple(_walk(root, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for key, annotation in keys_of(model).items():
        yield prefix + key, key
        element = _element(annotation)
        inner, step = (annotation, f"{key}.") if element is None else (element, f"{key}.0.")
        below = [model_of(inner), *branches(inner).values()]
        for child in below:
            if child is not None:
                yield from _walk(child, prefix + step)
