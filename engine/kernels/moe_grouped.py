"""Experts of many tokens: tokens sorted by expert, then one GEMM per expert, all in one kernel.

Three steps: the sort (`moe_sort`, which also cuts each expert's tokens into blocks of M rows); gate
and up with silu(gate) * up at the end, whose rows are gathered from the tokens; and down, whose
results are weighted and go back to their tokens, as `top_k` parts to be summed by whoever reads
them. Nothing depends on how tokens are distributed but the content of the block table.

Where there are few tokens per expert the weights are the left operand of the products: a tensor
core instruction of Hopper has 64 rows of the left operand but as few as 8 columns of the right one.
Where there are many, an expert's last block is done with half the rows if it has no more.

Order in a chain of overlapping launches: gate and up lets down start only after its own wait, so
the block table (written before that) is complete, and down reads it before its own wait.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.launching import kernel
from engine.kernels.moe_configs import GroupedConfig, Tile, grouped_config
from engine.kernels.moe_sort import SortedPairs, sort_pairs_triton
from engine.kernels.pdl import launch_dependents, launch_options, wait


@triton.jit
def _slot_and_tile(slots, tiles, GROUP: tl.constexpr):
    """Which block of rows, which tile of features: GROUP blocks share a tile of weights in turn."""
    program = tl.program_id(0)
    first = program // (GROUP * tiles) * GROUP
    size = tl.minimum(slots - first, GROUP)
    inside = program % (GROUP * tiles)
    return first + inside % size, inside // size


@triton.jit
def _weight_tile(
    weights, first_row, n, k, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows `first_row + n ..` of the weights, columns `k ..`; rows from ROWS on mean nothing."""
    if TMA:
        tile = weights.load([first_row + n, k])
    else:
        row = n + tl.arange(0, BLOCK_N)[:, None]
        column = k + tl.arange(0, BLOCK_K)[None, :]
        at = weights + first_row.to(tl.int64) * WIDTH + row * WIDTH + column
        if ROWS % BLOCK_N == 0 and WIDTH % BLOCK_K == 0:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=(row < ROWS) & (column < WIDTH), other=0.0)
    return tile


@triton.jit
def _dot(rows, tile, total, SWAP: tl.constexpr):
    """total + rows @ tile.T, [M, N]; or, swapped, its transpose [N, M]."""
    if SWAP:
        total = tl.dot(tile, rows.T, total)
    else:
        total = tl.dot(rows, tile.T, total)
    return total


