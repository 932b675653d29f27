"""Hopper's own product of some rows: how it is cut up and compiled; on a GPU, what it computes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

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
from engine.kernels.linear_tilings import (
    HOPPER_ROWS,
    MOST_GATED_ROWS,
    MOST_HOPPER_ROWS,
    hopper_tiling,
)
from engine.kernels.nvrtc import (
    MOST_SHARED_BYTES,
    CudaDriverError,
    CudaKernel,
    NvrtcError,
    compile_source,
    nvrtc,
)
from engine.kernels.parts import num_parts, sum_parts
from engine.runtime.executor import ExecutorDiedError
from engine.runtime.running_step import is_out_of_memory, raise_if_device_is_lost

SHAPES = {  # [out, in] of layers: 8B, 0.6B, 30B-A3B, 7B, a router
    "8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "0.6B": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
    "others": ((5120, 2048), (2048, 4096), (37888, 3584), (3584, 18944), (128, 2048), (48, 64)),
}
needs_gpu = pytest.mark.skipif(
    not ON_GPU or torch.cuda.get_device_capability(DEVICE)[0] != 9, reason="needs a Hopper GPU"
)


def operands(rows: int, features: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(features, inner, device=DEVICE, dtype=torch.bfloat16) / 8
    if ON_GPU:
        torch.cuda.synchronize()  # weights are read before earlier kernels are done
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
    for rows, (features, inner) in product((17, 33, 64, 65, 129, 200, MOST_GATED_ROWS), shapes):
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
    assert chosen > 100


def test_few_or_very_many_rows_are_left_to_others() -> None:
    """Where the weights' bandwidth is all, or the matrix units are full, others are as good."""
    assert hopper_tiling(8, 4096, 4096, gated=False, whole=False) is None
    assert hopper_tiling(MOST_HOPPER_ROWS + 1, 4096, 4096, gated=False, whole=False) is None
    assert hopper_tiling(MOST_HOPPER_ROWS + 1, 14336, 4096, gated=True, whole=True) is None
    assert hopper_tiling(MOST_GATED_ROWS + 1, 14336, 4096, gated=True, whole=True) is None
    assert hopper_tiling(128, 128, 2048, gated=False, whole=True) is None  # a router
    assert hopper_tiling(128, 128256, 4096, gated=False, whole=True) is None  # a vocabulary


def test_a_few_numbers_of_rows_stand_for_all() -> None:
    """Whoever compiles for the first rows of each class has what any number of rows needs."""
    for (features, inner), gated in product((s for m in SHAPES.values() for s in m), (0, 1)):
        first: HopperTiling | None = None
        for rows in range(1, MOST_GATED_ROWS + 1):
            tiling = hopper_tiling(rows, features, inner, gated=bool(gated), whole=bool(gated))
            if rows == 1 or rows in HOPPER_ROWS:
                first = tiling
            assert tiling == first


@pytest.mark.parametrize(
    "tiling",
    [
        HopperTiling(4, 256),  # more sums than a thread has registers
        HopperTiling(1, 40),  # the second half of the weights would not be aligned
        HopperTiling(5, 32),
        HopperTiling(0, 32),
        HopperTiling(1, 32, cluster=4),
        HopperTiling(1, 32, split=0),
    ],
)
def test_impossible_tilings_are_refused(tiling: HopperTiling) -> None:
    """Before they hang or give nonsense."""
    assert not tiling.fits
    x, weight = operands(16, 64, 64)
    with pytest.raises(ValueError, match=r"does not fit \[16, 64\] by \[64, 64\]"):
        hopper_linear(x, weight, tiling)


def test_operands_that_do_not_fit_are_refused() -> None:
    """More rows than blocks have, splits of what is gated, other types, gaps."""
    assert HopperTiling(2, 256).fits
    x, weight = operands(65, 64, 64)
    with pytest.raises(ValueError, match=r"does not fit \[65, 64\] by \[64, 64\]"):
        hopper_linear(x, weight, HopperTiling(1, 32))
    with pytest.raises(ValueError, match="gated: True"):
        hopper_linear(x, weight, HopperTiling(2, 32, split=2), gated=True)
    with pytest.raises(ValueError, match=r"contiguous bfloat16 is wanted, not torch\.float16"):
        hopper_linear(x.half(), weight.half(), HopperTiling(2, 32))
    with pytest.raises(ValueError, match="contiguous"):
        hopper_linear(x, weight.T, HopperTiling(2, 32))


def test_other_devices_and_types_do_not_take_it() -> None:
    """The interpreter's CPU, other number formats, rows that a bulk copy cannot start at."""
    x, weight = operands(128, 64, 64)
    assert takes_hopper_linear(x, weight) == ON_GPU
    assert not takes_hopper_linear(x.half(), weight.half())
    assert not takes_hopper_linear(x[:, :60].contiguous(), weight[:, :60].contiguous())


def test_it_compiles_for_hopper_without_spills() -> None:
    """Matrix units fed by bulk copies; no local memory; no fence over the GPU in the loop."""
    seen = set()
    for rows, model in product((24, 64, 72, 192, 256), ("8B", "0.6B")):
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
            if tiling.row_groups < 4:  # what follows finds room
                threads = 128 * (tiling.row_groups + 1)
                assert 65536 - made.registers * threads >= 256 * 40
            # A cluster's barrier has a fence, before the loop and after it.
            assert made.opcodes["MEMBAR"] <= (4 if tiling.cluster > 1 else 0)
    assert len(seen) > 12


def test_a_kernel_that_does_not_compile_says_why() -> None:
    """With the compiler's own message, and the line."""
    with pytest.raises(NvrtcError, match=r"broken\.cu did not compile:\nbroken\.cu\(1\): error"):
        compile_source('extern "C" __global__ void k() { nonsense(); }', "broken.cu")


def test_a_driver_that_fails_is_recognised() -> None:
    """As out of memory, which one step fails at, or as a lost device, which ends everything."""
    lost = CudaDriverError("CUDA error in cuLaunchKernelEx: an illegal memory access")
    with pytest.raises(ExecutorDiedError, match="the device is lost"):
        raise_if_device_is_lost(lost)
    assert is_out_of_memory(CudaDriverError("CUDA error in cuModuleLoadData: out of memory"))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With where it was looked for, and what to install."""
    nvrtc.cache_clear()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    with pytest.raises(NvrtcError, match=r"libnvrtc\.so\.99, .*pip install nvidia-cuda-nvrtc"):
        nvrtc()
    nvrtc.cache_clear()


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
        shapes = ((most, 512, 1024), (most - 23, 520, 712), (most - 40, 48, 4096))
        for rows, out, inner in (*shapes, (5, 64, 40), (9, 64, 456)):
            x, weight = operands(rows, 2 * out if gated else out, inner)
            made = hopper_linear(x, weight, tiling, gated=gated)
            steps = -(-inner // 64)
            assert num_parts(made) == -(-steps // -(-steps // split))
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
    assert kernel._loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hopper_linear(x, weight, tiling)
    out.fill_(float("nan"))
    graph.replay()
    assert relative_error(sum_parts(out), expected(x, weight, gated=False)) < 3e-3
