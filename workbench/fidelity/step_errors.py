"""What a cost model says of the very steps that the engine did: errors of each, and host times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.events import Columns
from simulator.cost_model import CostModel
from workbench.analysis.decode_share import features_of
from workbench.analysis.predicted_steps import predicted_ns

REGIONS: Final = ("decode", "prefill", "mixed", "all")
Errors = NDArray[np.float64]
Numbers = dict[str, float | None]


def step_errors(model: CostModel, runs: Sequence[Columns]) -> dict[str, Errors]:
    """Signed errors of predicted GPU times of recorded steps, in percent, by region.

    Args:
        model: predicts.
        runs: columns of the steps of some runs, each of one replica.
    """
    found: dict[str, list[Errors]] = {region: [] for region in REGIONS}
    for steps in runs:
        decodes, prefills = steps["decode_tokens"] > 0, steps["prefill_tokens"] > 0
        rows = np.flatnonzero(decodes | prefills)
        decodes, prefills = decodes[rows], prefills[rows]
        predicted = predicted_ns(model, steps)[rows]
        measured = np.maximum(steps["gpu_ns"][rows].astype(np.int64), 1)
        errors = 100.0 * (predicted - measured) / measured
        found["decode"].append(errors[~prefills])
        found["prefill"].append(errors[~decodes])
        found["mixed"].append(errors[decodes & prefills])
        found["all"].append(errors)
    return {
        region: np.concatenate(parts) if parts else np.empty(0) for region, parts in found.items()
    }


def host_times(models: Mapping[str, CostModel], runs: Sequence[Columns]) -> dict[str, Numbers]:
    """Medians of the host's time of recorded steps that decode only, and of those with prompts.

    Args:
        models: predict, by name.
        runs: columns of the steps of some runs, each of one replica.

    Returns:
        kind of step -> count, "measured" and each model's, in ms; without a kind that does not
        occur, and empty where no host times were recorded.
    """
    if not all("host_ns" in steps for steps in runs):
        return {}
    names = ("prefill_tokens", "decode_tokens", "host_ns")
    prefills, decodes, measured = (np.concatenate([run[name] for run in runs]) for name in names)
    predicted = {name: _host_ns(model, runs) for name, model in models.items()}
    found: dict[str, Numbers] = {}
    for kind, rows in (("decode", (prefills == 0) & (decodes > 0)), ("prompts", prefills > 0)):
        if rows.any():
            every = {"measured": measured, **predicted}
            medians = {name: float(np.median(ns[rows])) / 1e6 for name, ns in every.items()}
            found[kind] = {"count": int(rows.sum()), **medians}
    return found


def _host_ns(model: CostModel, runs: Sequence[Columns]) -> NDArray[np.int64]:
    """Of all steps; 0 for a step without tokens, of which no cost model knows anything."""
    parts = []
    for steps in runs:
        rows = np.flatnonzero((steps["prefill_tokens"] > 0) | (steps["decode_tokens"] > 0))
        host_ns = np.zeros(len(steps["host_ns"]), np.int64)
        host_ns[rows] = model.step_costs(features_of(steps, rows)).host_ns
        parts.append(host_ns)
    return np.concatenate(parts)


def spread(errors: Errors) -> Numbers:
    """Count, percentiles of absolute errors, and bias, which is the median of the signed ones."""
    if not len(errors):
        return {"count": 0, "median": None, "p90": None, "p99": None, "bias": None}
    median, p90, p99 = np.percentile(np.abs(errors), (50, 90, 99)).tolist()
    bias = float(np.median(errors))
    return {"count": len(errors), "median": median, "p90": p90, "p99": p99, "bias": bias}


def quantiles(errors: Errors) -> list[float]:
    """Absolute errors that 0, 1, ... 100 percent of the steps do not exceed; empty for none."""
    if not len(errors):
        return []
    found: list[float] = np.percentile(np.abs(errors), np.arange(101)).tolist()
    return found
