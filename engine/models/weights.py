"""The weights of a model as the engine computes with them: plain tensors, fused where that is fast.

H hidden size, V vocabulary, D head size, Hq and Hk query and key/value heads, I width of the MLP
(of one expert in a mixture), E experts. Every matrix is [out, in] and contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from engine.core.model_spec import ModelSpec


class UnsupportedModelError(ValueError):
    """A model whose shape the engine has no weights for."""


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """A gated MLP.

    Attributes:
        gate_up: [2 I, H], the gate's rows first.
        down: [H, I].
    """

    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """A mixture of gated MLPs.

    Attributes:
        router: [E, H].
        gate_up: [E, 2 I, H], each gate's rows first.
        down: [E, H, I].
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer.

    Attributes:
        input_norm: [H], before attention.
        qkv: [(Hq + 2 Hk) D, H]: queries, keys, values.
        qkv_bias: [(Hq + 2 Hk) D] or None.
        q_norm, k_norm: [D], the norm of each head before the rotation, or None.
        o: [H, Hq D].
        o_bias: [H] or None.
        post_norm: [H], after attention, before the MLP.
        mlp: dense or a mixture.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor
    mlp: DenseMlp | MoeMlp


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model.

    Attributes:
        embed: [V, H].
        layers: in order of execution.
        final_norm: [H].
        lm_head: [V, H]; the very object `embed` if the model ties them.
    """

    embed: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    lm_head: torch.Tensor


def empty_weights(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype) -> Weights:
    """Weights of the right shapes with arbitrary contents; on "meta" they cost nothing.

    Raises:
        UnsupportedModelError: latent attention, shared experts or a router bias.
    """
    _check_supported(spec)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def layer(index: int) -> LayerWeights:
        heads, kv_heads, width = spec.num_heads, spec.num_kv_heads, spec.head_dim
        hidden, rows = spec.hidden_size, (heads + 2 * kv_heads) * width
        return LayerWeights(
            input_norm=empty(hidden),
            qkv=empty(rows, hidden),
            qkv_bias=empty(rows) if spec.qkv_bias else None,
            q_norm=empty(width) if spec.qk_norm else None,
            k_norm=empty(width) if spec.qk_norm else None,
            o=empty(hidden, heads * width),
            o_bias=empty(hidden) if spec.output_bias else None,
            post_norm=empty(hidden),
            mlp=mlp(index),
        )

    def mlp(index: int) -> DenseMlp | MoeMlp:
        hidden, moe = spec.hidden_size, spec.moe
        if moe is None or index not in moe.layers:
            width = spec.intermediate_size
            return DenseMlp(empty(2 * width, hidden), empty(hidden, width))
        experts, width = moe.num_experts, moe.intermediate_size
        return MoeMlp(
            router=empty(experts, hidden),
            gate_up=empty(experts, 2 * width, hidden),
            down=empty(experts, hidden, width),
        )

    embed = empty(spec.vocab_size, spec.hidden_size)
    return Weights(
        embed=embed,
        layers=tuple(layer(index) for index in range(spec.num_layers)),
        final_norm=empty(spec.hidden_size),
        lm_head=embed if spec.tied else empty(spec.vocab_size, spec.hidden_size),
    )


def named_tensors(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor once, in a fixed order, with a path such as "layers.3.mlp.down"."""
    yield "embed", weights.embed
    for index, layer in enumerate(weights.layers):
        yield from _fields(layer, f"layers.{index}")
    yield "final_norm", weights.final_norm
    if weights.lm_head is not weights.embed:
        yield "lm_head", weights.lm_head


def weight_bytes(weights: Weights) -> int:
    """Bytes of all tensors; a tied embedding counts once."""
    return sum(tensor.nbytes for _, tensor in named_tensors(weights))


def _fields(
    part: LayerWeights | DenseMlp | MoeMlp, path: str
) -> Iterator[tuple[str, torch.Tensor]]:
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, torch.Tensor):
            yield f"{path}.{field.name}", value
        elif value is not None:
            yield from _fields(value, f"{path}.{field.name}")


def _check_supported(spec: ModelSpec) -> None:
    reasons = []
    if spec.mla is not None:
        reasons.append("latent attention")
    if spec.moe is not None and spec.moe.num_shared_experts:
        reasons.append("shared experts")
    if spec.moe is not None and spec.moe.router_bias:
        reasons.append("a router with a bias")
    if reasons:
        raise UnsupportedModelError(
            f"{spec.name}: the engine cannot run {', '.join(reasons)} (family {spec.family})"
        )
