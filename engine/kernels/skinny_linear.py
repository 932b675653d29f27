"""Linear layers of a few rows: the job is to stream the weights at the bandwidth of the memory.

`out[M, N] = x[M, K] @ weight[N, K].T` with M up to about 64. The weight tile is the left operand of
the matrix product, so that its rows fill the matrix units whatever M is. While the kernel before is
still running, every program already pulls the start of its weights into the L2 cache; it then waits
for its activations, and the loop keeps several tiles in flight.

With several splits the inner dimension is divided and the result is parts (see `parts`). The gated
form computes silu(gate) * up for a weight [2 I, K] of gate rows and up rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait


class Tiling(NamedTuple):
    """How a skinny product is cut up.

    Attributes:
        rows: weight rows of a program (of gate and of up each, in the gated form).
        inner: columns of a step of the loop.
        split: divisions of K.
        stages: tiles in flight.
        warps: per program.
        prefetch: steps of the loop whose weights are pulled into L2 before the wait.
        tiles: programs that share the weight's rows, each taking at most `rows` of them; 0: as
            many as `rows` makes. A multiple of the multiprocessors leaves none of them idle.
    """

    rows: int
    inner: int
    split: int
    stages: int
    warps: int
    prefetch: int = 4
    tiles: int = 0


@triton.jit
def _prefetch_rows(pointer, rows, columns, row_stride):
    """Pull [rows, columns] of a matrix into L2, 128 bytes a request."""
    at = pointer + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@kernel(do_not_specialize=["m"])
def _skinny_kernel(
    x, weight, out, m, n, k, k_per_split, rows_per_tile,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    GATED: tl.constexpr, PREFETCH: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    launch_dependents(PDL)
    tile, split = tl.program_id(0), tl.program_id(1)
    start = split * k_per_split
    stop = tl.minimum(start + k_per_split, k)
    place = tl.arange(0, BN)
    rows = tile * rows_per_tile + place
    has_row = (place < rows_per_tile) & (rows < n)
    if PDL and PREFETCH > 0:
        LINE: tl.constexpr = 64  # elements of 128 bytes
        lines = tl.minimum(start + tl.arange(0, PREFETCH * BK // LINE) * LINE, k - 1)
        known = tl.where(has_row, rows, n - 1)
        _prefetch_rows(weight, known, lines, k)
        if GATED:
            _prefetch_rows(weight + n.to(tl.int64) * k, known, lines, k)
    tokens = tl.arange(0, BM)
    inner = tl.arange(0, BK)
    w_at = weight + rows[:, None].to(tl.int64) * k + inner[None, :]
    x_at = x + tokens[None, :] * k + inner[:, None]
    has_token = (tokens < m)[None, :]
    total = tl.zeros((BN, BM), tl.float32)
    total_up = tl.zeros((BN, BM), tl.float32)
    wait(PDL)
    for at in tl.range(start, stop, BK, num_stages=STAGES):
        if EVEN:
            w = tl.load(w_at + at, mask=has_row[:, None], other=0.0)
            xs = tl.load(x_at + at, mask=has_token, other=0.0)
        else:
            left = inner < stop - at
            w = tl.load(w_at + at, mask=has_row[:, None] & left[None, :], other=0.0)
            xs = tl.load(x_at + at, mask=left[:, None] & has_token, other=0.0)
        total = tl.dot(w, xs, total)
        if GATED:
            up_at = w_at + n.to(tl.int64) * k + at
            if EVEN:
                w_up = tl.load(up_at, mask=has_row[:, None], other=0.0)
            else:
                w_up = tl.load(up_at, mask=has_row[:, None] & left[None, :], other=0.0)
            total_up = tl.dot(w_up, xs, total_up)
    if GATED:
        total = total * tl.sigmoid(total) * total_up
    target = out + split.to(tl.int64) * m * n + tokens[None, :] * n + rows[:, None]
    tl.store(target, total, mask=has_token & has_row[:, None])


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, tiling: Tiling, *, gated: bool = False
) -> torch.Tensor:
    """`x @ weight.T` for few rows.

    Args:
        x: [M, K] contiguous, M at most 128.
        weight: [N, K] contiguous; gated: [2 I, K].
        tiling: how to cut it up; `split` must be 1 if gated.
        gated: return silu(gate) * up.

    Returns:
        [M, N] (gated: [M, I]) in the dtype of x, or parts float32[split, M, N].

    Raises:
        ValueError: the tiling does not cover the weight.
    """
    m, k = x.shape
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    split = tiling.split
    steps = triton.cdiv(k, tiling.inner)
    k_per_split = triton.cdiv(steps, split) * tiling.inner
    if split == 1:
        out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    else:
        out = torch.empty(split, m, n, dtype=torch.float32, device=x.device)
    tiles = tiling.tiles or triton.cdiv(n, tiling.rows)
    if triton.cdiv(n, tiles) > tiling.rows:
        raise ValueError(f"{tiles} tiles of {tiling.rows} rows do not cover {n} rows")
    _skinny_kernel[(tiles, split)](
        x, weight, out, m, n, k, k_per_split, triton.cdiv(n, tiles),
        BM=max(16, triton.next_power_of_2(m)), BN=tiling.rows, BK=tiling.inner,
        STAGES=tiling.stages, GATED=gated, PREFETCH=tiling.prefetch,
        EVEN=k == k_per_split * split,
        num_warps=tiling.warps, **launch_options(x.device),
    )  # fmt: skip
    return out
