"""The experts of a mixture-of-experts layer: for each token, a weighted sum of small MLPs."""

from __future__ import annotations

import torch

from engine.kernels.moe_grouped import moe_mlp_grouped
from engine.kernels.moe_grouped_mm import moe_mlp_grouped_mm
from engine.kernels.moe_pairs import moe_mlp_pairs

# Up to so many (token, expert) pairs, but not more than there are experts, each streams its weights
# by itself: with more, experts are sure to be read more than once.
PAIRS_LIMIT = 64


def moe_mlp_reference(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """sum_j weights[t, j] * down_e(silu(gate_e(x[t])) * up_e(x[t])), e = experts[t, j].

    Args:
        x: [T, H].
        gate_up: [E, 2 I, H]; rows 0 .. I-1 of an expert are gate, the others up.
        down: [E, H, I].
        weights: float32[T, k].
        experts: int32[T, k], each in 0 .. E - 1, those of a token all different.

    Returns:
        [T, H] in the dtype of `x`, accumulated in fp32; an implementation may return parts of it
        (`engine.kernels.parts`).
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(down)):
        token, choice = (experts == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        gate, up = (x[token] @ gate_up[expert].T).float().chunk(2, dim=-1)
        hidden = (torch.nn.functional.silu(gate) * up).to(x.dtype)
        result = (hidden @ down[expert].T).float()
        out.index_add_(0, token, result * weights[token, choice, None])
    return out.to(x.dtype)


def moe_mlp_triton(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """As `moe_mlp_reference`; all operands contiguous, H and I multiples of 16."""
    if not len(x):
        return torch.empty_like(x)
    few = experts.numel() <= min(PAIRS_LIMIT, len(down))
    run = moe_mlp_pairs if few else moe_mlp_grouped
    return run(x, gate_up, down, weights, experts)


IMPLEMENTATIONS = {
    "torch": moe_mlp_reference,
    "triton": moe_mlp_triton,
    "grouped_mm": moe_mlp_grouped_mm,
}
