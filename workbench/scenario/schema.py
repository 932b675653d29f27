"""The scenario file as a type: everything that determines a run, with defaults and limits.

`workbench.scenario.source.load_scenario` reads a file into a `Scenario`; nothing else should call
the validation here directly unless it has no file to point at.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workbench.scenario.base import WHOLE, Problem, ScenarioModel, refuse
from workbench.scenario.goals import SLO_PRESETS, Report, Slo
from workbench.scenario.lengths import (
    Duration,
    FixedDuration,
    FixedLength,
    Length,
    LognormalDuration,
    LognormalLength,
    RecordedLength,
    UniformDuration,
    UniformLength,
    ZipfLength,
)
from workbench.scenario.serving import (
    Deployment,
    Fault,
    Hardware,
    Model,
    NoFaults,
    NoSpeculative,
    Pool,
    PrefixCache,
    Router,
    Scheduler,
    Speculative,
)
from workbench.scenario.traffic import (
    Aborts,
    AllAtOnceLoad,
    ClosedLoopLoad,
    ConstantLoad,
    ConversationWorkload,
    GammaLoad,
    Load,
    PoissonLoad,
    RampLoad,
    SharedPrefixWorkload,
    SyntheticWorkload,
    TraceLoad,
    TraceWorkload,
    Workload,
    traffic_problems,
)

__all__ = [
    "NAME_LENGTH",
    "NAME_PATTERN",
    "SCHEMA",
    "SLO_PRESETS",
    "Aborts",
    "AllAtOnceLoad",
    "ClosedLoopLoad",
    "ConstantLoad",
    "ConversationWorkload",
    "Deployment",
    "Duration",
    "Fault",
    "FixedDuration",
    "FixedLength",
    "GammaLoad",
    "Hardware",
    "Length",
    "Load",
    "LognormalDuration",
    "LognormalLength",
    "Model",
    "PoissonLoad",
    "Pool",
    "PrefixCache",
    "RampLoad",
    "RecordedLength",
    "Report",
    "Router",
    "Scenario",
    "Scheduler",
    "SharedPrefixWorkload",
    "Slo",
    "Speculative",
    "SyntheticWorkload",
    "TraceLoad",
    "TraceWorkload",
    "UniformDuration",
    "UniformLength",
    "Workload",
    "ZipfLength",
    "scenario_json_schema",
]

SCHEMA = "workbench/scenario/v1"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_LENGTH = 80  # characters at most


class Scenario(ScenarioModel):
    """Everything that determines a run: the model, the hardware, the demand and the decisions."""

    schema_version: Literal["workbench/scenario/v1"] = Field(alias="schema")
    """Version of this file format."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
    """Names the run's folder: letters, digits, `.`, `_` and `-`."""
    description: str = ""
    """Free text."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), WHOLE] = 0
    """All randomness of the run comes from it."""
    model: Model
    """What is served."""
    hardware: Hardware
    """What serves it."""
    workload: Workload
    """What is asked."""
    load: Load
    """When it is asked, and which part of it is measured."""
    deployment: Deployment = Deployment()
    """Replicas and the router before them."""
    scheduler: Scheduler = Scheduler()
    """How each replica decides."""
    speculative: NoSpeculative = None
    """Not supported yet: speculative decoding."""
    aborts: Aborts | None = None
    """Clients that give up."""
    faults: NoFaults = ()
    """Not supported yet: things that break during the run."""
    too_long: Literal["reject", "truncate", "error"] = "reject"
    """What to do with a request that can never fit the context or the KV cache: reject it and count
    it, truncate its prompt, or refuse the whole run."""
    slo: Slo | None = None
    """Latency limits that define goodput."""
    report: Report = Report()
    """What is printed about the results."""

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        problems: list[Problem] = traffic_problems(self.workload, self.load)
        refuse(problems)
        return self


def scenario_json_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file, with the names of the shipped models and GPUs."""
    from engine.core.hardware_spec import gpu_names
    from engine.core.model_spec import model_card_names

    schema = Scenario.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    definitions["Hardware"]["properties"]["gpu"]["enum"] = list(gpu_names())
    name = definitions["Model"]["properties"]["name"]["anyOf"]
    next(option for option in name if option["type"] == "string")["enum"] = list(model_card_names())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA}",
        **{key: _tidy(part) for key, part in schema.items()},
    }


def _tidy(part: Any) -> Any:
    """Without the line breaks of our source in descriptions, and without titles, which say nothing.

    A property may itself be called `title` or `description`; its value is then a schema, not text.
    """
    if isinstance(part, list):
        return [_tidy(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    tidy = {key: _tidy(value) for key, value in part.items() if not _is_title(key, value)}
    if isinstance(part.get("description"), str):
        tidy["description"] = part["description"].replace("\n", " ")
    return tidy


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)
