"""RMSNorm (arXiv:1910.07467), alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.parts import load_parts, num_parts, sum_parts
from engine.kernels.pdl import launch_dependents, launch_options, wait


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, in float32 inside.

    Args:
        x: [..., H].
        weight: [H].
        eps: added to the mean square.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add `x` to `residual` in place, and norm the sum.

    Args:
        x: [T, H], or parts float32[S, T, H].
        residual: [T, H], becomes residual + x.
        weight: [H].
        eps: added to the mean square.

    Returns:
        [T, H] in the dtype of `residual`.
    """
    residual.copy_(sum_parts(x).to(torch.float32) + residual)
    return rms_norm_reference(residual, weight, eps)


@kernel(do_not_specialize=["part_stride"])
def _rms_norm_kernel(
    x, residual, weight, out, width, eps, part_stride,
    ADD: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    launch_dependents(PDL)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    values = load_parts(x, row * width + columns, inside, part_stride, PARTS)
    if ADD:
        values += tl.load(residual + row * width + columns, mask=inside, other=0.0)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual + row * width + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values) / width + eps)
    # As the models' authors do it: the normed value is rounded before it is scaled.
    normed = (values * inverse).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + columns, normed * scale, mask=inside)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    rows, width = x.shape[-2:]
    block = triton.next_power_of_2(width)
    out = torch.empty(rows, width, dtype=weight.dtype, device=x.device)
    _rms_norm_kernel[(rows,)](
        x, residual, weight, out, width, eps, rows * width,
        ADD=residual is not None, PARTS=num_parts(x), BLOCK=block,
        num_warps=min(16, max(1, block // 512)), **launch_options(x.device),
    )  # fmt: skip
    return out


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `rms_norm_reference`, of a contiguous [T, H], one program per row."""
    return _launch(x, None, weight, eps)


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """As `add_rms_norm_reference`, one program per row; all operands contiguous."""
    return _launch(x, residual, weight, eps)


def norm_reference(
    pending: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Norm the residual stream, after adding what is pending, if anything is."""
    if pending is None:
        return rms_norm_reference(residual, weight, eps)
    return add_rms_norm_reference(pending, residual, weight, eps)


def norm_triton(
    pending: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """As `norm_reference`, one program per row; all operands contiguous."""
    if pending is None:
        return rms_norm_triton(residual, weight, eps)
    return add_rms_norm_triton(pending, residual, weight, eps)


IMPLEMENTATIONS = {"torch": norm_reference, "triton": norm_triton}
