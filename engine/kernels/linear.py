"""Linear layers: our weight-streaming kernels for few rows, cuBLAS for many."""

from __future__ import annotations

import torch

from engine.kernels.linear_tilings import choose_tiling
from engine.kernels.silu_mul import silu_mul_reference, silu_mul_triton
from engine.kernels.skinny_linear import gemv, skinny_linear


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
    """As `linear_reference`: a tiling of `linear_tilings` where it has one, else cuBLAS."""
    rows, inner = x.shape
    tiling = None if bias is not None else choose_tiling(rows, weight.shape[0], inner, gated=False)
    if tiling is None or (whole and tiling.split > 1):
        return torch.nn.functional.linear(x, weight, bias)
    return (gemv if rows == 1 else skinny_linear)(x, weight, tiling)


def gated_linear_reference(x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """silu(x @ gate.T) * (x @ up.T).

    Args:
        x: [T, K].
        gate_up: [2 I, K], the gate's rows first.

    Returns:
        [T, I] in the dtype of `x`.
    """
    return silu_mul_reference(torch.nn.functional.linear(x, gate_up), x.dtype)


def gated_linear_triton(x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """As `gated_linear_reference`; few rows take one kernel, many cuBLAS and one of ours."""
    rows, inner = x.shape
    tiling = choose_tiling(rows, gate_up.shape[0] // 2, inner, gated=True)
    if tiling is None:
        return silu_mul_triton(torch.nn.functional.linear(x, gate_up), x.dtype)
    return (gemv if rows == 1 else skinny_linear)(x, gate_up, tiling, gated=True)


LINEAR = {"torch": linear_reference, "triton": linear_triton}
GATED_LINEAR = {"torch": gated_linear_reference, "triton": gated_linear_triton}
