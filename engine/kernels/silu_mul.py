"""SwiGLU (arXiv:2002.05202): silu(gate) * up, of gate and up side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.parts import load_parts, num_parts, sum_parts
from engine.kernels.pdl import launch_dependents, launch_options, wait


def silu_mul_reference(gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """silu(gate) * up.

    Args:
        gate_up: [T, 2 I], or parts float32[S, T, 2 I]; gate first.
        dtype: of the result.

    Returns:
        [T, I].
    """
    gate, up = sum_parts(gate_up).float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(dtype)


@kernel(do_not_specialize=["part_stride"])
def _silu_mul_kernel(
    gate_up, out, width, part_stride,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    launch_dependents(PDL)
    wait(PDL)
    at = row * 2 * width + columns
    gate = load_parts(gate_up, at, inside, part_stride, PARTS)
    up = load_parts(gate_up, at + width, inside, part_stride, PARTS)
    tl.store(out + row * width + columns, gate * tl.sigmoid(gate) * up, mask=inside)


def silu_mul_triton(gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As `silu_mul_reference`."""
    tokens, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    out = torch.empty(tokens, width, dtype=dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(width))
    _silu_mul_kernel[(tokens, triton.cdiv(width, block))](
        gate_up, out, width, tokens * 2 * width, PARTS=num_parts(gate_up), BLOCK=block,
        num_warps=4, **launch_options(gate_up.device),
    )  # fmt: skip
    return out


IMPLEMENTATIONS = {"torch": silu_mul_reference, "triton": silu_mul_triton}
