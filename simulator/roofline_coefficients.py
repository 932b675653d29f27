"""From a model's shapes and a GPU's ceilings to the ns per unit of work of the analytic model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.core.dtypes import QUANTIZED_DTYPES, dtype_bytes
from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from engine.core.weight_table import WeightGroup
from simulator.layer_kernels import (
    KernelCounts,
    elementwise_bytes_per_row,
    kernel_counts,
    sampling_bytes_per_row,
)

_SECOND_NS: Final = 1e9


@dataclass(frozen=True, slots=True)
class GemmCost:
    """A phase of GEMMs: max(weights_ns, row_ns * rows), reading weights once or arithmetic."""

    weights_ns: float
    row_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineCoefficients:
    """ns on one GPU, as floats, of each unit of work.

    Attributes:
        linear: projections of attention, MLP and shared experts.
        plain: norms and routers, which quantization leaves alone.
        experts_row_ns: arithmetic of the routed experts per row.
        expert_ns: reading the weights of one routed expert of one layer.
        lm_head: per row of logits.
        sampling_row_ns: one pass over a row of logits.
        elementwise_row_ns: kernels between GEMMs and attention.
        kv_token_ns: reading the KV of one token.
        prefill_pair_ns: arithmetic of one (query, key) pair in prefill.
        prefill_expand_ns: turning one cached latent back into keys and values (MLA only).
        decode_pair_ns: arithmetic of one pair in decode.
        all_reduce_ns, all_reduce_row_ns: all reductions of a step, latency and per row.
        gather_ns, gather_row_ns: the gather of logits, latency and per row of logits.
        kernels: launches of a step.
        graph_node_ns, eager_launch_ns: of each of them, whole ns.
    """

    linear: GemmCost
    plain: GemmCost
    experts_row_ns: float
    expert_ns: float
    lm_head: GemmCost
    sampling_row_ns: float
    elementwise_row_ns: float
    kv_token_ns: float
    prefill_pair_ns: float
    prefill_expand_ns: float
    decode_pair_ns: float
    all_reduce_ns: float
    all_reduce_row_ns: float
    gather_ns: float
    gather_row_ns: float
    kernels: KernelCounts
    graph_node_ns: int
    eager_launch_ns: int


def roofline_coefficients(
    model: ModelSpec, gpu: HardwareSpec, tensor_parallel_size: int, weight_dtype: str, kv_dtype: str
) -> RooflineCoefficients:
    """The coefficients of one replica.

    Raises:
        TensorParallelError: the model does not divide over that many GPUs.
        UnknownDtypeError: no such dtype.
        UnsupportedGpuDtypeError: the GPU does not compute in that dtype.
    """
    tp = tensor_parallel_size
    plain_dtype = model.dtype if weight_dtype in QUANTIZED_DTYPES else weight_dtype
    linear = _gemm(model, gpu, tp, ("attention", "mlp", "shared_experts"), weight_dtype)
    experts = _gemm(model, gpu, tp, ("experts",), weight_dtype)
    stored_experts = model.moe.num_experts * len(model.moe.layers) if model.moe else 1
    copy_ns = _SECOND_NS / gpu.copy_bandwidth
    attention_ns = _SECOND_NS / gpu.attention_flops
    reduce_count = 2 * model.num_layers + 1 if tp > 1 else 0
    latency_ns = float(gpu.achievable.all_reduce_ns if tp > 1 else 0)
    # A gather moves (tp-1)/tp of the whole through each link, a ring all-reduce twice that.
    element_ns = dtype_bytes(model.dtype) * ((tp - 1) / tp) * _SECOND_NS / gpu.all_reduce_bandwidth
    return RooflineCoefficients(
        linear=linear,
        plain=_gemm(model, gpu, tp, ("norm", "router"), weight_dtype, plain_dtype),
        experts_row_ns=experts.row_ns,
        expert_ns=experts.weights_ns / stored_experts,
        lm_head=_gemm(model, gpu, tp, ("lm_head",), weight_dtype, plain_dtype),
        sampling_row_ns=sampling_bytes_per_row(model) * copy_ns,
        elementwise_row_ns=elementwise_bytes_per_row(model, kv_dtype, tp) * copy_ns,
        kv_token_ns=model.kv_bytes_per_token(kv_dtype, tp) * copy_ns,
        prefill_pair_ns=model.prefill_attention_flops_per_pair(tp) * attention_ns,
        prefill_expand_ns=model.context_expansion_flops_per_token(tp)
        * (_SECOND_NS / gpu.gemm_flops(weight_dtype)),
        decode_pair_ns=model.decode_attention_flops_per_pair(tp) * attention_ns,
        all_reduce_ns=reduce_count * latency_ns,
        all_reduce_row_ns=2 * reduce_count * model.hidden_size * element_ns,
        gather_ns=latency_ns,
        gather_row_ns=model.vocab_size * element_ns,
        kernels=kernel_counts(model),
        graph_node_ns=gpu.achievable.graph_node_ns,
        eager_launch_ns=gpu.achievable.eager_launch_ns,
    )


def expected_experts(model: ModelSpec) -> list[float]:
    """Expected (layer, expert) pairs that R rows visit, for R = 0, 1, ... until it is all of them.

    With E experts of which a row visits k, uniformly and independently of other rows, R rows visit
    E * (1 - (1 - k/E)^R) of a layer; summed over the MoE layers. [0.0] for a dense model.
    """
    if model.moe is None:
        return [0.0]
    total = float(model.moe.num_experts * len(model.moe.layers))
    visited, missed = [0.0], 1.0
    kept = 1.0 - model.moe.experts_per_token / model.moe.num_experts
    while visited[-1] < total:
        missed *= kept
        visited.append(total * (1.0 - missed))
    return visited


def _gemm(
    model: ModelSpec,
    gpu: HardwareSpec,
    tensor_parallel_size: int,
    groups: tuple[WeightGroup, ...],
    weight_dtype: str,
    compute_dtype: str | None = None,
) -> GemmCost:
    sizes = model.weight_bytes_by_group(weight_dtype, tensor_parallel_size)
    flops = model.flops_per_token_by_group(tensor_parallel_size)
    return GemmCost(
        sum(sizes.get(group, 0) for group in groups) * (_SECOND_NS / gpu.weight_bandwidth),
        sum(flops.get(group, 0) for group in groups)
        * (_SECOND_NS / gpu.gemm_flops(compute_dtype or weight_dtype)),
    )
