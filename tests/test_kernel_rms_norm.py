"""RMSNorm of the residual stream, after what is pending has been added to it."""

from __future__ import annotations

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, relative_error

from engine.kernels.rms_norm import IMPLEMENTATIONS

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(*shape)).to(DEVICE, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 8, 100, 640])
def test_norm(implementation: str, dtype: torch.dtype, width: int) -> None:
    """Every row is scaled to a mean square of one, times the weight; the stream stays as it is."""
    residual, weight = randn(5, width, dtype=dtype), randn(width, dtype=dtype)
    before = residual.clone()
    out = IMPLEMENTATIONS[implementation](None, residual, weight, EPS)
    assert out.dtype == dtype
    assert torch.equal(residual, before)
    assert relative_error(out, expected(residual, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parts", [0, 1, 2, 3, 4])
def test_pending_is_added_first(implementation: str, dtype: torch.dtype, parts: int) -> None:
    """The stream becomes the sum, rounded once, and the norm is that of the rounded sum."""
    tokens, width = 3, 72
    residual, weight = randn(tokens, width, dtype=dtype), randn(width, dtype=dtype)
    shape = (tokens, width) if parts == 0 else (parts, tokens, width)
    pending = randn(*shape, dtype=dtype if parts == 0 else torch.float32)
    total = residual.double() + (pending if parts == 0 else pending.sum(0)).double()
    out = IMPLEMENTATIONS[implementation](pending, residual, weight, EPS)
    assert residual.dtype == out.dtype == dtype
    assert relative_error(residual, total) < TOLERANCE[dtype]
    assert relative_error(out, expected(residual, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_of_zeros_stays_one(implementation: str) -> None:
    """eps keeps a row without content finite."""
    residual = torch.zeros(2, 16, device=DEVICE)
    out = IMPLEMENTATIONS[implementation](None, residual, torch.ones(16, device=DEVICE), EPS)
    assert torch.equal(out, residual)


def test_compiles_for_hopper_without_spills() -> None:
    """A row is read and written 16 bytes at a time and stays in registers."""

    def variant(add: bool, parts: int, width: int) -> sm90_gate.Variant:
        constants = {"ADD": add, "PARTS": parts, "BLOCK": width, "PDL": True}
        if not add:
            constants["residual"] = None
        signature = {
            "x": "*bf16" if parts == 1 else "*fp32", "residual": "*bf16", "weight": "*bf16",
            "out": "*bf16", "width": "i32", "eps": "fp32", "part_stride": "i32",
        }  # fmt: skip
        return sm90_gate.Variant(
            "engine.kernels.rms_norm:_rms_norm_kernel", signature, constants,
            {"num_warps": min(16, width // 512)}, aligned=("width", "part_stride"),
        )  # fmt: skip

    made = sm90_gate.run([variant(False, 1, 4096), variant(True, 1, 4096), variant(True, 4, 2048)])
    for one in made:
        assert one.stack_bytes == 0
        assert one.opcodes["STL"] == one.opcodes["LDL"] == 0
        assert one.opcodes["LDG"] == one.opcodes["LDG.E.128"] > 0
        assert one.opcodes["STG.E.128"] > 0