@triton.jit
def _load_rows(at, k, real, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns `k ..` of the rows at pointers `at` [M, 1]."""
    column = k + tl.arange(0, BLOCK_K)[None, :]
    if WIDTH % BLOCK_K == 0:
        rows = tl.load(at + column, mask=real, other=0.0)
    else:
        rows = tl.load(at + column, mask=real & (column < WIDTH), other=0.0)
    return rows


@triton.jit
def _gate_up_block(
    x, gate_up, order, hidden, expert, first_row, rows, n,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of gate and up, of at most ROWS rows."""
    row = first_row.to(tl.int64) + tl.arange(0, ROWS)
    real = (tl.arange(0, ROWS) < rows)[:, None]
    pair = tl.load(order + row, mask=tl.arange(0, ROWS) < rows, other=0)
    at = x + (pair // TOP_K).to(tl.int64)[:, None] * H
    gate = tl.zeros((BLOCK_N, ROWS) if SWAP else (ROWS, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_N, ROWS) if SWAP else (ROWS, BLOCK_N), tl.float32)
    for k in range(0, H, BLOCK_K):
        tokens = _load_rows(at, k, real, H, BLOCK_K)
        gate_tile = _weight_tile(gate_up, expert * 2 * I, n, k, I, H, BLOCK_N, BLOCK_K, TMA)
        gate = _dot(tokens, gate_tile, gate, SWAP)
        up_tile = _weight_tile(gate_up, (expert * 2 + 1) * I, n, k, I, H, BLOCK_N, BLOCK_K, TMA)
        up = _dot(tokens, up_tile, up, SWAP)
    value = (gate * tl.sigmoid(gate) * up).to(hidden.dtype.element_ty)
    if SWAP:
        value = value.T
    column = n + tl.arange(0, BLOCK_N)[None, :]
    tl.store(hidden + row[:, None] * I + column, value, mask=real & (column < I))


@kernel(do_not_specialize=["slots"])
def _grouped_gate_up_kernel(
    x, gate_up, order, blocks, hidden, slots,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr, HALVES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, SWAP: tl.constexpr, TMA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    slot, tile = _slot_and_tile(slots, tl.cdiv(I, BLOCK_N), GROUP)
    wait(PDL)
    launch_dependents(PDL)
    rows = tl.load(blocks + 2 * slots + slot)
    if rows == 0:
        return
    expert = tl.load(blocks + slot)
    first_row = tl.load(blocks + slots + slot)
    n = tile * BLOCK_N
    if HALVES and rows <= BLOCK_M // 2:
        _gate_up_block(x, gate_up, order, hidden, expert, first_row, rows, n,
                       TOP_K, H, I, BLOCK_M // 2, BLOCK_N, BLOCK_K, SWAP, TMA)  # fmt: skip
    else:
        _gate_up_block(x, gate_up, order, hidden, expert, first_row, rows, n,
                       TOP_K, H, I, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA)  # fmt: skip


@triton.jit
def _down_block(
    hidden, down, weights, order, out, tokens, expert, first_row, rows, n,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of down, of at most ROWS rows."""
    row = first_row.to(tl.int64) + tl.arange(0, ROWS)
    real = (tl.arange(0, ROWS) < rows)[:, None]
    pair = tl.load(order + row, mask=tl.arange(0, ROWS) < rows, other=0)
    weight = tl.load(weights + pair, mask=tl.arange(0, ROWS) < rows, other=0.0)
    target = (pair % TOP_K).to(tl.int64) * tokens + pair // TOP_K
    wait(PDL)
    total = tl.zeros((BLOCK_N, ROWS) if SWAP else (ROWS, BLOCK_N), tl.float32)
    for k in range(0, I, BLOCK_K):
        if TMA:
            values = hidden.load([first_row, k])
        else:
            values = _load_rows(hidden + row[:, None] * I, k, real, I, BLOCK_K)
        tile = _weight_tile(down, expert * H, n, k, H, I, BLOCK_N, BLOCK_K, TMA)
        total = _dot(values, tile, total, SWAP)
    if SWAP:
        value = (total * weight[None, :]).to(out.dtype.element_ty).T
    else:
        value = (total * weight[:, None]).to(out.dtype.element_ty)
    column = n + tl.arange(0, BLOCK_N)[None, :]
    tl.store(out + target[:, None] * H + column, value, mask=real & (column < H))


@kernel(do_not_specialize=["slots", "tokens"])
def _grouped_down_kernel(
    hidden, half_hidden, down, weights, order, blocks, out, slots, tokens,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr, HALVES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, SWAP: tl.constexpr, TMA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    slot, tile = _slot_and_tile(slots, tl.cdiv(H, BLOCK_N), GROUP)
    launch_dependents(PDL)
    rows = tl.load(blocks + 2 * slots + slot)
    if rows == 0:
        return
    expert = tl.load(blocks + slot)
    first_row = tl.load(blocks + slots + slot)
    n = tile * BLOCK_N
    if HALVES and rows <= BLOCK_M // 2:
        _down_block(half_hidden, down, weights, order, out, tokens, expert, first_row, rows, n,
                    TOP_K, H, I, BLOCK_M // 2, BLOCK_N, BLOCK_K, SWAP, TMA, PDL)  # fmt: skip
    else:
        _down_block(hidden, down, weights, order, out, tokens, expert, first_row, rows, n,
                    TOP_K, H, I, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, PDL)  # fmt: skip


def _tile_options(config: GroupedConfig, tile: Tile) -> dict[str, Any]:
    return {
        "BLOCK_M": config.block_m, "HALVES": config.halves,
        "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
        "GROUP": tile.group, "SWAP": tile.swap, "TMA": tile.tma,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def _matrix(tensor: torch.Tensor, rows: int, tile: Tile) -> torch.Tensor | TensorDescriptor:
    """`tensor` for a kernel: itself, or a description of its [rows, K] blocks for the TMA unit."""
    if not tile.tma:
        return tensor
    return TensorDescriptor.from_tensor(tensor.flatten(0, -2), [rows, tile.block_k])


def gate_up_grouped(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    pairs: SortedPairs,
    top_k: int,
    config: GroupedConfig,
) -> torch.Tensor:
    """silu(gate) * up of every pair, in the order of `pairs`: [T * top_k, I]."""
    (_, twice, features), slots, tile = gate_up.shape, pairs.blocks.shape[1], config.gate_up
    width = twice // 2
    hidden = torch.empty(len(pairs.order), width, dtype=x.dtype, device=x.device)
    _grouped_gate_up_kernel[(slots * triton.cdiv(width, tile.block_n),)](
        x, _matrix(gate_up, tile.block_n, tile), pairs.order, pairs.blocks, hidden, slots,
        TOP_K=top_k, H=features, I=width,
        **_tile_options(config, tile), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def down_grouped(
    hidden: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    pairs: SortedPairs,
    config: GroupedConfig,
) -> torch.Tensor:
    """Weighted results of all pairs, choice j of token t at [j, t]: [top_k, T, H].

    To be launched right after `gate_up_grouped`: see the module's text.
    """
    (_, features, width), slots, tile = down.shape, pairs.blocks.shape[1], config.down
    tokens, top_k = weights.shape
    out = torch.empty(top_k, tokens, features, dtype=hidden.dtype, device=hidden.device)
    half = _matrix(hidden, config.block_m // 2, tile) if config.halves else None
    _grouped_down_kernel[(slots * triton.cdiv(features, tile.block_n),)](
        _matrix(hidden, config.block_m, tile), half, _matrix(down, tile.block_n, tile),
        weights, pairs.order, pairs.blocks, out, slots, tokens,
        TOP_K=top_k, H=features, I=width,
        **_tile_options(config, tile), **launch_options(hidden.device),
    )  # fmt: skip
    return out


def moe_mlp_grouped(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    config: GroupedConfig | None = None,
) -> torch.Tensor:
    """As `moe_experts.moe_mlp_reference`, in `top_k` parts of the dtype of `x`.

    All operands are contiguous, H and I multiples of 16. `config` are the sizes of tiles, if not
    those that the shapes suggest.
    """
    num_experts, features, width = down.shape
    if config is None:
        config = grouped_config(experts.numel(), num_experts, features, width)
    pairs = sort_pairs_triton(experts, num_experts, config.block_m)
    hidden = gate_up_grouped(x, gate_up, pairs, experts.shape[1], config)
    return down_grouped(hidden, down, weights, pairs, config)
