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
    def fits(self) -> bool:
        """Whether there is such a kernel, and registers and shared memory suffice."""
        registers = 512 // (self.row_groups + 1) if 1 <= self.row_groups <= 4 else 0
        return (
            self.features % 16 == 0
            and 0 < self.features <= 256
            and self.cluster in (1, 2)
            and self.split >= 1
            and self.features // 2 + OTHER_REGISTERS <= registers // 8 * 8
            and self.stages(3) == 3
        )

    def stages(self, most: int) -> int:
        """Tiles in flight: as many as fit, and no more than asked for."""
        return min(most, TILE_BYTES // self.stage_bytes)


@cache
def hopper_kernel(tiling: HopperTiling, stages: int, *, gated: bool, parts: bool) -> CudaKernel:
    """The variant of the kernel, not compiled yet."""
    sums = tiling.features // 2  # of a thread
    return CudaKernel(Path(__file__).with_suffix(".cu"), "linear_hopper", {
        "ROW_GROUPS": tiling.row_groups, "BN": tiling.features, "STAGES": stages,
        "CLUSTER": tiling.cluster, "GATED": int(gated), "PARTS": int(parts),
        "SHAPE_N": f'"{tiling.features}"',
        "SUMS": f'"{", ".join(f"%{i}" for i in range(sums))}"',
        "SUM_OPERANDS": ", ".join(f'"+f"(sums[{i}])' for i in range(sums)),
        "A": f'"%{sums}"', "B": f'"%{sums + 1}"', "KEEP": f'"%{sums + 2}"',
    })  # fmt: skip


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


def takes_hopper_linear(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel can run: a Hopper GPU, bfloat16, sides of multiples of 16 elements."""
    on_hopper = x.device.type == "cuda" and _is_hopper(x.device)
    return on_hopper and x.dtype == torch.bfloat16 and not any(n % 16 for n in weight.shape)


def hopper_linear(
    x: torch.Tensor, weight: torch.Tensor, tiling: HopperTiling, *, gated: bool = False
) -> torch.Tensor:
    """`x @ weight.T` on Hopper.

    Args:
        x: bfloat16[M, K] contiguous, at most 64 * row_groups * cluster rows; K a multiple of 8.
        weight: bfloat16[N, K] contiguous, N a multiple of 8; gated: [2 I, K]. No kernel may be
            writing it, because it is read before earlier kernels are done.
        tiling: how to cut it up; `split` must be 1 if gated.
        gated: return silu(gate) * up.

    Returns:
        bfloat16[M, N] (gated: [M, I]), or parts float32[split, M, N].

    Raises:
        ValueError: the tiling does not fit the operands or the GPU, or operands are of another
            type, or have gaps.
    """
    m, k = x.shape
    n = len(weight) // 2 if gated else len(weight)
    fits = tiling.fits and m <= 64 * tiling.row_groups * tiling.cluster
    if not fits or k % 8 or n % 8 or (gated and tiling.split > 1):
        raise ValueError(f"{tiling} does not fit [{m}, {k}] by [{n}, {k}], gated: {gated}")
    for operand in (x, weight):
        if operand.dtype != torch.bfloat16 or not operand.is_contiguous():
            raise ValueError(f"contiguous bfloat16 is wanted, not {operand.dtype}")
    steps = -(-k // COLUMNS)
    each = -(-steps // tiling.split)
    split = -(-steps // each)
    if split == 1:
        out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    else:
        out = torch.empty(split, m, n, dtype=torch.float32, device=x.device)
    stages = tiling.stages(max(2, min(8, each)))
    rows = -(-m // (8 * tiling.cluster)) * 8  # of a block; eight lie together in shared memory
    tiles = -(-n // (tiling.features // 2 if gated else tiling.features))
    shape = Launch(
        grid=(tiles * tiling.cluster, split),
        threads=128 * (tiling.row_groups + 1),
        cluster=tiling.cluster,
        shared_bytes=stages * tiling.stage_bytes + 1024,  # room to align them
    )
    arguments = (
        tensor_map(x, rows, COLUMNS),
        tensor_map(weight, tiling.features // 2, COLUMNS),
        ctypes.c_void_p(out.data_ptr()),
        *map(ctypes.c_int, (m, n, rows, steps, each)),
    )
    hopper_kernel(tiling, stages, gated=gated, parts=split > 1).launch(shape, arguments, x.device)
    return out
