"""The analytic model against figures that others computed and measured, and against its docs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from simulator.cost_model import StepShape
from simulator.roofline import RooflineCostModel

ROOT = Path(__file__).parents[1]
H200 = load_hardware_spec("h200")


def load_benchmark():
    """The script that prints the tables."""
    path = ROOT / "benchmarks" / "analytic_table.py"
    spec = importlib.util.spec_from_file_location("analytic_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = load_benchmark()
MEASURED = json.loads(BENCHMARK.MEASURED.read_text(encoding="utf-8"))


def points(with_floor: bool = False):
    """(series, step, floor in ms or None, vLLM's ms) of every measured point."""
    for kind in ("decode", "prefill"):
        for series in MEASURED[kind]:
            if with_floor and not series["floor_ms"]:
                continue
            floors = series["floor_ms"] or [None] * 10
            shapes = BENCHMARK.series_shapes(series)
            rows = zip(shapes, floors, series["vllm_ms"], strict=False)
            for (label, shape), floor, vllm in rows:
                name = f"{series['model']}-tp{series['tensor_parallel_size']}-{kind}-{label}"
                yield pytest.param(series, shape, floor, vllm, id=name)


# The published floor of these counts arithmetic only: it leaves out reading the experts' 58 GB.
ARITHMETIC_ONLY = {("Qwen3-30B-A3B", 512), ("Qwen3-30B-A3B", 2048)}


def floor_ms(model_name: str, shape: StepShape) -> float:
    """One phase of GEMMs and one of attention at 4.25 TB/s and 0.70 PFLOP/s."""
    ideal = replace(
        H200.achievable, weight_stream=4.25 / 4.8, attention=H200.achievable.gemm["bf16"]
    )
    model = RooflineCostModel(load_model_spec(model_name), replace(H200, achievable=ideal))
    c, rows = model.coefficients, shape.prefill_tokens + shape.decode_tokens
    visited = float(model._visited[min(rows, len(model._visited) - 1)])
    if (model_name, rows) in ARITHMETIC_ONLY:
        visited = 0.0
    weights_ns = (
        c.linear.weights_ns + c.plain.weights_ns + c.lm_head.weights_ns + c.expert_ns * visited
    )
    flops_ns = (c.linear.row_ns + c.plain.row_ns + c.experts_row_ns) * rows
    flops_ns += c.lm_head.row_ns * shape.sampled_tokens
    attention_ns = max(c.kv_token_ns, c.decode_pair_ns) * shape.decode_context
    attention_ns += c.prefill_pair_ns * shape.prefill_pairs
    return (max(weights_ns, flops_ns) + attention_ns) / 1e6


@pytest.mark.parametrize(("series", "shape", "floor", "vllm"), list(points(with_floor=True)))
def test_bytes_and_flops_give_the_published_floor(series, shape, floor, vllm):
    """At the ceilings alone, our bytes and FLOPs reproduce floors that others computed."""
    coarse = 0.05 if floor > 10 or shape.prefill_tokens else 0.005
    rounding = 0.5 if isinstance(floor, int) else coarse  # half a unit of the last published digit
    assert floor_ms(series["model"], shape) == pytest.approx(floor, rel=0.005, abs=rounding)


@pytest.mark.parametrize(("series", "shape", "floor", "vllm"), list(points()))
def test_the_prediction_lies_between_floor_and_measurement(series, shape, floor, vllm):
    """A step takes longer than its floor, and a real engine longer than the ceilings allow."""
    model = RooflineCostModel(
        load_model_spec(series["model"]), H200, tensor_parallel_size=series["tensor_parallel_size"]
    )
    predicted = model.step_cost(shape)[0] / 1e6
    assert predicted > (floor or 0)
    assert predicted < 1.01 * vllm


def test_the_docs_show_what_the_model_says():
    """The tables in the docs are the output of the script, to the last digit."""
    docs = (ROOT / "docs" / "analytic_model.md").read_text(encoding="utf-8")
    assert BENCHMARK.tables() in docs
