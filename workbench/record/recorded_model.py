"""The model of a recorded run, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.core.model_spec import ModelSpec, load_model_spec
from engine.demo import demo_model_folder
from workbench.record.header import InputFacts, RunHeader
from workbench.record.provenance import input_file


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
    file = _file(header, asked == facts.get("path"))
    demo = demo_model_folder(str(asked))
    if file is not None and (demo is None or Path(file.path).is_file()):
        return load_model_spec(str(_unchanged(file)))
    return load_model_spec(str(demo or asked))


def _file(header: RunHeader, of_scenario: bool) -> InputFacts | None:
    """The file that said the model's shape; None: a model card did, or nobody noted it."""
    config = header.engine.get("config")
    if config is not None:
        return InputFacts(**config)
    return header.inputs.get("model.path") if of_scenario else None


def _unchanged(file: InputFacts) -> Path:
    path = Path(file.path)
    if path.is_file() and input_file(path).sha256 != file.sha256:
        raise ChangedModelError(f"{path} has changed since the run")
    return path
