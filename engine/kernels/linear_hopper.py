"""Linear layers of some dozens to some hundreds of rows on Hopper, in CUDA C++.

From about 64 rows on, arithmetic and the reading of activations weigh as much as the weights. So a
thread loads with the tensor memory accelerator while warp groups multiply, and blocks that share
weight rows load them together, which Triton's own language cannot express; see `linear_hopper.cu`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from engine.kernels.nvrtc import MOST_SHARED_BYTES, CudaKernel, Launch, tensor_map

COLUMNS = 64  # of a tile, which are 128 bytes
TILE_BYTES = MOST_SHARED_BYTES - 16 * 1024  # the kernel that follows needs some to start early
PRODUCER_REGISTERS = 24  # of a thread that only loads
OTHER_REGISTERS = 28  # of a thread that multiplies, beside its sums


class HopperTiling(NamedTuple):
    """How a product is cut up.

    Attributes:
        row_groups: warp groups of a block, each of 64 rows of the activations.
        features: weight rows of a block (gate and up together, in the gated form), a multiple of
            16.
        cluster: blocks of different activation rows that share weights, 1 or 2.
        split: divisions of K, whose results are parts.
    """

    row_groups: int
    features: int
    cluster: int = 1
    split: int = 1

    @property
    def stage_bytes(self) -> int:
        """Of a tile of activations and one of weights, and two barriers."""
        return (64 * self.row_groups + self.features) * 2 * COLUMNS + 16

    @property
    def start_registers(self) -> int:
        """That a thread starts with: a multiprocessor has 512 for each thread of a warp group."""
        return 512 // (self.row_groups + 1) // 8 * 8

    @property
    def shares_registers(self) -> bool:
        """Whether loading threads must give registers to multiplying ones.

        If not, the block takes no more than it needs, and leaves room for the kernel that follows.
        """
        return self.features // 2 + OTHER_REGISTERS > self.start_registers

    @property
    def consumer_registers(self) -> int:
        """That a multiplying thread has once loading ones have given theirs away.

        More than all had together, and they would wait for each other for ever.
        """
        left = self.start_registers * (self.row_groups + 1) - PRODUCER_REGISTERS
        return min(240, left // self.row_groups // 8 * 8)

    @property
    def pieces(self) -> int:
        """Instructions that share a block's features: one needs all its sums at the start."""
        return 2 if self.shares_registers else 1

    @property
    def fits(self) -> bool:
        """Whether the registers and the shared memory of a multiprocessor suffice."""
        sums = self.features // 2
        return (
            sums + OTHER_REGISTERS <= self.consumer_registers
            and sums // self.pieces + OTHER_REGISTERS <= self.start_registers
            and self.stages(3) == 3
        )

    def stages(self, most: int) -> int:
        """Tiles in flight: as many as fit, and no more than asked for."""
        return min(most, TILE_BYTES // self.stage_bytes)


@cache
def hopper_kernel(tiling: HopperTiling, stages: int, *, gated: bool, parts: bool) -> CudaKernel:
    """The variant of the kernel, not compiled yet."""
    sums = tiling.features // 2 // tiling.pieces  # of an instruction, in a thread
    return CudaKernel(Path(__file__).with_suffix(".cu"), "linear_hopper", {
        "ROW_GROUPS": tiling.row_groups, "BN": tiling.features, "STAGES": stages,
        "CLUSTER": tiling.cluster, "GATED": int(gated), "PARTS": int(parts),
        "SHARE_REGISTERS": int(tiling.shares_registers),
        "CONSUMER_REGISTERS": tiling.consumer_registers, "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
        "PIECES": tiling.pieces, "SHAPE_N": f'"{tiling.features // tiling.pieces}"',
        "SUMS": f'"{", ".join(f"%{i}" for i in range(sums))}"',
        "SUM_OPERANDS": ", ".join(f'"+f"(sums[{i}])' for i in range(sums)),
        "A": f'"%{sums}"', "B": f'"%{sums + 1}"', "KEEP": f'"%{sums + 2}"',
    })  # fmt: skip


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


def takes_hopper_linear(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel can run: a Hopper GPU, bfloat16, rows of multiples of 16 bytes."""
    on_hopper = x.device.type == "cuda" and _is_hopper(x.device)
    return on_hopper and x.dtype == torch.bfloat16 and not any(n % 16 for n in weight.shape)


def hopper_linear(
    x: torch.Tensor, weight: torch.Tensor, tiling: HopperTiling, *, gated: bool = False
) -> torch.Tensor:
    """`x @ weight.T` on Hopper.

    Args:
        x: bfloat16[M, K] contiguous, at most 64 * row_groups * cluster rows; K a multiple of 8.
        weight: bfloat16[N, K] contiguous, N a multiple of 8; gated: [2 I, K].
        tiling: how to cut it up; `split` must be 1 if gated.
        gated: return silu(gate) * up.

    Returns:
        bfloat16[M, N] (gated: [M, I]), or parts float32[split, M, N].

    Raises:
        ValueError: the tiling does not fit the operands, or the GPU.
    """
    m, k = x.shape
    n = len(weight) // 2 if gated else len(weight)
    if m > 64 * tiling.row_groups * tiling.cluster or k % 8 or n % 8 or not tiling.fits:
        raise ValueError(f"{tiling} does not fit [{m}, {k}] by [{n}, {k}]")
    steps = -(-k // COLUMNS)
    each = -(-steps // tiling.split)
    split = -(-steps // each)
    if split == 1:
        out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    else:
        out = torch.empty(split, m, n, dtype=torch.float32, device=x.device)
    stages = tiling.stages(max(2, min(8, each)))
    tiles = -(-n // (tiling.features // 2 if gated else tiling.features))
    shape = Launch(
        grid=(tiles * tiling.cluster, split),
        threads=128 * (tiling.row_groups + 1),
        cluster=tiling.cluster,
        shared_bytes=stages * tiling.stage_bytes + 1024,  # room to align them
    )
    arguments = (
        tensor_map(x, 64 * tiling.row_groups, COLUMNS),
        tensor_map(weight, tiling.features // 2, COLUMNS),
        ctypes.c_void_p(out.data_ptr()),
        *map(ctypes.c_int, (m, n, steps, each)),
    )
    hopper_kernel(tiling, stages, gated=gated, parts=split > 1).launch(shape, arguments, x.device)
    return out
