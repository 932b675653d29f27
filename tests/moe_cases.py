"""Small mixture-of-experts layers, and their exact results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from kernel_device import DEVICE


class Layer(NamedTuple):
    """Operands of `moe_mlp`."""

    x: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor


def random_experts(tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    """Different experts for each token."""
    return torch.rand(tokens, num_experts).argsort(1)[:, :top_k].to(torch.int32).to(DEVICE)


def random_layer(
    tokens: int, num_experts: int, top_k: int, features: int, width: int, dtype: torch.dtype
) -> Layer:
    """Weights of a scale that keeps values near 1."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE)

    return Layer(
        normal(tokens, features).to(dtype),
        (normal(num_experts, 2 * width, features) * features**-0.5).to(dtype),
        (normal(num_experts, features, width) * width**-0.5).to(dtype),
        torch.rand(tokens, top_k, device=DEVICE),
        random_experts(tokens, num_experts, top_k),
    )


def exact(layer: Layer) -> torch.Tensor:
    """The definition, token by token and expert by expert, in float64."""
    x, gate_up, down, weights = (part.double().cpu() for part in layer[:4])
    out = torch.zeros_like(x)
    for token, experts in enumerate(layer.experts.tolist()):
        for weight, expert in zip(weights[token], experts, strict=True):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            out[token] += weight * (down[expert] @ (gate * torch.sigmoid(gate) * up))
    return out
