"""The rungs of RMSNorm and LayerNorm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.lab.case import Lab, Work, relative_error, sampled
from engine.kernels.lab.cuda_launch import (
    THREADS_OF_BLOCK,
    THREADS_OF_NAIVE,
    lab_kernel,
    launch,
    row_shape,
)
from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_options, wait
from engine.kernels.rms_norm import rms_norm_triton

EPS = 1e-5


class NormCase(NamedTuple):
    """Inputs of one call; `bias` is None for RMSNorm.

    Attributes:
        x: [rows, columns].
        weight: [columns].
        bias: [columns].
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def make(device: torch.device, *, rows: int, columns: int, centred: bool) -> NormCase:
    """Fresh random inputs, whose mean is not zero."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).add_(0.5).to(torch.bfloat16)

    bias = random(columns) if centred else None
    return NormCase(random(rows, columns), random(columns), bias)


def torch_naive(case: NormCase) -> torch.Tensor:
    """The definition."""
    wide = case.x.float()
    if case.bias is not None:
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * case.weight
    return (wide if case.bias is None else wide + case.bias).to(case.x.dtype)


def _operands(case: NormCase, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return case.x, case.weight, case.weight if case.bias is None else case.bias, out


def _defines(case: NormCase) -> dict[str, int]:
    return {"MEAN": int(case.bias is not None)}


def cuda_naive(case: NormCase) -> torch.Tensor:
    """A thread per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    arguments = (*_operands(case, out), rows, columns, EPS)
    made = lab_kernel("norm.cu", "norm_naive", _defines(case))
    grid = (-(-rows // THREADS_OF_NAIVE), 1)
    launch(made, grid, THREADS_OF_NAIVE, 0, arguments, case.x.device)
    return out


def cuda_block(case: NormCase) -> torch.Tensor:
    """A block per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    arguments = (*_operands(case, out), columns, EPS)
    made = lab_kernel("norm.cu", "norm_block", _defines(case))
    launch(made, (rows, 1), THREADS_OF_BLOCK, 4 * THREADS_OF_BLOCK, arguments, case.x.device)
    return out


def cuda_vector(case: NormCase) -> torch.Tensor:
    """Rows in registers, vectors, shuffles.

    Raises:
        ValueError: the columns are no multiple of 8, or more than 32,768.
    """
    rows, columns = case.x.shape
    threads, vectors, cluster = row_shape(columns)
    if cluster > 1:
        raise ValueError(f"a row of {columns} numbers is too long for a block")
    out = torch.empty_like(case.x)
    defines = {**_defines(case), "THREADS": threads, "VECTORS": vectors}
    made = lab_kernel("norm.cu", "norm_vector", defines)
    arguments = (*_operands(case, out), columns // 8, EPS)
    launch(made, (rows, 1), threads, 4 * 2 * 32, arguments, case.x.device)
    return out


@kernel()
def _layer_norm_kernel(
    x, weight, bias, out, columns, eps, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    inside = column < columns
    wait(PDL)
    values = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    values = tl.where(inside, values - tl.sum(values, 0) / columns, 0.0)
    inverse = tl.rsqrt(tl.sum(values * values, 0) / columns + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    result = values * inverse * scale + shift
    tl.store(out + row + column, result.to(out.dtype.element_ty), mask=inside)


def layer_norm_triton(case: NormCase) -> torch.Tensor:
    """A Triton program per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    block = triton.next_power_of_2(columns)
    _layer_norm_kernel[(rows,)](
        case.x, case.weight, case.bias, out, columns, EPS, BLOCK=block,
        num_warps=min(16, max(1, block // 512)), **launch_options(case.x.device),
    )  # fmt: skip
    return out


def rms_norm_engine(case: NormCase) -> torch.Tensor:
    """The engine's kernel."""
    return rms_norm_triton(case.x, case.weight, EPS)


def library(case: NormCase) -> torch.Tensor:
    """PyTorch's."""
    functions, shape = torch.nn.functional, case.x.shape[-1:]
    if case.bias is None:
        return functions.rms_norm(case.x, shape, case.weight, EPS)
    return functions.layer_norm(case.x, shape, case.weight, case.bias, EPS)


def error(case: NormCase, out: torch.Tensor) -> float:
    """Against float64, over at most 64 rows."""
    rows = sampled(len(case.x), 64, case.x.device)
    exact = case.x[rows].double()
    if case.bias is not None:
        exact = exact - exact.mean(-1, keepdim=True)
    exact = exact * (exact.square().mean(-1, keepdim=True) + EPS).rsqrt() * case.weight.double()
    return relative_error(out[rows], exact if case.bias is None else exact + case.bias.double())


def work(case: NormCase) -> Work:
    """One read, one write, and the weights."""
    weights = case.weight.nbytes + (0 if case.bias is None else case.bias.nbytes)
    return Work(2 * case.x.nbytes + weights, 0)


def _lab(fused: Callable[[NormCase], torch.Tensor], *, centred: bool) -> Lab:
    return Lab(
        sizes=(  # a decode step's rows, and two matrices that fill the GPU
            {"rows": 64, "columns": 4096}, {"rows": 16384, "columns": 4096},
            {"rows": 8192, "columns": 8192},
        ),
        small_sizes=(
            {"rows": 3, "columns": 8}, {"rows": 65, "columns": 1000}, {"rows": 5, "columns": 12296},
        ),
        make=partial(make, centred=centred),
        rungs={
            "torch-naive": torch_naive, "cuda-naive": cuda_naive, "cuda-block": cuda_block,
            "cuda-vector": cuda_vector, "triton": fused, "library": library,
        },
        error=error,
        work=work,
    )  # fmt: skip


RMS_LAB = _lab(rms_norm_engine, centred=False)
LAYER_LAB = _lab(layer_norm_triton, centred=True)
