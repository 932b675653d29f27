"""Token embedding: ids from the host and ids that only the GPU knows."""

from __future__ import annotations

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE

from engine.kernels.embedding import IMPLEMENTATIONS, embed_tokens_reference


@pytest.mark.parametrize("width", [8, 96])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_triton_equals_reference(width: int, dtype: torch.dtype) -> None:
    """A negative id reads the row's last token, whichever rows are asked, in any order."""
    table = torch.randn(50, width, dtype=dtype, device=DEVICE)
    last = torch.tensor([3, 49, 0], dtype=torch.int32, device=DEVICE)
    ids = torch.tensor([7, -1, -3, 49, -2, 0], dtype=torch.int32, device=DEVICE)
    expected = table[torch.tensor([7, 3, 0, 49, 49, 0], device=DEVICE)]
    for name, embed in IMPLEMENTATIONS.items():
        assert torch.equal(embed(ids, last, table), expected), name
    assert torch.equal(embed_tokens_reference(ids, last, table), expected)


def test_compiles_for_hopper_without_spills() -> None:
    """One vector load and store per thread; nothing goes to local memory."""
    variant = sm90_gate.Variant(
        "engine.kernels.embedding:_embed_tokens_kernel",
        {"token_ids": "*i32", "last_tokens": "*i32", "table": "*bf16", "out": "*bf16",
         "width": "i32"},
        {"BLOCK": 2048, "PDL": True},
        {"num_warps": 4},
        aligned=("width",),
    )  # fmt: skip
    (made,) = sm90_gate.run([variant])
    assert made.stack_bytes == 0
    assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
