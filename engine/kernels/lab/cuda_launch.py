"""How the CUDA rungs are launched, and how those that work on rows cut them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from engine.kernels.nvrtc import CudaKernel, Launch

THREADS_OF_NAIVE = 128
THREADS_OF_BLOCK = 256
SHARED = Path(__file__).with_name("common.cuh")


class _LabKernel(CudaKernel):
    """A kernel whose file begins with what all files of the lab share."""

    def __init__(self, path: Path, function: str, defines: Mapping[str, int]) -> None:
        super().__init__(path, function, defines)
        self.source = f"{SHARED.read_text(encoding='utf-8')}{self.source}"


@cache
def _kernel(path: Path, function: str, defines: tuple[tuple[str, int], ...]) -> CudaKernel:
    return _LabKernel(path, function, dict(defines))


def lab_kernel(file: str, function: str, defines: Mapping[str, int]) -> CudaKernel:
    """A kernel of one of the lab's `.cu` files, one object per variant."""
    return _kernel(Path(__file__).with_name(file), function, tuple(defines.items()))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """The address of a tensor's first element, as a kernel's argument.

    Raises:
        ValueError: it is not contiguous, or does not start at a multiple of 16 bytes.
    """
    if not tensor.is_contiguous() or tensor.data_ptr() % 16:
        raise ValueError("the kernels of the lab take contiguous tensors, aligned to 16 bytes")
    return ctypes.c_void_p(tensor.data_ptr())


def launch(
    kernel: CudaKernel,
    grid: tuple[int, int],
    threads: int,
    shared_bytes: int,
    arguments: Sequence[Any],
    device: torch.device,
    *,
    cluster: int = 1,
) -> None:
    """Queue a kernel on the current stream; tensors among the arguments become addresses."""
    values = [
        pointer(a) if isinstance(a, torch.Tensor)
        else ctypes.c_float(a) if isinstance(a, float)
        else ctypes.c_int(a)
        for a in arguments
    ]  # fmt: skip
    kernel.launch(Launch(grid, threads, cluster, shared_bytes), values, device)


def row_shape(columns: int) -> tuple[int, int, int]:
    """Cut a row among threads: (threads of a block, vectors of a thread, blocks of a cluster).

    Two vectors a thread keep enough bytes in flight; four, and then clusters, are for rows that
    would not fit otherwise.

    Args:
        columns: a multiple of 8.

    Raises:
        ValueError: a row is too long, or no whole number of 16-byte vectors.
    """
    if columns % 8:
        raise ValueError(f"rows of whole 16-byte vectors are wanted, not of {columns} numbers")
    for cluster in (1, 2, 4, 8):
        share = -(-columns // 8 // cluster)
        for held, most_threads in ((1, 256), (2, 512), (4, 1024)):
            threads = max(32, triton.next_power_of_2(-(-share // held)))
            if threads <= most_threads:
                return threads, held, cluster
    raise ValueError(f"a row of {columns} numbers is too long")
