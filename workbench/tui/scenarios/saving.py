"""A draft as a file: its text, with the changes of the form written into it."""

from __future__ import annotations

import io
from collections.abc import MutableMapping, MutableSequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from workbench.record.atomic_file import write_atomic
from workbench.record.errors import RunRecordError
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_text
from workbench.tui.scenarios.draft import Draft


def save_draft(draft: Draft, path: Path) -> str | None:
    """Write a draft to a file; why that failed, if it did. What it holds is read again first."""
    label = str(path)
    try:
        wanted = load_text(draft.text, label, draft.path, draft.overrides).resolved
        text = with_settings(draft)
        found = load_text(text, label, path).resolved
    except ScenarioErrors as errors:
        return f"not saved: {errors.errors[0].message}"
    if found != wanted:
        return "not saved: the changes of the form cannot be written into this text"
    try:
        write_atomic(path, text.encode())
    except RunRecordError as error:
        return f"not saved: {error}"
    return None


def with_settings(draft: Draft) -> str:
    """The text of a draft with the form's changes in it; comments and order stay."""
    if not draft.settings:
        return draft.text
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 100
    data = yaml.load(draft.text)
    for key, value in draft.settings.items():
        _put(data, key.split("."), YAML(typ="safe", pure=True).load(value))
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def _put(data: Any, path: list[str], value: Any) -> None:
    """Set a key; parts on the way that the text leaves out are made."""
    for step, after in pairwise(path):
        fresh: Any = [] if after.isdecimal() else {}
        if isinstance(data, MutableSequence):
            while len(data) <= int(step):
                data.append(fresh)
            data = data[int(step)]
        elif isinstance(data, MutableMapping):
            if data.get(step) is None:
                data[step] = fresh
            data = data[step]
    if isinstance(data, MutableSequence):
        index = int(path[-1])
        data[index : index + 1] = [value]
    else:
        data[path[-1]] = value
