"""What a cost model says of the very steps that the engine did: errors of each, and host times.

Beside them stands what the engine's runs say of each other's steps, where the same step occurs in
all of them: a model that knew what a step takes in the mean would still miss each run's by so much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.events import Columns
from simulator.cost_model import CostModel
from workbench.analysis.decode_share import features_of
from workbench.analysis.predicted_steps import predicted_ns

REGIONS: Final = ("decode", "prefill", "mixed", "all")
_PROMPTS: Final = ("prefill_tokens", "prefill_requests", "prefill_context", "prefill_pairs",
                   "decode_requests", "graph_batch")  # fmt: skip
_DECODES: Final = ("decode_context", "decode_max_context", "shared_context")
_AS_LONG: Final = 1.01  # times the context of the same step in another run, at most
Errors = NDArray[np.float64]
Int64 = NDArray[np.int64]
Numbers = dict[str, float | None]


def step_errors(model: CostModel, runs: Sequence[Columns]) -> dict[str, Errors]:
    """Signed errors of predicted GPU times of recorded steps, in percent, by region.

    Args:
        model: predicts.
        runs: columns of the steps of some runs, each of one replica.
    """
    found: dict[str, list[Errors]] = {region: [] for region in REGIONS}
    for steps in runs:
        rows = np.flatnonzero((steps["decode_tokens"] > 0) | (steps["prefill_tokens"] > 0))
        predicted = predicted_ns(model, steps)[rows]
        measured = np.maximum(steps["gpu_ns"][rows].astype(np.int64), 1)
        errors = 100.0 * (predicted - measured) / measured
        for region, of_region in _by_region(steps, rows, errors).items():
            found[region].append(of_region)
    return {
        region: np.concatenate(parts) if parts else np.empty(0) for region, parts in found.items()
    }


def errors_of_repeats(runs: Sequence[Columns]) -> dict[str, Errors]:
    """The same of what steps take in the mean, as far as runs tell: of those once in each run.

    A step with prompts is the same if its decoding requests have about as much context. Each run
    is compared with the mean of the others, which some runs tell with noise of its own: of n runs
    the square is n / (n - 1) times as large in the mean as it would be of infinitely many. So much
    is taken off.

    Args:
        runs: columns of the steps of some runs of one load, each of one replica; of fewer than two
            nothing is said.
    """
    nothing = {region: np.empty(0) for region in REGIONS}
    if len(runs) < 2:
        return nothing
    rows_of = [_rows_of_steps(run) for run in runs]
    same = sorted(set(rows_of[0]).intersection(*rows_of[1:]))
    rows = np.array([[found[key] for key in same] for found in rows_of], np.int64)
    contexts = [run["decode_context"][at] for run, at in zip(runs, rows, strict=True)]
    rows = rows[:, np.max(contexts, axis=0) <= _AS_LONG * np.min(contexts, axis=0)]
    times = np.array([run["gpu_ns"][at] for run, at in zip(runs, rows, strict=True)], np.float64)
    others = (times.sum(axis=0) - times) / (len(runs) - 1)
    errors = 100.0 * (others / np.maximum(times, 1.0) - 1.0)
    errors *= np.sqrt((len(runs) - 1) / len(runs))
    by_run = [_by_region(run, at, off) for run, at, off in zip(runs, rows, errors, strict=True)]
    found = {region: np.concatenate([each[region] for each in by_run]) for region in REGIONS}
    # Those that occur again are of other regions than all are: of both together they say nothing.
    return found | {"all": np.empty(0)}


def _rows_of_steps(steps: Columns) -> dict[tuple[int, ...], int]:
    """What tells a step from all others of its run -> its row, if there is no other like it."""
    prompts = steps["prefill_tokens"] > 0
    decodes = [np.where(prompts, 0, steps[name]) for name in _DECODES]
    rows = np.flatnonzero(prompts | (steps["decode_tokens"] > 0))
    columns = [steps[name][rows].tolist() for name in _PROMPTS]
    columns += [column[rows].tolist() for column in decodes]
    keys = list(zip(*columns, strict=True))
    counts = Counter(keys)
    return {key: row for key, row in zip(keys, rows.tolist(), strict=True) if counts[key] == 1}


def _by_region(steps: Columns, rows: Int64, errors: Errors) -> dict[str, Errors]:
    """Errors of some rows by the regions of these."""
    decodes, prefills = steps["decode_tokens"][rows] > 0, steps["prefill_tokens"][rows] > 0
    return {
        "decode": errors[~prefills], "prefill": errors[~decodes],
        "mixed": errors[decodes & prefills], "all": errors,
    }  # fmt: skip


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
