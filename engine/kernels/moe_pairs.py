"""Experts of a few tokens: every (token, expert) pair streams its expert's weights by itself.

With few pairs nearly every pair has an expert of its own, so sorting tokens by expert would gain
nothing. Two kernels: gate, up and their product; then down, where one program adds up all experts
of a token, so that no partial sums are written. Both only multiply vectors by rows of weights, and
are as fast as weights arrive.

The second kernel loads its first weights before the first one is done. It knows them from
`experts`, which is complete when it starts: the first kernel lets it start only after its own wait.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait

GATE_UP_TILE = 4096  # weights of gate, and as many of up, that a program loads at a time
DOWN_TILE = 16384
MAX_BLOCK_K = 2048
WARPS = 4


@kernel()
def _pairs_gate_up_kernel(
    x, gate_up, experts, hidden,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wait(PDL)
    launch_dependents(PDL)
    expert = tl.load(experts + pair).to(tl.int64)
    gate_rows = gate_up + expert * (2 * I * H) + n[:, None] * H
    gate = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.static_range(0, H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (n[:, None] < I) & (k[None, :] < H)
        gate_tile = tl.load(gate_rows + k[None, :], mask=inside, other=0.0)
        up_tile = tl.load(gate_rows + I * H + k[None, :], mask=inside, other=0.0)
        token = tl.load(x + pair // TOP_K * H + k, mask=k < H, other=0.0).to(tl.float32)[None, :]
        gate += gate_tile.to(tl.float32) * token
        up += up_tile.to(tl.float32) * token
    gate_sum = tl.sum(gate, axis=1)
    value = gate_sum * tl.sigmoid(gate_sum) * tl.sum(up, axis=1)
    tl.store(hidden + pair * I + n, value, mask=n < I)


@kernel()
def _pairs_down_kernel(
    hidden, down, weights, experts, out,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    CHOICES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    choice = tl.arange(0, CHOICES)
    launch_dependents(PDL)
    pair = token * TOP_K + choice
    real = choice < TOP_K
    expert = tl.load(experts + pair, mask=real, other=0).to(tl.int64)
    weight = tl.load(weights + pair, mask=real, other=0.0)[None, :, None]
    rows = down + (expert * (H * I))[None, :, None] + (n * I)[:, None, None]
    k = tl.arange(0, BLOCK_K)
    rows_real = (n[:, None, None] < H) & real[None, :, None]
    first = tl.load(
        rows + k[None, None, :], mask=rows_real & (k[None, None, :] < I), other=0.0
    )  # fmt: skip
    wait(PDL)
    total = tl.zeros((BLOCK_N, CHOICES, BLOCK_K), tl.float32)
    for start in tl.static_range(0, I, BLOCK_K):
        inside = start + k < I
        if start == 0:
            tile = first
        else:
            tile = tl.load(
                rows + start + k[None, None, :], mask=rows_real & inside[None, None, :], other=0.0
            )
        value = tl.load(
            hidden + pair[:, None] * I + start + k[None, :],
            mask=real[:, None] & inside[None, :], other=0.0,
        ).to(tl.float32)[None, :, :]  # fmt: skip
        total += tile.to(tl.float32) * (value * weight)
    tl.store(out + token * H + n, tl.sum(tl.sum(total, axis=2), axis=1), mask=n < H)


def block_k(width: int) -> int:
    """How much of a row to take at a time: a power of two that divides it, if it is not tiny."""
    divisor = min(width & -width, MAX_BLOCK_K)
    return divisor if divisor >= 64 else min(MAX_BLOCK_K, triton.next_power_of_2(width))


def moe_mlp_pairs(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    gate_up_tile: int = GATE_UP_TILE,
    down_tile: int = DOWN_TILE,
    warps: int = WARPS,
) -> torch.Tensor:
    """As `moe_experts.moe_mlp_reference`; all operands contiguous, H and I multiples of 16.

    Weights are read once per pair, so it is for few pairs. `gate_up_tile`, `down_tile` and `warps`
    (of both kernels) change its speed only.
    """
    (tokens, top_k), (_, features, width) = experts.shape, down.shape
    out = torch.empty_like(x)
    hidden = torch.empty(tokens * top_k, width, dtype=x.dtype, device=x.device)
    options = {"TOP_K": top_k, "H": features, "I": width, **launch_options(x.device)}
    choices = triton.next_power_of_2(top_k)
    n1, n2 = (
        max(1, gate_up_tile // block_k(features)),
        max(1, down_tile // (choices * block_k(width))),
    )
    _pairs_gate_up_kernel[(tokens * top_k, triton.cdiv(width, n1))](
        x, gate_up, experts, hidden,
        BLOCK_N=n1, BLOCK_K=block_k(features), num_warps=warps, **options,
    )  # fmt: skip
    _pairs_down_kernel[(tokens, triton.cdiv(features, n2))](
        hidden, down, weights, experts, out,
        CHOICES=choices, BLOCK_N=n2, BLOCK_K=block_k(width), num_warps=warps, **options,
    )  # fmt: skip
    return out
