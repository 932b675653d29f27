"""The decoder written down once more, as plainly as possible: float64, one text, no cache."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from engine.core.model_spec import ModelSpec
from engine.models.rope import rope_table
from engine.models.weights import DenseMlp, LayerWeights, MoeMlp, Weights


def reference_logits(spec: ModelSpec, weights: Weights, token_ids: list[int]) -> torch.Tensor:
    """float64[T, V]: the logits after each token of a text."""
    device = weights.embed.device
    x = weights.embed[torch.tensor(token_ids, device=device)].double()
    for layer in weights.layers:
        x = x + _attention(spec, layer, _norm(x, layer.input_norm, spec.rms_norm_eps))
        x = x + _mlp(spec, layer.mlp, _norm(x, layer.post_norm, spec.rms_norm_eps))
    return _norm(x, weights.final_norm, spec.rms_norm_eps) @ weights.lm_head.double().T


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = x @ weight.double().T
    return out if bias is None else out + bias.double()


def _attention(spec: ModelSpec, layer: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    dim, kv_heads = spec.head_dim, spec.num_kv_heads
    qkv = _linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, dim)
    q, k, v = qkv.split([spec.num_heads, kv_heads, kv_heads], 1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = _norm(q, layer.q_norm, spec.rms_norm_eps)
        k = _norm(k, layer.k_norm, spec.rms_norm_eps)
    table = rope_table(spec.rope, dim, len(x), x.device).double()
    q, k = _rotated(q, table), _rotated(k, table)
    k, v = (t.repeat_interleave(spec.num_heads // kv_heads, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
    return _linear(out, layer.o, layer.o_bias)


def _rotated(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    cos, sin = table[:, None].chunk(2, -1)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _gated(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ gate_up.double().T).chunk(2, -1)
    return (silu(gate) * up) @ down.double().T


def _mlp(spec: ModelSpec, mlp: DenseMlp | MoeMlp, x: torch.Tensor) -> torch.Tensor:
    if isinstance(mlp, DenseMlp):
        return _gated(x, mlp.gate_up, mlp.down)
    assert spec.moe is not None
    shares = (x @ mlp.router.double().T).softmax(-1)
    best, experts = shares.topk(spec.moe.experts_per_token, -1)
    if spec.moe.renormalize:
        best = best / best.sum(-1, keepdim=True)
    share_of = torch.zeros_like(shares).scatter(1, experts, best)
    every = [_gated(x, *pair) for pair in zip(mlp.gate_up, mlp.down, strict=True)]
    return torch.einsum("te,eth->th", share_of, torch.stack(every))
