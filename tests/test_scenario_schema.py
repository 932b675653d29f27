"""The JSON Schema that editors use says the same as the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from json_schema_check import conforms
from scenario_texts import BASE, write

from engine.core.hardware_spec import gpu_names
from engine.core.model_spec import model_card_names
from workbench.scenario.errors import Source
from workbench.scenario.schema import scenario_json_schema
from workbench.scenario.source import ScenarioErrors, load_scenario, shipped_names, shipped_text
from workbench.scenario.template import scenario_template
from workbench.scenario.yaml_text import parse_yaml


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema, through JSON as an editor reads it."""
    return json.loads(json.dumps(scenario_json_schema(), allow_nan=False))


def _data(text: str) -> Any:
    return parse_yaml(Source("text", text)).data


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_scenarios_conform(schema: dict[str, Any], name: str) -> None:
    """What the loader accepts, the schema accepts (traces get the path that they wait for)."""
    data = _data(shipped_text(name))
    if data["workload"]["kind"] == "trace":
        data["workload"]["path"] = "trace.jsonl"
    assert conforms(data, schema)


def test_resolved_scenarios_and_the_template_conform(
    schema: dict[str, Any], tmp_path: Path
) -> None:
    """Defaults written out, and the template, are valid under the schema."""
    assert conforms(load_scenario(write(tmp_path, BASE)).resolved, schema)
    assert conforms(_data(scenario_template()), schema)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: base", "nme: base"),
        ("name: base", "name: a b"),
        ("name: base", "name: 3"),
        ("scenario/v1", "scenario/v2"),
        ("gamma", "gama"),
        ("rate: 10", "rate: fast"),
        ("rate: 10", "rate: 0"),
        ("burstiness: 0.5", "max_concurrency: 0"),
        ("prompt_len: 512", "prompt_len: -1"),
        ("prompt_len: 512", "prompt_len: {kind: fixed}"),
        ("h200", "h20"),
        ("name: base", "name: base\nreport: {percentiles: []}"),
        ("name: base", "name: base\ndeployment: {pools: [{max_plans_in_flight: 5}]}"),
    ],
)
def test_schema_and_loader_refuse_the_same(
    schema: dict[str, Any], tmp_path: Path, old: str, new: str
) -> None:
    """Unknown keys, wrong types, limits and kinds are errors in an editor too."""
    text = BASE.replace(old, new, 1)
    assert text != BASE
    assert not conforms(_data(text), schema)
    with pytest.raises(ScenarioErrors):
        load_scenario(write(tmp_path, text))


def test_names_of_models_and_gpus_are_listed(schema: dict[str, Any]) -> None:
    """An editor can complete the shipped names."""
    definitions = schema["$defs"]
    assert definitions["Hardware"]["properties"]["gpu"]["enum"] == list(gpu_names())
    options = definitions["Model"]["properties"]["name"]["anyOf"]
    assert {"type": "string", "enum": list(model_card_names())} in options


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    """Each key but `kind`, whose model is described, says what it means, on one line."""
    for name, model in [("Scenario", schema), *schema["$defs"].items()]:
        assert model["description"], name
        for key, part in model["properties"].items():
            assert key == "kind" or part.get("description"), f"{name}.{key}"
            assert "\n" not in part.get("description", ""), f"{name}.{key}"
