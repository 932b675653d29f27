"""The decoder that is trained: Qwen3's, dense or with a mixture of experts, under its own names.

The names of the parameters are those of Qwen3 in Hugging Face checkpoints, so that exporting is
writing them down (the experts, stacked here, are written one by one). Shapes: B texts, T tokens,
H hidden size, E experts, I width of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_training.bpe_constants import VOCAB_SIZE
from demo_training.shapes import CONTEXT_TOKENS, HEAD_DIM, NORM_EPS, ROPE_THETA, Shape


class Routing(NamedTuple):
    """What a mixture did with its tokens.

    Attributes:
        probabilities: float32[B T, E], of the router.
        experts: int64[B T, k], that were chosen.
    """

    probabilities: Tensor
    experts: Tensor


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 matrix products on a GPU; a CPU computes in float32, which it does faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
        return (wide * scale * self.weight).to(x.dtype)


def rope_tables(positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32[positions, HEAD_DIM]."""
    inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * inverse
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, heads, T, HEAD_DIM]; a head's halves are the parts of its complex numbers."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with a norm per head on queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = shape.heads * HEAD_DIM
        self.q_proj, self.k_proj, self.v_proj = (_linear(shape.hidden, size) for _ in range(3))
        self.o_proj = _linear(size, shape.hidden, zero=True)
        self.q_norm, self.k_norm = RMSNorm(HEAD_DIM), RMSNorm(HEAD_DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self._project(x, cos, sin)
        return self._merge(functional.scaled_dot_product_attention(q, k, v, is_causal=True))

    def with_cache(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor], past: int
    ) -> Tensor:
        """The same for tokens after `past` others, whose keys and values are in the cache.

        Args:
            x: [B, T, H]; with a past, T must be 1.
            cos: of all positions.
            sin: likewise.
            cache: keys and values [B, heads, positions, HEAD_DIM]; the new ones are written there.
            past: tokens that are in it.
        """
        end = past + x.shape[1]
        q, k, v = self._project(x, cos[past:end], sin[past:end])
        keys, values = cache
        keys[:, :, past:end], values[:, :, past:end] = k, v
        keys, values = keys[:, :, :end].to(q.dtype), values[:, :, :end].to(q.dtype)
        return self._merge(
            functional.scaled_dot_product_attention(q, keys, values, is_causal=past == 0)
        )

    def _project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (*x.shape[:2], -1, HEAD_DIM)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)
        return q, k, self.v_proj(x).view(heads).transpose(1, 2)

    def _merge(self, mixed: Tensor) -> Tensor:
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """A gated MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.width)
        self.up_proj = _linear(shape.hidden, shape.width)
        self.down_proj = _linear(shape.width, shape.hidden, zero=True)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x)), None


class Mixture(nn.Module):
    """Gated MLPs of which each token visits a few.

    All experts compute all tokens, and those that were not chosen count zero: at this size that is
    faster than sorting. `bias` is added where experts are chosen, not where they are weighed
    (arXiv:2408.15664); it stays zero unless somebody moves it.
    """

    bias: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, width = shape.hidden, shape.width
        self.k = shape.experts_per_token
        self.gate = nn.Linear(hidden, shape.experts, bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)
        self.gate_up = nn.Parameter(torch.randn(shape.experts, 2 * width, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.zeros(shape.experts, hidden, width))
        self.register_buffer("bias", torch.zeros(shape.experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = functional.linear(flat.float(), self.gate.weight)
        probabilities = logits.softmax(-1)
        experts = (probabilities + self.bias).topk(self.k, dim=-1).indices
        chosen = probabilities.gather(1, experts)
        weights = chosen / chosen.sum(-1, keepdim=True)
        dense = torch.zeros_like(probabilities).scatter(1, experts, weights).to(x.dtype)
        both = functional.linear(flat, self.gate_up.flatten(0, 1)).unflatten(
            -1, (len(self.down), 2, -1)
        )
        inner = functional.silu(both[:, :, 0]) * both[:, :, 1] * dense[:, :, None]
        out = functional.linear(inner.flatten(1), self.down.transpose(0, 1).flatten(1))
        return out.view_as(x), Routing(probabilities, experts)


class Layer(nn.Module):
    """Pre-norm attention, then the MLP or mixture."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden)
        self.mlp = Mixture(shape) if shape.experts else Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out, routing = self.mlp(self.post_attention_layernorm(x))
        return x + out, routing


class Decoder(nn.Module):
    """The whole model, with the embedding tied to the output."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)
        cos, sin = rope_tables(CONTEXT_TOKENS)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        """What the output layer sees, [B, T, H], and what each mixture did."""
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        routings = []
        for layer in self.layers:
            x, routing = layer(x, cos, sin)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        return functional.linear(self.hidden(tokens)[0], self.embed_tokens.weight)


def _linear(inputs: int, outputs: int, *, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    if zero:  # a block begins by adding nothing
        nn.init.zeros_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
