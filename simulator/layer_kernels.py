"""Which kernels a step is made of: how many, and what the ones between the GEMMs move.

An engine with the fusions that are usual by now is assumed: residual add with norm, one GEMM for
queries, keys and values, head norms with rotary embedding and KV write, one GEMM for gate and up,
activation with product. An all-reduce is not counted here; its latency holds its launch.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.dtypes import dtype_bytes
from engine.core.model_spec import ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """Kernel launches of a step.

    Attributes:
        always: in every step.
        prefill: more, if the step prefills: attention.
        decode: more, if it decodes: split attention and the combination of its parts.
        logits: more, if it samples: lm_head and sampling.
    """

    always: int
    prefill: int
    decode: int
    logits: int


def kernel_counts(model: ModelSpec) -> KernelCounts:
    """Kernel launches of one step on one GPU."""
    # Norm, QKV GEMM, rotary embedding with KV write, output GEMM. Latent attention adds: norm of
    # the latents, second query GEMM, and one GEMM each to absorb (or expand) keys and values.
    attention = 4 if model.mla is None else 8
    dense = 4  # norm, gate-up GEMM, activation, down GEMM
    always = 2 + model.num_layers * attention + model.num_dense_layers * dense
    if model.moe is not None:
        # Norm, router GEMM, top-k, sort, gate-up, activation, down, combination; shared: 3 more.
        experts = 8 + (3 if model.moe.num_shared_experts else 0)
        always += len(model.moe.layers) * experts
    return KernelCounts(always, model.num_layers, 2 * model.num_layers, 2)


def elementwise_bytes_per_row(
    model: ModelSpec, kv_dtype: str | None, tensor_parallel_size: int
) -> int:
    """Bytes that one token moves on one GPU in the kernels between GEMMs and attention.

    Inputs and outputs of the GEMMs themselves are not in it: they stay in the L2 cache at decode
    sizes and hide behind arithmetic at prefill sizes.
    """
    tp, hidden = tensor_parallel_size, model.hidden_size
    heads = model.num_heads // tp
    add_and_norm = _add_and_norm(model)
    if model.mla is None:
        kv_heads = max(1, model.num_kv_heads // tp)
        rotary = (2 * heads + 2 * kv_heads) * model.head_dim
    else:
        latent = (model.mla.q_lora_rank or 0) + model.mla.kv_lora_rank
        rotary = 2 * heads * model.head_dim + 2 * latent
    activations = 2 * hidden + (2 * model.num_layers + 1) * add_and_norm + model.num_layers * rotary
    activations += model.num_dense_layers * _dense_activations(model, tp)
    if model.moe is not None:
        activations += len(model.moe.layers) * _mixture_activations(model, model.moe, tp)
    written_kv = model.kv_bytes_per_token(kv_dtype, tp)
    return activations * dtype_bytes(model.dtype) + written_kv


def elementwise_bytes_of_last_rows(model: ModelSpec, tensor_parallel_size: int) -> int:
    """Of these, the bytes after the last layer's attention: two norms and the activation."""
    last = last_mixture(model)
    activations = 2 * _add_and_norm(model)
    activations += (
        _dense_activations(model, tensor_parallel_size)
        if last is None
        else _mixture_activations(model, last, tensor_parallel_size)
    )
    return activations * dtype_bytes(model.dtype)


def last_mixture(model: ModelSpec) -> MoeSpec | None:
    """The mixture of the last layer; None: that is a dense one."""
    moe = model.moe
    return moe if moe is not None and model.num_layers - 1 in moe.layers else None


def _add_and_norm(model: ModelSpec) -> int:
    """Read residual and increment, write both residual and its norm."""
    return 4 * model.hidden_size


def _dense_activations(model: ModelSpec, tp: int) -> int:
    return 3 * (model.intermediate_size // tp)


def _mixture_activations(model: ModelSpec, moe: MoeSpec, tp: int) -> int:
    combine = (moe.experts_per_token + 1) * model.hidden_size
    visited = moe.experts_per_token + moe.num_shared_experts
    return visited * 3 * (moe.intermediate_size // tp) + combine


def sampling_bytes_per_row(model: ModelSpec) -> int:
    """Bytes that one row of logits moves: fp32 over the whole vocabulary, written and read once."""
    return 2 * dtype_bytes("fp32") * model.vocab_size
