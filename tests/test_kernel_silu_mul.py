"""SwiGLU of gate and up side by side."""

from __future__ import annotations

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, relative_error

from engine.kernels.silu_mul import IMPLEMENTATIONS

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parts", [0, 1, 3, 4])
@pytest.mark.parametrize("width", [1, 40, 1025])
def test_silu_times_up(implementation: str, dtype: torch.dtype, parts: int, width: int) -> None:
    """silu(gate) * up of the sum of all parts, for large and negative gates too."""
    shape = (3, 2 * width) if parts == 0 else (parts, 3, 2 * width)
    given = dtype if parts == 0 else torch.float32
    gate_up = (8 * torch.randn(*shape)).to(DEVICE, given)
    total = (gate_up if parts == 0 else gate_up.sum(0)).double()
    gate, up = total.chunk(2, -1)
    out = IMPLEMENTATIONS[implementation](gate_up, dtype)
    assert out.dtype == dtype
    assert relative_error(out, gate * gate.sigmoid() * up) < TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extremes_are_finite(implementation: str) -> None:
    """A gate far below zero closes, one far above is passed on."""
    gate_up = torch.tensor([[-1e4, 1e4, 2.0, 3.0]], device=DEVICE)
    out = IMPLEMENTATIONS[implementation](gate_up, torch.float32)
    assert out.tolist() == [[0.0, 3e4]]


def test_compiles_for_hopper_without_spills() -> None:
    """Gate and up are read, and the result is written, 16 bytes at a time."""

    def variant(dtype: str, parts: int) -> sm90_gate.Variant:
        return sm90_gate.Variant(
            "engine.kernels.silu_mul:_silu_mul_kernel",
            {"gate_up": dtype, "out": "*bf16", "width": "i32", "part_stride": "i32"},
            {"PARTS": parts, "BLOCK": 1024, "PDL": True}, {"num_warps": 4},
            aligned=("width", "part_stride"),
        )  # fmt: skip

    for one in sm90_gate.run([variant("*bf16", 1), variant("*fp32", 2)]):
        assert one.stack_bytes == 0
        assert one.opcodes["STL"] == one.opcodes["LDL"] == 0
        assert one.opcodes["LDG"] == one.opcodes["LDG.E.128"] > 0
        assert one.opcodes["STG.E.128"] > 0
