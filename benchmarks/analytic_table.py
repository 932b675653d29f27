"""Prints the analytic cost model beside the measured step times, as the tables of the docs.

    python benchmarks/analytic_table.py

`docs/analytic_model.md` holds this output; a test keeps the two equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from simulator.cost_model import StepFeatures, StepShape
from simulator.roofline import RooflineCostModel

MEASURED = Path(__file__).parent / "measured" / "vllm_h200.json"
HEADER = "| {} | floor ms | analytic ms | vLLM ms | analytic / vLLM | largest terms, ms |"


def decode_shape(batch: int, context: int) -> StepShape:
    """A pure decode step at a captured batch size, all requests at the same context."""
    return StepShape(
        decode_requests=batch,
        decode_tokens=batch,
        decode_context=batch * context,
        decode_max_context=context,
        sampled_tokens=batch,
        graph_batch=batch,
    )


def prefill_shape(prompts: int, tokens: int) -> StepShape:
    """Whole prompts of one length in one eager step."""
    return StepShape(
        prefill_tokens=prompts * tokens,
        prefill_requests=prompts,
        prefill_pairs=prompts * tokens * (tokens + 1) // 2,
        sampled_tokens=prompts,
    )


def series_shapes(series: dict[str, Any]) -> list[tuple[str, StepShape]]:
    """(label, step) of each point of one measured series."""
    if "batch" in series:
        points = zip(series["batch"], series["context"], strict=True)
        return [(str(batch), decode_shape(batch, context)) for batch, context in points]
    points = zip(series["prompts"], series["tokens"], strict=True)
    return [(f"{prompts}x{tokens}", prefill_shape(prompts, tokens)) for prompts, tokens in points]


def table(kind: str, series: dict[str, Any]) -> list[str]:
    """One series as a Markdown table."""
    tp = series["tensor_parallel_size"]
    model = RooflineCostModel(
        load_model_spec(series["model"]), load_hardware_spec("h200"), tensor_parallel_size=tp
    )
    labels, shapes = zip(*series_shapes(series), strict=True)
    costs = model.step_costs(StepFeatures.from_shapes(shapes))
    lines = [
        f"{series['model']}, {kind}, {tp} x H200, bf16",
        "",
        HEADER.format("batch" if kind == "decode" else "prompts x tokens"),
        "|---|---|---|---|---|---|",
    ]
    for i, label in enumerate(labels):
        analytic, vllm = int(costs.gpu_ns[i]) / 1e6, series["vllm_ms"][i]
        floor = f"{series['floor_ms'][i]:.2f}" if series["floor_ms"] else "-"
        terms = sorted(((int(ns[i]) / 1e6, name) for name, ns in costs.terms.items()), reverse=True)
        parts = " · ".join(f"{name} {ms:.2f}" for ms, name in terms[:4] if ms >= 0.005)
        lines.append(
            f"| {label} | {floor} | {analytic:.2f} | {vllm:.2f} | {analytic / vllm:.2f} | {parts} |"
        )
    return [*lines, ""]


def tables() -> str:
    """All measured series, decode first."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    lines = [
        line
        for kind in ("decode", "prefill")
        for series in measured[kind]
        for line in table(kind, series)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
