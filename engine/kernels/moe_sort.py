"""Sorts (token, expert) pairs by expert, and cuts each expert's pairs into blocks of rows.

No shared counters: the programs of an expert find out, for themselves, how many pairs lower
experts have (that is where theirs begin) and then place their own. They look at all pairs for that
or, where there are many, at counts of each chunk that a kernel before this one has made. Pairs of
an expert stay in order, so nothing depends on timing.

The number of blocks is only known on the device. Expert e owns the slots from `first_e // M + e`
on, where `first_e` pairs have lower experts and M is the size of a block: the next expert's begin
at least `ceil(count_e / M)` later, so slots never overlap, and their number, `pairs // M + E`, is
known to the host. Slots left over are blocks of no rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait

CHUNK = 2048  # pairs that a program looks at together
SEGMENT = 4 * CHUNK  # pairs that one program places; another one of the same expert has the next
COUNT_FROM = 4096  # pairs from which on counting them first is quicker
COUNTED_TOGETHER = 16  # chunks whose counts a program reads at a time


class SortedPairs(NamedTuple):
    """Pairs by expert.

    Attributes:
        order: int32[pairs], pairs in order of their experts; a pair is token * top_k + choice.
        blocks: int32[3, slots]: expert, first row (index into `order`), rows (0: not a block).
    """

    order: torch.Tensor
    blocks: torch.Tensor


def sort_pairs_reference(experts: torch.Tensor, num_experts: int, block_m: int) -> SortedPairs:
    """Sort pairs.

    Args:
        experts: int32[T, top_k], each in 0 .. num_experts - 1.
        num_experts: E.
        block_m: most rows of a block.

    Returns:
        The order and the blocks, as in the module's text.
    """
    flat = experts.flatten().long()
    counts = torch.bincount(flat, minlength=num_experts).tolist()
    blocks = torch.zeros(3, flat.numel() // block_m + num_experts, dtype=torch.int32)
    first = 0
    for expert, count in enumerate(counts):
        for i in range(-(-count // block_m)):
            row = i * block_m
            blocks[:, first // block_m + expert + i] = torch.tensor(
                [expert, first + row, min(block_m, count - row)]
            )
        first += count
    order = flat.sort(stable=True).indices.to(torch.int32)
    return SortedPairs(order, blocks.to(experts.device))


@kernel(do_not_specialize=["pairs"])
def _count_kernel(
    experts, counts, pairs,
    EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.arange(0, COLUMNS)
    launch_dependents(PDL)
    wait(PDL)
    chosen = tl.load(experts + pair, mask=pair < pairs, other=0)
    count = tl.histogram(chosen, COLUMNS, mask=pair < pairs)
    tl.store(counts + tl.program_id(0) * EXPERTS + expert, count, mask=expert < EXPERTS)


@triton.jit
def _sum_of_counts(
    counts, expert, chunks, chunks_before,
    EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Pairs of lower experts, pairs of `expert`, and of those the ones in `chunks_before`."""
    column = tl.arange(0, COLUMNS)[None, :]
    lower = tl.zeros((TOGETHER, COLUMNS), tl.int32)
    mine = tl.zeros((TOGETHER, COLUMNS), tl.int32)
    earlier = tl.zeros((TOGETHER, COLUMNS), tl.int32)
    for start in range(0, chunks, TOGETHER):
        chunk = start + tl.arange(0, TOGETHER)[:, None]
        inside = (chunk < chunks) & (column < EXPERTS)
        count = tl.load(counts + chunk * EXPERTS + column, mask=inside, other=0)
        lower += tl.where(column < expert, count, 0)
        mine += tl.where(column == expert, count, 0)
        earlier += tl.where((column == expert) & (chunk < chunks_before), count, 0)
    return tl.sum(tl.sum(lower, 1), 0), tl.sum(tl.sum(mine, 1), 0), tl.sum(tl.sum(earlier, 1), 0)


