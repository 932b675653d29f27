"""The kernel lab: every rung computes its op; on a CPU those that can run there."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from kernel_device import DEVICE, ON_GPU

from engine.kernels.lab import attention_decode, attention_prefill, softmax
from engine.kernels.lab.case import Lab, label
from engine.kernels.lab.cuda_launch import lab_kernel, row_shape
from engine.kernels.lab.labs import LABS
from engine.kernels.lab.rungs import LADDERS, ladder_of

TOLERANCE = 1e-2  # of bfloat16 operands
EVERYWHERE = ("torch-naive", "triton", "library", "library-contiguous")
CASES = [
    pytest.param(op, name, size, id=f"{op}/{name}/{label(size)}")
    for op, lab in LABS.items()
    for name, size in product(lab.rungs, lab.small_sizes)
]
CUDA_VARIANTS = (
    ("softmax.cu", "softmax_vector", {"THREADS": 64, "VECTORS": 2, "CLUSTER": 1}),
    ("softmax.cu", "softmax_vector", {"THREADS": 1024, "VECTORS": 4, "CLUSTER": 4}),
    ("norm.cu", "norm_vector", {"MEAN": 0, "THREADS": 256, "VECTORS": 2}),
    ("norm.cu", "norm_vector", {"MEAN": 1, "THREADS": 1024, "VECTORS": 4}),
    (
        "attention_prefill.cu", "attention_tensor",
        {"KEYS": attention_prefill.KEYS, "WARPS": attention_prefill.WARPS},
    ),
    ("attention_decode.cu", "decode_tensor", {"GROUP": 4}),
)  # fmt: skip


@pytest.mark.parametrize(("op", "name", "size"), CASES)
def test_every_rung_computes_its_op(op: str, name: str, size: dict[str, int]) -> None:
    """Odd sizes included, a rung is within bfloat16's rounding of float64."""
    if not ON_GPU and name not in EVERYWHERE:
        pytest.skip("needs a Hopper GPU")
    if not ON_GPU and name == "triton" and max(size.values()) > 20_000:
        pytest.skip("too much for the interpreter")
    torch.manual_seed(0)
    lab: Lab = LABS[op]
    case = lab.make(DEVICE, **size)
    assert lab.error(case, lab.rungs[name](case)) < TOLERANCE
