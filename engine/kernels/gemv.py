"""Linear layers of a single row: no matrix units, every program streams some rows of the weight.

What stands around the product is done in passing: the RMSNorm of the input (each program sees the
whole row, so it finds the norm's scale by itself), silu(gate) * up, the addition to the residual.
A decode step of one request then has no kernels between its matrix products but those of attention.
The first tile of the weight is loaded before the activations are awaited.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait


class GemvTiling(NamedTuple):
    """How a product is cut up.

    Attributes:
        rows: weight rows of a program (of gate and of up each, in the gated form).
        inner: columns of a step of the loop.
        warps: per program.
    """

    rows: int
    inner: int
    warps: int


class InputNorm(NamedTuple):
    """An RMSNorm of the input: weight [K], and eps."""

    weight: torch.Tensor
    eps: float


@kernel()
def _gemv_kernel(
    x, norm_weight, eps, weight, residual, out, n, k,
    BN: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr,
    ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    launch_dependents(PDL)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    has_row = rows < n
    known = tl.where(has_row, rows, n - 1)
    inner = tl.arange(0, BK)
    row = known[:, None].to(tl.int64)
    w_at = weight + row * k
    up_at = weight + (row + n) * k
    w = tl.load(w_at + inner[None, :], mask=(inner < k)[None, :], other=0.0)
    if GATED:
        w_up = tl.load(up_at + inner[None, :], mask=(inner < k)[None, :], other=0.0)
    total = tl.zeros((BN, BK), tl.float32)
    total_up = tl.zeros((BN, BK), tl.float32)
    square = tl.zeros((BK,), tl.float32)
    wait(PDL)
    for start in range(0, k, BK):
        at = start + inner
        values = tl.load(x + at, mask=at < k, other=0.0).to(tl.float32)
        if NORM:
            square += values * values
            values *= tl.load(norm_weight + at, mask=at < k, other=0.0).to(tl.float32)
        following = at + BK
        next_w = tl.load(w_at + following[None, :], mask=(following < k)[None, :], other=0.0)
        total += w.to(tl.float32) * values[None, :]
        w = next_w
        if GATED:
            next_up = tl.load(up_at + following[None, :], mask=(following < k)[None, :], other=0.0)
            total_up += w_up.to(tl.float32) * values[None, :]
            w_up = next_up
    value = tl.sum(total, 1)
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(square) / k + eps)
        value *= scale
    if GATED:
        value = value * tl.sigmoid(value) * (tl.sum(total_up, 1) * scale)
    if ADD:
        value += tl.load(residual + rows, mask=has_row, other=0.0)
    tl.store(out + rows, value, mask=has_row)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiling: GemvTiling,
    *,
    norm: InputNorm | None = None,
    gated: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`norm(x) @ weight.T`, and what comes after it.

    Args:
        x: [1, K] contiguous.
        weight: [N, K] contiguous; gated: [2 I, K].
        tiling: how to cut it up.
        norm: RMSNorm to apply to x first, or None.
        gated: return silu(gate) * up.
        residual: [1, N] to add the product to, in place; it is also what is returned.

    Returns:
        [1, N] (gated: [1, I]) in the dtype of x.
    """
    k = x.shape[1]
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    out = residual
    if out is None:
        out = torch.empty(1, n, dtype=x.dtype, device=x.device)
    _gemv_kernel[(triton.cdiv(n, tiling.rows),)](
        x, norm.weight if norm else None, norm.eps if norm else 0.0, weight, residual, out, n, k,
        BN=tiling.rows, BK=tiling.inner, NORM=norm is not None, GATED=gated,
        ADD=residual is not None, num_warps=tiling.warps, **launch_options(x.device),
    )  # fmt: skip
    return out
