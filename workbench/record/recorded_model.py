"""The model of a recorded run, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.core.model_spec import ModelSpec, load_model_spec
from engine.demo import demo_model_folder
from workbench.record.header import RunHeader
from workbench.record.provenance import input_file, place_now


class ChangedModelError(ValueError):
    """The file of a run's model holds something else now; names the file."""


def recorded_model(header: RunHeader) -> ModelSpec:
    """The shape of the model that ran, whatever the current folder is.

    Raises:
        ModelConfigError: there is no such model any more.
        ChangedModelError: its file is another one now.
        OSError: its file cannot be read.
    """
    section = header.scenario.get("model")
    facts: Mapping[str, Any] = section if isinstance(section, dict) else {}
    asked = header.engine.get("model") or facts.get("name") or facts.get("path") or header.model
    file = header.inputs.get("model.path")
    if file is not None and asked == facts.get("path"):
        return load_model_spec(str(_unchanged(place_now(file), file.sha256)))
    return load_model_spec(str(demo_model_folder(str(asked)) or asked))


def _unchanged(path: Path, sha256: str) -> Path:
    if path.is_file() and input_file(path).sha256 != sha256:
        raise ChangedModelError(f"{path} has changed since the run")
    return path
