"""Attention of one new token per request over its paged KV cache.

Flash decoding (Dao et al., "Flash-Decoding for long-context inference", 2023): contexts are cut
into splits that run in parallel, each keeps an online softmax (Milakov and Gimelshein,
arXiv 1805.02867), and the partial results are combined by their log-sum-exp. The query heads that
share a KV head are the rows of one matrix product, so the cache is read once.

Where the cuts are is decided on the device, as in stream-K (Osama et al., arXiv 2301.03598): the
blocks of tokens of all requests lie in one line, and every program takes an equal piece of it for
one KV head, which may begin and end within a request. So the grid knows no lengths, one CUDA Graph
serves every context, no program idles and none has more than its share. The programs of a piece,
one per head, run side by side, because tokens of one page are neighbours in memory.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl

from engine.kernels.decode_attention_tuning import DecodeTuning, pick_tuning
from engine.kernels.launching import kernel
from engine.kernels.pdl import INTERPRETED, launch_dependents, launch_options, wait

COMBINE_ELEMENTS = 8192  # fp32 values of partial results that a program holds at a time
SCAN_SIZES = (16, 128, 1024, 4096)  # requests that a program looks at; each is a compilation
LOG2_E = math.log2(math.e)


def decode_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    max_context: int,
    counters: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from one token per request to all of its context, the token itself included.

    Args:
        q: [B, Hq, D] queries; rows may be strided, heads are contiguous.
        k_cache: [pages, page_size, Hk, D]; Hk divides Hq. The token's own entry is there.
        v_cache: as `k_cache`.
        page_table: int32[R, max_pages]; token x of row r: page `page_table[r, x // page_size]`.
        rows: int32[B], the row of each request.
        positions: int32[B], the index of its token; `positions + 1` tokens are attended. At the end
            there may be requests at position -1, whose results are not written.
        scale: factor of the logits.
        max_context: no context is longer; picks the grid only.
        counters: int32[>= B * Hk] zeros, owned by whoever owns the stream and left as zeros;
            without it, every call makes its own.
        out: where to write the result, contiguous.

    Returns:
        `out`, or else a new [B, Hq, D], contiguous, in the dtype of `q`.
    """
    del max_context, counters
    batch, heads, _ = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for request in range(batch):
        context = int(positions[request]) + 1
        if not context:
            break
        pages = page_table[int(rows[request]), : -(-context // page_size)].long()
        k, v = (cache[pages].flatten(0, 1)[:context].float() for cache in (k_cache, v_cache))
        query = q[request].float().reshape(kv_heads, heads // kv_heads, -1)
        weights = torch.einsum("hgd,nhd->hgn", query, k).mul_(scale).softmax(-1)
        out[request] = torch.einsum("hgn,nhd->hgd", weights, v).reshape(heads, -1).to(q.dtype)
    return out


@triton.jit
def _cut(
    positions, rows, batch, min_blocks, BLOCK_N: tl.constexpr, SCAN: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """This program's piece first..last-1 of the line of blocks, and the request it begins in.

    Returns first, last, blocks per piece, then of the request: index, its first block in the line,
    context and row. If there is no piece left for the program, last <= first.
    """
    index = tl.arange(0, SCAN)
    # Volatile: what was read early must not be taken for what is read later.
    position = tl.load(positions + index, mask=index < batch, other=-1, volatile=EARLY)
    row = tl.load(rows + index, mask=index < batch, other=0, volatile=EARLY)
    blocks = (position + BLOCK_N) // BLOCK_N
    ends = tl.cumsum(blocks, 0)
    total = tl.sum(blocks, 0)
    share = tl.maximum(tl.cdiv(total, tl.num_programs(1)), min_blocks)
    first = tl.program_id(1) * share
    behind = ends <= first
    request = tl.sum(behind.to(tl.int32), 0)
    base = tl.max(tl.where(behind, ends, 0), 0)
    context = tl.sum(tl.where(index == request, position, 0), 0) + 1
    row = tl.sum(tl.where(index == request, row, 0), 0)
    return first, tl.minimum(first + share, total), share, request, base, context, row


@triton.jit
def _fetch_early(
    positions, rows, page_table, k_cache, v_cache, batch, min_blocks, table_rows, table_stride,
    pages, page_stride, token_stride,
    BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, SCAN: tl.constexpr,
    EARLY_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Bring this program's first blocks of KV into the L2 cache while earlier kernels run.

    They may still be writing everything that is read here. So the numbers read are only hints,
    forced into their ranges.
    """
    block, last, _, _, base, context, row = _cut(
        positions, rows, batch, min_blocks, BLOCK_N, SCAN, True
    )
    table = page_table + tl.minimum(tl.maximum(row, 0), table_rows - 1).to(tl.int64) * table_stride
    line = tl.arange(0, (HEAD_DIM + 63) // 64) * 64
    most = tl.minimum(context, table_stride * PAGE_SIZE) - 1
    for index in range(block, tl.minimum(last, block + EARLY_BLOCKS)):
        token = (index - base) * BLOCK_N + tl.arange(0, BLOCK_N)
        token = tl.maximum(tl.minimum(token, most), 0)
        page = tl.load(table + token // PAGE_SIZE, volatile=True)
        page = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)
        at = (page * page_stride + (token % PAGE_SIZE) * token_stride)[:, None] + line[None, :]
        _prefetch(k_cache + at)
        _prefetch(v_cache + at)


@triton.jit
def _prefetch(pointers):
    """Ask for the lines that hold these addresses."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _combine(
    partial, log_sums, out, first, active, head, kv_heads,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Weigh the results of pieces first..first+active-1 for one request and head by their sums.

    The first piece only ends in the request: its result is in its second slot. The others begin
    there: theirs are in their first.
    """
    group = tl.arange(0, GROUP_ROWS)
    dims = tl.arange(0, HEAD_DIM)
    top = tl.full((GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_ROWS,), tl.float32)
    acc = tl.zeros((GROUP_ROWS, HEAD_DIM), tl.float32)
    for begin in range(0, active, ROWS):
        split = begin + tl.arange(0, ROWS)
        inside = (split < active)[:, None] & (group < GROUP)[None, :]
        slot = 2 * (first + split) + (split == 0).to(tl.int32)
        row = (slot * kv_heads + head)[:, None] * GROUP + group[None, :]
        log_sum = tl.load(log_sums + row, mask=inside, other=float("-inf"), cache_modifier=".cg")
        values = tl.load(
            partial + row[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=inside[:, :, None], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        # Rows of padding have no finite sum: a floor keeps inf - inf away.
        new_top = tl.maximum(tl.maximum(top, tl.max(log_sum, 0)), -1e30)
        weight = tl.exp2(log_sum - new_top[None, :])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink[:, None] + tl.sum(values * weight[:, :, None], 0)
        top = new_top
    tl.store(
        out + group[:, None] * HEAD_DIM + dims[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=(group < GROUP)[:, None],
    )


@triton.jit
def _attend(
    q, k_cache, v_cache, table, begin, end, qk_scale, page_stride, token_stride,
    BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Online softmax of M queries over tokens begin..end-1 (begin < end) of one request."""
    dims = tl.arange(0, HEAD_DIM)
    block = tl.arange(0, BLOCK_N)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, HEAD_DIM), tl.float32)
    # Tokens past the end repeat the last one: whatever else lies in the cache is never read.
    token = tl.minimum(begin + block, end - 1).to(tl.uint32)
    page = tl.load(table + token // PAGE_SIZE)
    for start in range(begin, end, BLOCK_N):
        offset = page.to(tl.int64) * page_stride + (token % PAGE_SIZE).to(tl.int64) * token_stride
        within = offset[:, None] + dims[None, :]
        k = tl.load(k_cache + within)
        v = tl.load(v_cache + within)
        # The next pages are looked up one iteration early, so that loads do not wait for them.
        token = tl.minimum(start + BLOCK_N + block, end - 1).to(tl.uint32)
        page = tl.load(table + token // PAGE_SIZE)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
        logits = tl.where((start + block < end)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(logits - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return top, total, acc


@kernel(do_not_specialize=["batch", "min_blocks", "table_rows", "table_stride", "pages"])
def _decode_attention_kernel(
    q, k_cache, v_cache, page_table, rows, positions, out, partial, log_sums, counters,
    batch, min_blocks, qk_scale, table_rows, table_stride, pages, q_stride, page_stride,
    token_stride,
    GROUP: tl.constexpr, M: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, SCAN: tl.constexpr, GROUP_ROWS: tl.constexpr,
    COMBINE_ROWS: tl.constexpr, EARLY_BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head, piece = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(0)
    k_cache += head * HEAD_DIM
    v_cache += head * HEAD_DIM
    launch_dependents(PDL)
    if PDL and EARLY_BLOCKS > 0:
        _fetch_early(
            positions, rows, page_table, k_cache, v_cache, batch, min_blocks, table_rows,
            table_stride, pages, page_stride, token_stride, BLOCK_N, PAGE_SIZE, HEAD_DIM, SCAN,
            EARLY_BLOCKS,
        )  # fmt: skip
    wait(PDL)
    block, last, share, request, base, context, row = _cut(
        positions, rows, batch, min_blocks, BLOCK_N, SCAN, False
    )
    group = tl.arange(0, M)
    within = group[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    real = (group < GROUP)[:, None]
    q += head * (GROUP * HEAD_DIM)
    while block < last:
        queries = tl.load(q + request.to(tl.int64) * q_stride + within, mask=real, other=0.0)
        begin = (block - base) * BLOCK_N
        end = tl.minimum((last - base) * BLOCK_N, context)
        top, total, acc = _attend(
            queries, k_cache, v_cache, page_table + row.to(tl.int64) * table_stride, begin, end,
            qk_scale, page_stride, token_stride, BLOCK_N, PAGE_SIZE, HEAD_DIM, M,
        )  # fmt: skip
        acc = acc / total[:, None]
        pair = (request * kv_heads + head).to(tl.int64)
        to = out + pair * (GROUP * HEAD_DIM)
        first = base // share
        after = base + tl.cdiv(context, BLOCK_N)
        active = (after - 1) // share - first + 1
        if active == 1:
            tl.store(to + within, acc.to(out.dtype.element_ty), mask=real)
        else:
            slot = ((2 * piece + (piece == first).to(tl.int32)) * kv_heads + head) * GROUP
            tl.store(log_sums + slot + group, top + tl.log2(total), mask=group < GROUP)
            tl.store(partial + slot.to(tl.int64) * HEAD_DIM + within, acc, mask=real)
            # Every thread's stores come before the one release; the winner acquires all of them.
            tl.debug_barrier()
            if tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu") == active - 1:
                tl.debug_barrier()
                tl.store(counters + pair, 0)
                _combine(
                    partial, log_sums, to, first, active, head, kv_heads, GROUP, GROUP_ROWS,
                    HEAD_DIM, COMBINE_ROWS,
                )  # fmt: skip
        base = after
        block = after
        request += 1
        if block < last:
            context = tl.load(positions + request) + 1
            row = tl.load(rows + request)


@cache
def _multiprocessors(device_index: int) -> int:
    return torch.cuda.get_device_properties(device_index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """SMs of a GPU; the interpreter, which runs one program at a time, counts as one."""
    if INTERPRETED or device.type != "cuda":
        return 1
    return _multiprocessors(device.index if device.index is not None else 0)


def scan_size(batch: int) -> int:
    """How many requests a program looks at, so that it finds its own."""
    for size in SCAN_SIZES:
        if size >= batch:
            return size
    raise ValueError(f"a batch of {batch} requests; at most {SCAN_SIZES[-1]} are supported")


def launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    *,
    pieces: int,
    tuning: DecodeTuning,
    counters: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the kernel with a grid of `pieces` for each KV head."""
    batch, heads, head_dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    if k_cache.stride() != v_cache.stride() or k_cache.stride()[2:] != (head_dim, 1):
        raise ValueError("entries of a token in the KV caches must be contiguous, and both alike")
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError("the heads of a query must be contiguous")
    if out is None:
        out = torch.empty(batch, heads, head_dim, dtype=q.dtype, device=q.device)
    if counters is None:
        counters = torch.zeros(batch * kv_heads, dtype=torch.int32, device=q.device)
    partial = torch.empty(pieces * 2 * heads * head_dim, dtype=torch.float32, device=q.device)
    log_sums = torch.empty(pieces * 2 * heads, dtype=torch.float32, device=q.device)
    group_rows = triton.next_power_of_2(group)
    _decode_attention_kernel[(kv_heads, pieces)](
        q, k_cache, v_cache, page_table, rows, positions, out, partial, log_sums, counters,
        batch, triton.cdiv(tuning.min_chunk, tuning.block_tokens), scale * LOG2_E,
        len(page_table), page_table.stride(0), len(k_cache), q.stride(0), k_cache.stride(0),
        k_cache.stride(1), GROUP=group, M=max(16, group_rows), HEAD_DIM=head_dim,
        PAGE_SIZE=page_size, BLOCK_N=tuning.block_tokens,
        SCAN=scan_size(batch), GROUP_ROWS=group_rows,
        COMBINE_ROWS=max(1, min(16, COMBINE_ELEMENTS // (group_rows * head_dim))),
        EARLY_BLOCKS=tuning.early_tokens // tuning.block_tokens,
        num_warps=tuning.warps, num_stages=tuning.stages, **launch_options(q.device),
    )  # fmt: skip
    return out


def decode_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    max_context: int,
    counters: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `decode_attention_reference`, in one kernel (and one that makes zeros, if need be)."""
    kv_heads = k_cache.shape[2]
    tuning = pick_tuning(len(q), kv_heads, q.shape[1] // kv_heads)
    pieces = max(1, tuning.programs_per_sm * multiprocessors(q.device) // kv_heads)
    pieces = min(pieces, len(q) * triton.cdiv(max_context, tuning.block_tokens))
    return launch(
        q, k_cache, v_cache, page_table, rows, positions, scale, pieces=pieces, tuning=tuning,
        counters=counters, out=out,
    )  # fmt: skip


IMPLEMENTATIONS = {"torch": decode_attention_reference, "triton": decode_attention_triton}
