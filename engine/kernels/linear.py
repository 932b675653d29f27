"""Linear layers, with the norm before them or the residual addition after them.

A layer's output goes to the residual stream in one of two ways: `residual_linear` adds it itself
and returns None, or it returns what is *pending*: [T, H], or parts of it, to be added by the norm
before the next layer. Whatever comes next takes either.

One row is a matrix-vector product with everything fused into it. Some rows stream the weights
through matrix units, in Triton, or on Hopper in CUDA C++ where that is faster. Many rows are
cuBLAS's.
"""

from __future__ import annotations

import torch

from engine.kernels.gemv import InputNorm, gemv
from engine.kernels.linear_hopper import hopper_linear, takes_hopper_linear
from engine.kernels.linear_tilings import gemv_tiling, hopper_tiling, skinny_tiling
from engine.kernels.rms_norm import norm_reference, norm_triton
from engine.kernels.silu_mul import silu_mul_reference, silu_mul_triton
from engine.kernels.skinny_linear import skinny_linear

Pending = torch.Tensor | None


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, whole: bool = False
) -> torch.Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: [T, K].
        weight: [N, K].
        bias: [N] or None.
        whole: the caller cannot take parts.

    Returns:
        [T, N] in the dtype of `x`; an implementation may return parts (`engine.kernels.parts`)
        unless `whole` is asked for.
    """
    del whole
    return torch.nn.functional.linear(x, weight, bias)


def linear_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, whole: bool = False
) -> torch.Tensor:
    """As `linear_reference`."""
    rows, inner = x.shape
    if bias is not None:
        return torch.nn.functional.linear(x, weight, bias)
    if rows == 1:
        return gemv(x, weight, gemv_tiling(len(weight), inner, norm=False, gated=False))
    out = _linear_of_some_rows(x, weight, gated=False, whole=whole)
    return torch.nn.functional.linear(x, weight) if out is None else out


def _linear_of_some_rows(
    x: torch.Tensor, weight: torch.Tensor, *, gated: bool, whole: bool
) -> torch.Tensor | None:
    """What a kernel of ours makes of it, or None if that is better left to cuBLAS."""
    shape = (len(x), len(weight) // 2 if gated else len(weight), x.shape[1])
    if takes_hopper_linear(x, weight):
        hopper = hopper_tiling(*shape, gated=gated, whole=whole)
        if hopper is not None:
            return hopper_linear(x, weight, hopper, gated=gated)
    skinny = skinny_tiling(*shape, gated=gated, whole=whole)
    return None if skinny is None else skinny_linear(x, weight, skinny, gated=gated)


def residual_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> Pending:
    """A linear layer whose output belongs to the residual stream.

    Args:
        x: [T, K].
        weight: [H, K].
        bias: [H] or None.
        residual: [T, H]; an implementation may add to it, and return None then.

    Returns:
        What is pending, or None if it was added.
    """
    del residual
    return linear_reference(x, weight, bias)


def residual_linear_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> Pending:
    """As `residual_linear_reference`; a single row is added to the residual at once.

    cuBLAS could add in its epilogue, too, but loses there what the next norm would gain.
    """
    if len(x) > 1 or bias is not None:
        return linear_triton(x, weight, bias)
    tiling = gemv_tiling(len(weight), x.shape[1], norm=False, gated=False)
    gemv(x, weight, tiling, residual=residual)
    return None


def norm_linear_reference(
    pending: Pending,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    *,
    whole: bool = False,
) -> torch.Tensor:
    """Add what is pending to the residual stream, norm the sum, and multiply.

    Args:
        pending: [T, H], parts of it, or None.
        residual: [T, H], updated in place.
        norm_weight: [H].
        eps: of the norm.
        weight: [N, H].
        whole: the caller cannot take parts.

    Returns:
        [T, N] or parts of it.
    """
    normed = norm_reference(pending, residual, norm_weight, eps)
    return linear_reference(normed, weight, whole=whole)


def norm_linear_triton(
    pending: Pending,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    *,
    whole: bool = False,
) -> torch.Tensor:
    """As `norm_linear_reference`; one kernel for a single row with nothing pending."""
    if pending is None and len(residual) == 1:
        tiling = gemv_tiling(*weight.shape, norm=True, gated=False)
        return gemv(residual, weight, tiling, norm=InputNorm(norm_weight, eps))
    return linear_triton(norm_triton(pending, residual, norm_weight, eps), weight, whole=whole)


def norm_gated_linear_reference(
    pending: Pending,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    gate_up: torch.Tensor,
) -> torch.Tensor:
    """As `norm_linear_reference`, followed by silu(gate) * up.

    Args:
        pending: [T, H], parts of it, or None.
        residual: [T, H], updated in place.
        norm_weight: [H].
        eps: of the norm.
        gate_up: [2 I, H], the gate's rows first.

    Returns:
        [T, I] in the dtype of the residual.
    """
    normed = norm_reference(pending, residual, norm_weight, eps)
    return silu_mul_reference(linear_reference(normed, gate_up), residual.dtype)


def norm_gated_linear_triton(
    pending: Pending,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    gate_up: torch.Tensor,
) -> torch.Tensor:
    """As `norm_gated_linear_reference`; few rows need no kernel for the activation."""
    rows, inner = residual.shape
    width = len(gate_up) // 2
    if pending is None and rows == 1:
        tiling = gemv_tiling(width, inner, norm=True, gated=True)
        return gemv(residual, gate_up, tiling, norm=InputNorm(norm_weight, eps), gated=True)
    normed = norm_triton(pending, residual, norm_weight, eps)
    if rows == 1:
        return gemv(normed, gate_up, gemv_tiling(width, inner, norm=False, gated=True), gated=True)
    out = _linear_of_some_rows(normed, gate_up, gated=True, whole=True)
    if out is not None:
        return out
    return silu_mul_triton(torch.nn.functional.linear(normed, gate_up), normed.dtype)


LINEAR = {"torch": linear_reference, "triton": linear_triton}
RESIDUAL_LINEAR = {"torch": residual_linear_reference, "triton": residual_linear_triton}
NORM_LINEAR = {"torch": norm_linear_reference, "triton": norm_linear_triton}
NORM_GATED_LINEAR = {"torch": norm_gated_linear_reference, "triton": norm_gated_linear_triton}