@triton.jit
def _count_all(experts, expert, pairs, pairs_before, CHUNK: tl.constexpr):
    """As `_sum_of_counts`, from the pairs themselves."""
    lower = tl.zeros((CHUNK,), tl.int32)
    mine = tl.zeros((CHUNK,), tl.int32)
    earlier = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, pairs, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        chosen = tl.load(experts + pair, mask=pair < pairs, other=2147483647)
        lower += (chosen < expert).to(tl.int32)
        mine += (chosen == expert).to(tl.int32)
        earlier += ((chosen == expert) & (pair < pairs_before)).to(tl.int32)
    return tl.sum(lower, 0), tl.sum(mine, 0), tl.sum(earlier, 0)


@kernel(do_not_specialize=["pairs", "slots"])
def _sort_pairs_kernel(
    experts, counts, order, blocks, pairs, slots,
    EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, COUNTED: tl.constexpr, TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    begin = tl.program_id(1) * SEGMENT
    launch_dependents(PDL)
    wait(PDL)
    if COUNTED:
        first, count, earlier = _sum_of_counts(
            counts, expert, tl.cdiv(pairs, CHUNK), begin // CHUNK, EXPERTS, COLUMNS, TOGETHER
        )
    else:
        first, count, earlier = _count_all(experts, expert, pairs, begin, CHUNK)

    row = first + earlier
    for start in range(begin, tl.minimum(begin + SEGMENT, pairs), CHUNK):
        pair = start + tl.arange(0, CHUNK)
        is_mine = tl.load(experts + pair, mask=pair < pairs, other=2147483647) == expert
        rank = tl.cumsum(is_mine.to(tl.int32), axis=0)
        tl.store(order + row + rank - 1, pair, mask=is_mine)
        row += tl.sum(is_mine.to(tl.int32))

    if begin == 0:
        slot = first // BLOCK_M + expert
        end = (first + count) // BLOCK_M + expert + 1
        for i in range(0, end - slot, CHUNK):
            block = i + tl.arange(0, CHUNK)
            rows = tl.minimum(tl.maximum(count - block * BLOCK_M, 0), BLOCK_M)
            at = blocks + slot + block
            owned = slot + block < end
            tl.store(at, tl.full((CHUNK,), 0, tl.int32) + expert, mask=owned)
            tl.store(at + slots, first + block * BLOCK_M, mask=owned)
            tl.store(at + 2 * slots, rows, mask=owned)


def sort_pairs_triton(experts: torch.Tensor, num_experts: int, block_m: int) -> SortedPairs:
    """As `sort_pairs_reference`, of contiguous experts; of slots left over only `rows` is set."""
    pairs, device = experts.numel(), experts.device
    slots = pairs // block_m + num_experts
    order = torch.empty(pairs, dtype=torch.int32, device=device)
    blocks = torch.empty(3, slots, dtype=torch.int32, device=device)
    chunk = min(CHUNK, max(128, triton.next_power_of_2(pairs)))
    counted = pairs >= COUNT_FROM
    sizes: dict[str, Any] = {
        "EXPERTS": num_experts, "COLUMNS": triton.next_power_of_2(num_experts), "CHUNK": chunk,
        "num_warps": max(1, chunk // 256), **launch_options(device),
    }  # fmt: skip
    counts = None
    if counted:
        chunks = triton.cdiv(pairs, chunk)
        counts = torch.empty(chunks, num_experts, dtype=torch.int32, device=device)
        _count_kernel[(chunks,)](experts, counts, pairs, **sizes)
    _sort_pairs_kernel[(num_experts, triton.cdiv(pairs, SEGMENT))](
        experts, counts, order, blocks, pairs, slots,
        COUNTED=counted, TOGETHER=COUNTED_TOGETHER, BLOCK_M=block_m, SEGMENT=SEGMENT, **sizes,
    )  # fmt: skip
    return SortedPairs(order, blocks)
