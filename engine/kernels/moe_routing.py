"""Which experts of a mixture-of-experts layer a token goes to: softmax, then the k best.

The order of the two (softmax over all experts first) is that of Mixtral (arXiv:2401.04088) and
Qwen3-MoE (arXiv:2505.09388); renormalised, it equals a softmax over the k best logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.parts import load_parts, num_parts, sum_parts
from engine.kernels.pdl import launch_dependents, launch_options, wait

ROWS = 4  # tokens per program, one warp each, where there are many tokens
MANY_TOKENS = 128


def route_reference(
    logits: torch.Tensor, top_k: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` likeliest experts of each token, likeliest first, equals by lower index.

    Args:
        logits: [T, E], or parts float32[S, T, E].
        top_k: 1 <= top_k <= E.
        renormalize: whether the weights of a token shall sum to 1.

    Returns:
        weights float32[T, top_k], and experts int32[T, top_k].

    Raises:
        ValueError: if `top_k` is out of range.
    """
    _check(logits, top_k)
    values = sum_parts(logits).float()
    order = values.sort(dim=-1, descending=True, stable=True).indices
    experts = order[:, :top_k]
    weights = values.softmax(-1).gather(1, experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.to(torch.int32)


def _check(logits: torch.Tensor, top_k: int) -> None:
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k is {top_k}, and there are {logits.shape[-1]} experts")


@triton.jit
def _ordered(bits):
    """The bits of float32 values as integers of the same order; its own inverse."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@kernel(do_not_specialize=["tokens", "part_stride"])
def _route_kernel(
    logits, weights, experts, tokens, part_stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHOICES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row[:, None] < tokens) & (column < EXPERTS)
    launch_dependents(PDL)
    wait(PDL)
    x = load_parts(logits, row[:, None] * EXPERTS + column, inside, part_stride, PARTS)
    x = tl.where(column < EXPERTS, x, -float("inf"))
    highest = tl.max(x, axis=1)
    total = tl.sum(tl.exp(x - highest[:, None]), axis=1)

    # Of one 64-bit key the upper half orders by logit and the lower by index, lowest first; no
    # key of a real expert is as low as that of padding. Adding 0.0 makes -0.0 equal 0.0.
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = (_ordered(bits).to(tl.int64) << 32) | (COLUMNS - 1 - column)
    lowest = tl.full((ROWS, COLUMNS), -(2**63), tl.int64)
    key = tl.where(column < EXPERTS, key, lowest)
    choice = tl.arange(0, CHOICES)[None, :]
    chosen = tl.zeros((ROWS, CHOICES), tl.int32)
    chosen_x = tl.full((ROWS, CHOICES), -float("inf"), tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.max(key, axis=1)[:, None]
        key = tl.where(key == best, lowest, key)
        best_x = _ordered((best >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
        chosen = tl.where(choice == i, COLUMNS - 1 - (best & 0x7FFFFFFF).to(tl.int32), chosen)
        chosen_x = tl.where(choice == i, best_x, chosen_x)

    weight = tl.exp(chosen_x - highest[:, None])
    if RENORMALIZE:
        total = tl.sum(weight, axis=1)
    weight = weight / total[:, None]
    at = row[:, None] * TOP_K + choice
    fits = (row[:, None] < tokens) & (choice < TOP_K)
    tl.store(weights + at, weight, mask=fits)
    tl.store(experts + at, chosen, mask=fits)


def route_triton(
    logits: torch.Tensor, top_k: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `route_reference`, of contiguous logits; even of NaN it makes experts that exist."""
    _check(logits, top_k)
    tokens, count = logits.shape[-2:]
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    experts = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    if not tokens:
        return weights, experts
    rows = ROWS if tokens > MANY_TOKENS else 1
    _route_kernel[(triton.cdiv(tokens, rows),)](
        logits, weights, experts, tokens, tokens * count,
        EXPERTS=count, TOP_K=top_k, RENORMALIZE=renormalize, PARTS=num_parts(logits), ROWS=rows,
        COLUMNS=triton.next_power_of_2(count), CHOICES=triton.next_power_of_2(top_k),
        num_warps=rows, **launch_options(logits.device),
    )  # fmt: skip
    return weights, experts


IMPLEMENTATIONS = {"torch": route_reference, "triton": route_triton}
