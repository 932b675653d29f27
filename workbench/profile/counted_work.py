"""Bytes and FLOPs that a step has to move and do, by class of kernels: the least there is to do.

The counts are those of the analytic cost model (`simulator.roofline`), taken from the same
functions of the model's shape: weights and KV are read once, multiply-adds count as two, inputs and
outputs of products stay in the cache. `tests/test_profile_roofline.py` holds the two together. They
differ in one thing: after its attention the engine's last layer computes only the tokens whose
logits are wanted, as nobody looks at the others, and that model lets it compute all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.core.model_spec import ModelSpec
from simulator.cost_model import StepShape
from simulator.layer_kernels import (
    elementwise_bytes_of_last_rows,
    elementwise_bytes_per_row,
    last_mixture,
    sampling_bytes_per_row,
)
from simulator.roofline_coefficients import expected_experts

# Weight of a checkpoint -> class of the kernel that multiplies with it.
_CLASS_OF: Final[Mapping[str, str]] = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "q_bias": "qkv", "k_bias": "qkv",
    "v_bias": "qkv", "q_a_proj": "qkv", "q_b_proj": "qkv", "kv_a_proj_with_mqa": "qkv",
    "kv_b_proj": "qkv", "o_proj": "output", "o_bias": "output", "lm_head": "lm_head",
    "router": "router", "e_score_correction_bias": "router",
}  # fmt: skip
ELEMENTWISE: Final = "elementwise"
"""Norms, rotary embedding with KV write and activations: kernels that only move data."""
ELEMENTWISE_CLASSES: Final = ("embedding", "norm", "rotary", "activation")


@dataclass(frozen=True, slots=True)
class Work:
    """What a class of kernels has to do in a step.

    Attributes:
        num_bytes: that it moves, at least.
        flops: that it does.
    """

    num_bytes: float
    flops: float

    def times(self, factor: float) -> Work:
        """So many times as much."""
        return Work(factor * self.num_bytes, factor * self.flops)

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0


def counted_work(
    model: ModelSpec,
    step: StepShape,
    *,
    tensor_parallel_size: int = 1,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    whole_last_layer: bool = False,
) -> dict[str, Work]:
    """Class -> what it has to do in a step on one GPU; classes that have nothing are left out.

    Args:
        model: what runs.
        step: the step.
        tensor_parallel_size: on how many GPUs.
        weight_dtype: of the projections; None is the checkpoint's own.
        kv_dtype: of the KV cache; None is the model's dtype.
        whole_last_layer: whether all tokens go through all of it, as in the analytic model.
    """
    tp, kv_dtype = tensor_parallel_size, kv_dtype or model.dtype
    rows = max(step.prefill_tokens + step.decode_tokens, step.graph_batch)
    logits = max(step.sampled_tokens, step.graph_batch) if step.sampled_tokens else 0
    last = logits if step.prefill_tokens and not whole_last_layer else rows
    weights = weight_dtype or model.weight_dtype
    found = _products(model, step, _Rows(rows, last, logits), tp, weights)
    found |= _attention(model, step, tp, kv_dtype)
    if not last:  # the last layer attends to nothing that nobody looks at
        for kind in found.keys() & {"attention_prefill", "attention_decode"}:
            found[kind] = found[kind].times(1 - 1 / model.num_layers)
    norms = found.pop(ELEMENTWISE).num_bytes
    moved = rows * elementwise_bytes_per_row(model, kv_dtype, tp)
    moved -= (rows - last) * elementwise_bytes_of_last_rows(model, tp)
    found[ELEMENTWISE] = Work(norms + moved, 0)
    if logits:
        found["sampling"] = Work(logits * sampling_bytes_per_row(model), 0)
    return {kind: work for kind, work in found.items() if work.num_bytes or work.flops}


class _Rows(NamedTuple):
    """How many rows go through all layers, through the last one's end, and through lm_head."""

    all: int
    last: int
    logits: int


def _products(
    model: ModelSpec, step: StepShape, rows: _Rows, tp: int, weight_dtype: str
) -> dict[str, Work]:
    found: defaultdict[str, Work] = defaultdict(lambda: Work(0, 0))
    for matrix in model.weights:
        kind = _CLASS_OF.get(matrix.name) or _class_of_group(matrix.group, matrix.name)
        if kind is None:
            continue
        stored = matrix.local_bytes(model.dtype, weight_dtype, tp)
        flops = matrix.local_flops_per_token(tp)
        at_end = _share_at_end(model, matrix.group, kind) if rows.last != rows.all else 0.0
        others = rows.logits if kind == "lm_head" else rows.all
        moved, done = found[kind].num_bytes, found[kind].flops
        for share, count in ((1 - at_end, others), (at_end, rows.last)):
            if share and count:
                visited = _share_of_experts(model, step, count) if kind == "experts" else 1
                moved += share * visited * stored
                done += share * count * flops
        found[kind] = Work(moved, done)
    return found


def _share_at_end(model: ModelSpec, group: str, kind: str) -> float:
    """The share of a kind of weights that multiply after the last layer's attention."""
    mixture = last_mixture(model)
    if kind == "output":
        return 1 / model.num_layers
    if group == "mlp" and mixture is None:
        return 1 / model.num_dense_layers
    if group in ("router", "experts", "shared_experts") and mixture is not None:
        return 1 / len(mixture.layers)
    return 0.0


def _class_of_group(group: str, name: str) -> str | None:
    if group == "experts":
        return "experts"
    if group == "norm":
        return ELEMENTWISE
    if group in ("mlp", "shared_experts"):
        return "down" if name == "down_proj" else "gate_up"
    return None


def _share_of_experts(model: ModelSpec, step: StepShape, rows: int) -> float:
    """Of all experts that are stored, those that a step visits."""
    moe = model.moe
    if moe is None:
        return 0.0
    stored = moe.num_experts * len(moe.layers)
    if step.active_experts >= 0:
        return step.active_experts / stored
    visited = expected_experts(model)
    return visited[min(rows, len(visited) - 1)] / stored


def _attention(model: ModelSpec, step: StepShape, tp: int, kv_dtype: str) -> dict[str, Work]:
    kv_bytes = model.kv_bytes_per_token(kv_dtype, tp)
    found: dict[str, Work] = {}
    flops: float
    if step.prefill_tokens:
        flops = model.prefill_attention_flops_per_pair(tp) * step.prefill_pairs
        flops += model.context_expansion_flops_per_token(tp) * step.prefill_context
        tokens = step.prefill_context + step.prefill_tokens
        found["attention_prefill"] = Work(kv_bytes * tokens, flops)
    if step.decode_tokens:
        queries = step.decode_tokens / max(step.decode_requests, 1)
        flops = model.decode_attention_flops_per_pair(tp) * queries * step.decode_context
        found["attention_decode"] = Work(kv_bytes * step.decode_context, flops)
    return found
