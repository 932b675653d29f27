"""Names what each op of a model computes, in traces of torch's profiler and in NVTX. Needs torch.

The ops of a built model are wrapped from outside, so that an engine that is not profiled knows
nothing of it. A kernel that a CUDA Graph replays was launched before, outside of all ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.profiler import record_function

from engine.kernels.registry import KernelSet
from engine.models.transformer import Transformer
from engine.models.weights import DenseMlp
from engine.nvtx_ranges import annotate
from engine.profiling.op_classes import RANGE

Op = Callable[..., Any]
_BY_NAME = {
    "embed_tokens": "embedding", "norm": "norm", "rotary_kv_write": "rotary",
    "decode_attention": "attention_decode", "prefill_attention": "attention_prefill",
    "route": "routing", "moe_mlp": "experts", "sample": "sampling", "write_pages": "page_table",
}  # fmt: skip
# Ops that are used for several products: the place of the weight among their arguments.
_BY_WEIGHT = {"linear": 1, "norm_linear": 4, "norm_gated_linear": 4, "residual_linear": 1}


def named_ops(transformer: Transformer) -> KernelSet:
    """The kernels of a model, each op in a range that is called as `op_classes` has it."""
    kernels, weights = transformer.kernels, _names_of_weights(transformer)
    ops: dict[str, Op] = {op: _named(getattr(kernels, op), name) for op, name in _BY_NAME.items()}
    for op, place in _BY_WEIGHT.items():
        ops[op] = _named_by_weight(getattr(kernels, op), place, weights)
    return replace(kernels, **ops)


def _names_of_weights(transformer: Transformer) -> dict[int, str]:
    """`id` of a weight -> class of the product with it; the model keeps them all alive."""
    names = {id(transformer.weights.lm_head): "lm_head"}
    for layer in transformer.weights.layers:
        names |= {id(layer.qkv): "qkv", id(layer.o): "output"}
        if isinstance(layer.mlp, DenseMlp):
            names |= {id(layer.mlp.gate_up): "gate_up", id(layer.mlp.down): "down"}
        else:
            names[id(layer.mlp.router)] = "router"
    return names


def _named(op: Op, name: str) -> Op:
    def in_range(*arguments: Any, **options: Any) -> Any:
        with annotate(name), record_function(RANGE + name):
            return op(*arguments, **options)

    return in_range


def _named_by_weight(op: Op, place: int, names: dict[int, str]) -> Op:
    def in_range(*arguments: Any, **options: Any) -> Any:
        name = names.get(id(arguments[place]), "other")
        with annotate(name), record_function(RANGE + name):
            return op(*arguments, **options)

    return in_range
