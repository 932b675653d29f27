"""How much of each step's GPU time its decodes alone would have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.core.events import Columns
from workbench.analysis.source import Int64, int64

if TYPE_CHECKING:
    from simulator.cost_model import CostModel, StepFeatures

BY_TOKENS = "by token share (no cost model)"


def decode_share(
    steps: Columns,
    cost_models: Mapping[int, CostModel],
    graph_batch_sizes: Mapping[int, Sequence[int]],
) -> tuple[Int64, str]:
    """Decode part of every step's `gpu_ns`, and the rule that gave it.

    A step without prefill is all decode, one without decode has none. For a mixed step, the cost
    model is asked twice, for the step as it was and for its decodes alone (prefill features zero,
    the CUDA Graph that a pure decode batch of this size gets); the recorded GPU time is divided in
    that proportion. On replicas without a cost model it is divided by tokens.

    Args:
        steps: the `steps` table, n rows.
        cost_models: replica -> its cost model.
        graph_batch_sizes: replica -> its CUDA Graph batch sizes; mixed steps do not show them.

    Returns:
        int64[n] ns with 0 <= part <= gpu_ns, and a name for the rule.
    """
    gpu = int64(steps, "gpu_ns")
    prefill, decode = int64(steps, "prefill_tokens"), int64(steps, "decode_tokens")
    part = np.floor(gpu * (decode / np.maximum(prefill + decode, 1))).astype(np.int64)
    part = np.where(prefill == 0, np.where(decode > 0, gpu, 0), np.minimum(part, gpu))
    mixed = (prefill > 0) & (decode > 0)
    rules = set()
    for replica in np.unique(steps["replica"][mixed]).tolist():
        model = cost_models.get(replica)
        rules.add(BY_TOKENS if model is None else f"by cost model ({model.name})")
        if model is not None:
            rows = np.flatnonzero(mixed & (steps["replica"] == replica))
            part[rows] = _modelled(
                steps, rows, gpu[rows], model, graph_batch_sizes.get(replica, ())
            )
    return part, "; ".join(sorted(rules)) or "exactly (no step mixed prefill with decode)"


def _modelled(
    steps: Columns, rows: Int64, gpu: Int64, model: CostModel, graph_batch_sizes: Sequence[int]
) -> Int64:
    whole = model.step_costs(features_of(steps, rows)).gpu_ns
    alone = model.step_costs(_decodes_alone(features_of(steps, rows), graph_batch_sizes)).gpu_ns
    scaled = np.floor(gpu * (alone / np.maximum(whole, 1))).astype(np.int64)
    part: Int64 = np.clip(np.where(gpu == whole, alone, scaled), 0, gpu)
    return part


def features_of(steps: Mapping[str, NDArray[np.generic]], rows: Int64) -> StepFeatures:
    """What a cost model is asked about the steps at `rows` of a `steps` table."""
    from simulator.cost_model import UNKNOWN, StepFeatures

    columns = {name: column[rows].astype(np.int64) for name, column in steps.items()}
    columns["active_experts"] = np.full(len(rows), UNKNOWN, np.int64)
    return StepFeatures(**{field.name: columns[field.name] for field in fields(StepFeatures)})


def _decodes_alone(features: StepFeatures, graph_batch_sizes: Sequence[int]) -> StepFeatures:
    """The same steps without their prefills."""
    from simulator.cost_model import UNKNOWN

    nothing = np.zeros(len(features), np.int64)
    return replace(
        features,
        prefill_tokens=nothing,
        prefill_requests=nothing,
        prefill_context=nothing,
        prefill_pairs=nothing,
        prefill_max_context=nothing,
        sampled_tokens=np.minimum(features.sampled_tokens, features.decode_tokens),
        graph_batch=_graph_batch(features.decode_requests, graph_batch_sizes),
        active_experts=np.full_like(nothing, UNKNOWN),
    )


def _graph_batch(decode_requests: Int64, sizes: Sequence[int]) -> Int64:
    """Smallest captured size that holds each batch, 0 (eager) where none does."""
    ladder = np.append(np.unique(np.array(sizes, np.int64)), 0)
    return ladder[np.searchsorted(ladder[:-1], decode_requests)]
