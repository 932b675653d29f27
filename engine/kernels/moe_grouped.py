"""Experts of many tokens: tokens sorted by expert, then one GEMM per expert, all in one kernel.

Five kernels: the sort (`moe_sort`, which also cuts each expert's tokens into blocks of M rows);
gate and up with silu(gate) * up at the end, whose rows are gathered from the tokens; down, whose
results are weighted and go back to the order of pairs; and the sum over the experts of a token.
Nothing depends on how tokens are distributed but the content of the block table.

Where there are few tokens per expert the weights are the left operand of the products: a tensor
core instruction of Hopper has 64 rows of the left operand but as few as 8 columns of the right one.

Order in a chain of overlapping launches: gate and up lets down start only after its own wait, so
the block table (written before that) is complete, and down can ask for its first weights early.
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

LINE_BYTES = 128  # of the L2 cache


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


@kernel(do_not_specialize=["slots"])
def _grouped_gate_up_kernel(
    x, gate_up, order, blocks, hidden, slots,
    TOP_K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    slot, tile = _slot_and_tile(slots, tl.cdiv(I, BLOCK_N), GROUP)
    wait(PDL)
    launch_dependents(PDL)
    rows = tl.load(blocks + 2 * slots + slot)
    if rows == 0:
        return
    expert = tl.load(blocks + slot)
    row = tl.load(blocks + slots + slot).to(tl.int64) + tl.arange(0, BLOCK_M)
    real = (tl.arange(0, BLOCK_M) < rows)[:, None]
    pair = tl.load(order + row, mask=tl.arange(0, BLOCK_M) < rows, other=0)
    at = x + (pair // TOP_K).to(tl.int64)[:, None] * H
    n = tile * BLOCK_N

    gate = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
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


@triton.jit
def _ask_for_weights(at, PDL: tl.constexpr):
    """Start to bring the lines at pointers `at` into the L2 cache."""
    if PDL:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1];\nmov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@kernel(do_not_specialize=["slots"])
def _grouped_down_kernel(
    hidden, down, down_pointer, weights, order, blocks, out, slots,
    H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PREFETCH: tl.constexpr, LINE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    slot, tile = _slot_and_tile(slots, tl.cdiv(H, BLOCK_N), GROUP)
    launch_dependents(PDL)
    rows = tl.load(blocks + 2 * slots + slot)
    if rows == 0:
        return
    expert = tl.load(blocks + slot)
    first_row = tl.load(blocks + slots + slot)
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    real = (tl.arange(0, BLOCK_M) < rows)[:, None]
    n = tile * BLOCK_N
    if PREFETCH:
        lines = tl.minimum(n + tl.arange(0, BLOCK_N), H - 1)[:, None] * I
        lines += tl.minimum(tl.arange(0, PREFETCH)[None, :] * LINE, I - 1)
        _ask_for_weights(down_pointer + expert.to(tl.int64) * (H * I) + lines, PDL)
    pair = tl.load(order + row, mask=tl.arange(0, BLOCK_M) < rows, other=0).to(tl.int64)
    wait(PDL)

    total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, I, BLOCK_K):
        if TMA:
            values = hidden.load([first_row, k])
        else:
            values = _load_rows(hidden + row[:, None] * I, k, real, I, BLOCK_K)
        tile_k = _weight_tile(down, expert * H, n, k, H, I, BLOCK_N, BLOCK_K, TMA)
        total = _dot(values, tile_k, total, SWAP)
    weight = tl.load(weights + pair, mask=tl.arange(0, BLOCK_M) < rows, other=0.0)
    if SWAP:
        value = (total * weight[None, :]).to(out.dtype.element_ty).T
    else:
        value = (total * weight[:, None]).to(out.dtype.element_ty)
    column = n + tl.arange(0, BLOCK_N)[None, :]
    tl.store(out + pair[:, None] * H + column, value, mask=real & (column < H))


@kernel()
def _combine_kernel(pairs, out, H: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr,
                    PDL: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    launch_dependents(PDL)
    wait(PDL)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP_K):
        at = pairs + (token * TOP_K + i) * H + column
        total += tl.load(at, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + column, total, mask=column < H)


def combine_triton(pairs: torch.Tensor, top_k: int) -> torch.Tensor:
    """[T, H]: sums of each `top_k` rows of [T * top_k, H], in fp32."""
    tokens, features = pairs.shape[0] // top_k, pairs.shape[1]
    out = torch.empty(tokens, features, dtype=pairs.dtype, device=pairs.device)
    block = min(1024, triton.next_power_of_2(features))
    _combine_kernel[(tokens, triton.cdiv(features, block))](
        pairs, out, H=features, TOP_K=top_k, BLOCK=block, num_warps=max(1, block // 256),
        **launch_options(pairs.device),
    )  # fmt: skip
    return out


def _tile_options(config: GroupedConfig, tile: Tile) -> dict[str, Any]:
    return {
        "BLOCK_M": config.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
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
    """Weighted results of all pairs, pair t * top_k + j in that row: [T * top_k, H].

    To be launched right after `gate_up_grouped`: see the module's text.
    """
    (_, features, width), slots, tile = down.shape, pairs.blocks.shape[1], config.down
    out = torch.empty(len(hidden), features, dtype=hidden.dtype, device=hidden.device)
    _grouped_down_kernel[(slots * triton.cdiv(features, tile.block_n),)](
        _matrix(hidden, config.block_m, tile), _matrix(down, tile.block_n, tile), down,
        weights, pairs.order, pairs.blocks, out, slots, H=features, I=width,
        PREFETCH=tile.prefetch, LINE=LINE_BYTES // down.itemsize,
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
    """As `moe_experts.moe_mlp_reference`; all operands contiguous, H and I multiples of 16.

    `config` are the sizes of tiles, if not those that the shapes suggest.
    """
    num_experts, features, width = down.shape
    top_k = experts.shape[1]
    if config is None:
        config = grouped_config(experts.numel(), num_experts, features, width)
    pairs = sort_pairs_triton(experts, num_experts, config.block_m)
    hidden = gate_up_grouped(x, gate_up, pairs, top_k, config)
    of_pairs = down_grouped(hidden, down, weights, pairs, config)
    return of_pairs if top_k == 1 else combine_triton(of_pairs, top_k)
