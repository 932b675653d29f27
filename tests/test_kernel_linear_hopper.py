"""Hopper's own product of some rows: how it is cut up and compiled; on a GPU, what it computes."""

from __future__ import annotations

from itertools import product

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, ON_GPU, relative_error

from engine.kernels import linear
from engine.kernels.launching import compile_only
from engine.kernels.linear_hopper import (
    HopperTiling,
    hopper_kernel,
    hopper_linear,
    takes_hopper_linear,
)
from engine.kernels.linear_tilings import MOST_HOPPER_ROWS, hopper_tiling
from engine.kernels.nvrtc import MOST_SHARED_BYTES, CudaKernel, NvrtcError, compile_source
from engine.kernels.parts import num_parts, sum_parts

SHAPES = {  # [out, in] of layers: 8B, 0.6B, 30B-A3B, 7B, a router
    "8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "0.6B": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
    "others": ((5120, 2048), (2048, 4096), (37888, 3584), (3584, 18944), (128, 2048), (48, 64)),
}
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a Hopper GPU")


def operands(rows: int, features: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(features, inner, device=DEVICE, dtype=torch.bfloat16) / 8
    return x, weight


def expected(x: torch.Tensor, weight: torch.Tensor, *, gated: bool) -> torch.Tensor:
    out = x.double() @ weight.double().T
    if not gated:
        return out
    gate, up = out.chunk(2, -1)
    return gate * gate.sigmoid() * up


def test_every_tiling_fits_and_covers_its_product() -> None:
    """Rows all have a block, registers and shared memory suffice, nothing is split in vain."""
    chosen = 0
    shapes = [shape for model in SHAPES.values() for shape in model]
    for rows, (features, inner) in product((17, 33, 64, 65, 129, 200, MOST_HOPPER_ROWS), shapes):
        for gated, whole in ((False, False), (False, True), (True, True)):
            out = features // 2 if gated else features
            tiling = hopper_tiling(rows, out, inner, gated=gated, whole=whole)
            if tiling is None:
                continue
            chosen += 1
            assert tiling.fits
            assert 64 * tiling.row_groups * tiling.cluster >= rows
            assert tiling.features % 16 == 0
            assert tiling.split == 1 or not whole
            assert inner // 64 // tiling.split >= 4
    assert chosen > 150


def test_few_or_very_many_rows_are_left_to_others() -> None:
    """Where the weights' bandwidth is all, or the matrix units are full, others are as good."""
    assert hopper_tiling(8, 4096, 4096, gated=False, whole=False) is None
    assert hopper_tiling(MOST_HOPPER_ROWS + 1, 4096, 4096, gated=False, whole=False) is None
    assert hopper_tiling(128, 128, 2048, gated=False, whole=True) is None  # a router
    assert hopper_tiling(128, 128256, 4096, gated=False, whole=True) is None  # a vocabulary


def test_what_does_not_fit_is_refused() -> None:
    """Too many sums for the registers of a thread, more rows than blocks have."""
    assert not HopperTiling(4, 256).fits
    assert HopperTiling(2, 256).fits
    x, weight = operands(65, 64, 64)
    with pytest.raises(ValueError, match=r"does not fit \[65, 64\] by \[64, 64\]"):
        hopper_linear(x, weight, HopperTiling(1, 32))


def test_other_devices_and_types_do_not_take_it() -> None:
    """The interpreter's CPU, other number formats, rows that a bulk copy cannot start at."""
    x, weight = operands(128, 64, 64)
    assert takes_hopper_linear(x, weight) == ON_GPU
    assert not takes_hopper_linear(x.half(), weight.half())
    assert not takes_hopper_linear(x[:, :60].contiguous(), weight[:, :60].contiguous())


def test_it_compiles_for_hopper_without_spills() -> None:
    """Matrix units fed by bulk copies; no local memory; no fence over the GPU in the loop."""
    seen = set()
    for rows, model in product((24, 64, 128, 192, 256), ("8B", "0.6B")):
        for place, (features, inner) in enumerate(SHAPES[model]):
            gated = place == 2
            out = features // 2 if gated else features
            tiling = hopper_tiling(rows, out, inner, gated=gated, whole=gated)
            if tiling is None or (tiling, gated) in seen:
                continue
            seen.add((tiling, gated))
            stages = tiling.stages(8)
            kernel = hopper_kernel(tiling, stages, gated=gated, parts=tiling.split > 1)
            shared = stages * tiling.stage_bytes + 1024
            assert shared <= MOST_SHARED_BYTES
            binary = compile_source(kernel.source, "linear_hopper.cu")
            made = sm90_gate.read_binary(binary, shared, 4 * (tiling.row_groups + 1))
            assert made.stack_bytes == 0
            assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
            assert made.opcodes["HGMMA"] > 0
            assert made.opcodes["UTMALDG"] > 0
            assert made.opcodes["USETMAXREG"] == (2 if tiling.shares_registers else 0)
            if not tiling.shares_registers and tiling.row_groups < 4:  # what follows finds room
                threads = 128 * (tiling.row_groups + 1)
                assert 65536 - made.registers * threads >= 256 * 40
            # A cluster's barrier has a fence, before the loop and after it.
            assert made.opcodes["MEMBAR"] <= (4 if tiling.cluster > 1 else 0)
    assert len(seen) > 15


def test_a_kernel_that_does_not_compile_says_why() -> None:
    """With the compiler's own message, and the line."""
    with pytest.raises(NvrtcError, match=r"broken\.cu did not compile:\nbroken\.cu\(1\): error"):
        compile_source('extern "C" __global__ void k() { nonsense(); }', "broken.cu")


@needs_gpu
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("cluster", [1, 2])
def test_products(groups: int, cluster: int) -> None:
    """Ragged rows, weight rows and columns; widths, splits and gates of every kind."""
    most = 64 * groups * cluster
    for features, split, gated in (
        (32, 1, False), (64, 3, False), (112, 1, True), (128, 2, False), (224, 1, True),
    ):  # fmt: skip
        tiling = HopperTiling(groups, features, cluster, split)
        if not tiling.fits:
            continue
        for rows, out, inner in ((most, 512, 1024), (most - 23, 520, 712), (most - 40, 48, 4096)):
            x, weight = operands(rows, 2 * out if gated else out, inner)
            made = hopper_linear(x, weight, tiling, gated=gated)
            assert num_parts(made) == (1 if split == 1 else min(split, made.shape[0]))
            error = relative_error(sum_parts(made), expected(x, weight, gated=gated))
            assert error < 3e-3


@needs_gpu
@pytest.mark.parametrize("rows", [17, 64, 65, 100, 128, 129, 192, 250, 256])
def test_layers_of_real_sizes(rows: int) -> None:
    """What the engine calls, on weights as in models, again and again into poisoned memory."""
    for features, inner in SHAPES["8B"] + SHAPES["0.6B"]:
        x, weight = operands(rows, features, inner)
        for _ in range(3):
            torch.full((rows * features * 8,), float("nan"), device=DEVICE)  # then it is free
            out = linear.linear_triton(x, weight)
            assert relative_error(sum_parts(out), expected(x, weight, gated=False)) < 3e-3


@needs_gpu
def test_compiled_ahead_it_is_loaded_and_nothing_runs() -> None:
    """Inside compile_only a launch just orders its variant, which a graph can capture then."""
    x, weight = operands(64, 512, 512)
    tiling = HopperTiling(1, 80, 1, 2)
    with compile_only(DEVICE):
        hopper_linear(x, weight, tiling)
    kernel: CudaKernel = hopper_kernel(tiling, 4, gated=False, parts=True)
    assert kernel.loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hopper_linear(x, weight, tiling)
    out.fill_(float("nan"))
    graph.replay()
    assert relative_error(sum_parts(out), expected(x, weight, gated=False)) < 3e-3
