"""The rungs of softmax."""

from __future__ import annotations

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

LONGEST_BLOCK = 32768  # columns that a Triton program holds at a time


class SoftmaxCase(NamedTuple):
    """Input of one call: [rows, columns]."""

    x: torch.Tensor


def make(device: torch.device, *, rows: int, columns: int) -> SoftmaxCase:
    """Fresh random logits."""
    return SoftmaxCase(torch.randn(rows, columns, device=device).mul_(3).to(torch.bfloat16))


def torch_naive(case: SoftmaxCase) -> torch.Tensor:
    """The definition."""
    logits = case.x.float()
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(case.x.dtype)


def cuda_naive(case: SoftmaxCase) -> torch.Tensor:
    """A thread per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    made = lab_kernel("softmax.cu", "softmax_naive", {})
    grid = (-(-rows // THREADS_OF_NAIVE), 1)
    launch(made, grid, THREADS_OF_NAIVE, 0, (case.x, out, rows, columns), case.x.device)
    return out


def cuda_block(case: SoftmaxCase) -> torch.Tensor:
    """A block per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    made = lab_kernel("softmax.cu", "softmax_block", {})
    arguments = (case.x, out, columns)
    launch(made, (rows, 1), THREADS_OF_BLOCK, 4 * THREADS_OF_BLOCK, arguments, case.x.device)
    return out


def cuda_vector(case: SoftmaxCase) -> torch.Tensor:
    """Rows in registers, vectors, shuffles, clusters.

    Raises:
        ValueError: the columns are no multiple of 8.
    """
    rows, columns = case.x.shape
    threads, vectors, cluster = row_shape(columns)
    out = torch.empty_like(case.x)
    defines = {"THREADS": threads, "VECTORS": vectors, "CLUSTER": cluster}
    made = lab_kernel("softmax.cu", "softmax_vector", defines)
    shared_bytes = 4 * 2 * (32 + cluster)
    arguments = (case.x, out, columns // 8)
    launch(
        made, (rows * cluster, 1), threads, shared_bytes, arguments, case.x.device, cluster=cluster
    )
    return out


@kernel()
def _softmax_kernel(
    x, out, columns, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    wait(PDL)
    if WHOLE:
        inside = column < columns
        logits = tl.load(x + row + column, mask=inside, other=float("-inf")).to(tl.float32)
        weights = tl.exp(logits - tl.max(logits, 0))
        weights = weights / tl.sum(weights, 0)
        tl.store(out + row + column, weights.to(out.dtype.element_ty), mask=inside)
    else:
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, columns, BLOCK):
            inside = start + column < columns
            logits = tl.load(x + row + start + column, mask=inside, other=float("-inf"))
            logits = logits.to(tl.float32)
            # A floor keeps inf - inf away where a lane has seen nothing finite.
            new_top = tl.maximum(tl.maximum(top, logits), -1e30)
            total = total * tl.exp(top - new_top) + tl.exp(logits - new_top)
            top = new_top
        best = tl.max(top, 0)
        all_weights = tl.sum(total * tl.exp(top - best), 0)
        for start in range(0, columns, BLOCK):
            inside = start + column < columns
            logits = tl.load(x + row + start + column, mask=inside, other=float("-inf"))
            weights = tl.exp(logits.to(tl.float32) - best) / all_weights
            tl.store(out + row + start + column, weights.to(out.dtype.element_ty), mask=inside)


def triton_rows(case: SoftmaxCase) -> torch.Tensor:
    """A Triton program per row."""
    rows, columns = case.x.shape
    out = torch.empty_like(case.x)
    whole = columns <= LONGEST_BLOCK
    block = triton.next_power_of_2(columns) if whole else 8192
    _softmax_kernel[(rows,)](
        case.x, out, columns, BLOCK=block, WHOLE=whole,
        num_warps=min(32, max(1, block // 1024)), **launch_options(case.x.device),
    )  # fmt: skip
    return out


def library(case: SoftmaxCase) -> torch.Tensor:
    """PyTorch's."""
    return torch.softmax(case.x, -1)


def error(case: SoftmaxCase, out: torch.Tensor) -> float:
    """Against float64, over at most 64 rows."""
    rows = sampled(len(case.x), 64, case.x.device)
    return relative_error(out[rows], case.x[rows].double().softmax(-1))


def work(case: SoftmaxCase) -> Work:
    """One read, one write."""
    return Work(2 * case.x.nbytes, 0)


LAB = Lab(
    sizes=(
        {"rows": 65536, "columns": 1024},
        {"rows": 8192, "columns": 8192},
        {"rows": 512, "columns": 131072},
    ),
    small_sizes=(
        {"rows": 3, "columns": 8}, {"rows": 65, "columns": 1000}, {"rows": 5, "columns": 12296},
        {"rows": 2, "columns": 65544},
    ),
    make=make,
    rungs={
        "torch-naive": torch_naive, "cuda-naive": cuda_naive, "cuda-block": cuda_block,
        "cuda-vector": cuda_vector, "triton": triton_rows, "library": library,
    },
    error=error,
    work=work,
)  # fmt: skip
