"""What checkpoints call each weight, and which part of a fused tensor it fills.

Mixtures exist in two spellings: with a tensor per expert, as on the Hub and as transformers saves
them, and with the experts stacked, as transformers 5 holds them in memory. Mixtral's block is
called `block_sparse_moe` on the Hub and `mlp` in transformers 5.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch

from engine.core.model_spec import ModelSpec
from engine.models.weights import DenseMlp, LayerWeights, MoeMlp, Weights


class Part(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        name: in the checkpoint.
        target: contiguous view of the engine's tensor that it fills, of the very same shape.
    """

    name: str
    target: torch.Tensor


def parts(weights: Weights, spec: ModelSpec, stored: Collection[str]) -> Iterator[Part]:
    """All tensors that a checkpoint of this model must hold.

    Args:
        weights: to be filled; on "meta" if only names and shapes are asked for.
        spec: of the model.
        stored: names in the checkpoint, which decide between spellings.
    """
    yield Part("model.embed_tokens.weight", weights.embed)
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        yield from _attention(layer, spec, f"{prefix}.self_attn")
        yield Part(f"{prefix}.input_layernorm.weight", layer.input_norm)
        yield Part(f"{prefix}.post_attention_layernorm.weight", layer.post_norm)
        if isinstance(layer.mlp, DenseMlp):
            yield from _dense(layer.mlp, f"{prefix}.mlp")
        else:
            yield from _mixture(layer.mlp, spec, prefix, stored)
    yield Part("model.norm.weight", weights.final_norm)
    if weights.lm_head is not weights.embed:
        yield Part("lm_head.weight", weights.lm_head)


def is_ignored(name: str, shape: tuple[int, ...], weights: Weights) -> bool:
    """Whether a tensor that no part names may be there: it holds nothing that is not known."""
    if name.endswith(".rotary_emb.inv_freq"):  # a buffer that old versions of transformers saved
        return True
    tied = weights.lm_head is weights.embed
    return tied and name == "lm_head.weight" and shape == tuple(weights.embed.shape)


def _attention(layer: LayerWeights, spec: ModelSpec, prefix: str) -> Iterator[Part]:
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    names = [f"{prefix}.{letter}_proj" for letter in "qkv"]
    for name, rows in zip(names, layer.qkv.split([query, key, key]), strict=True):
        yield Part(f"{name}.weight", rows)
    if layer.qkv_bias is not None:
        for name, rows in zip(names, layer.qkv_bias.split([query, key, key]), strict=True):
            yield Part(f"{name}.bias", rows)
    yield Part(f"{prefix}.o_proj.weight", layer.o)
    if layer.o_bias is not None:
        yield Part(f"{prefix}.o_proj.bias", layer.o_bias)
    if layer.q_norm is not None:
        yield Part(f"{prefix}.q_norm.weight", layer.q_norm)
    if layer.k_norm is not None:
        yield Part(f"{prefix}.k_norm.weight", layer.k_norm)


def _dense(mlp: DenseMlp, prefix: str) -> Iterator[Part]:
    gate, up = mlp.gate_up.chunk(2)
    yield Part(f"{prefix}.gate_proj.weight", gate)
    yield Part(f"{prefix}.up_proj.weight", up)
    yield Part(f"{prefix}.down_proj.weight", mlp.down)


def _mixture(mlp: MoeMlp, spec: ModelSpec, prefix: str, stored: Collection[str]) -> Iterator[Part]:
    block, gate, up, down = f"{prefix}.mlp", "gate_proj", "up_proj", "down_proj"
    if spec.family == "mixtral":
        gate, up, down = "w1", "w3", "w2"
        if f"{block}.gate.weight" not in stored:
            block = f"{prefix}.block_sparse_moe"
    yield Part(f"{block}.gate.weight", mlp.router)
    if f"{block}.experts.gate_up_proj" in stored:
        yield Part(f"{block}.experts.gate_up_proj", mlp.gate_up)
        yield Part(f"{block}.experts.down_proj", mlp.down)
        return
    for index, (both, down_rows) in enumerate(zip(mlp.gate_up, mlp.down, strict=True)):
        gate_rows, up_rows = both.chunk(2)
        expert = f"{block}.experts.{index}"
        yield Part(f"{expert}.{gate}.weight", gate_rows)
        yield Part(f"{expert}.{up}.weight", up_rows)
        yield Part(f"{expert}.{down}.weight", down_rows)
