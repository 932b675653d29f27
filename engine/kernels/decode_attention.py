"""Attention of one new token per request over its paged KV cache.

Flash decoding (Dao et al., "Flash-Decoding for long-context inference", 2023): the context of a
request is cut into splits that run in parallel, each keeps an online softmax (Milakov and
Gimelshein, arXiv 1805.02867), and the partial results are combined by their log-sum-exp. The query
heads that share a KV head are the rows of one matrix product, so the cache is read once.

The grid depends on shapes alone; how many of its splits have work is decided on the device, from
the lengths of all requests: one CUDA Graph serves every context, and no long request lags behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from engine.kernels.pdl import INTERPRETED, launch_dependents, launch_options, wait

COMBINE_ELEMENTS = 8192  # fp32 values of partial results that a program holds at a time
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How the kernel is cut and how many programs it aims at.

    Attributes:
        block_tokens: KV tokens of one loop iteration.
        warps: warps of a program.
        stages: depth of the software pipeline.
        min_chunk: a split has at least so many tokens of context.
        programs_per_sm: programs with work that a launch aims at, per multiprocessor.
        long_context: from this bound of the context on, even a batch that fills the GPU gets
            `long_splits` splits, which only its longest requests will use.
        long_splits: see `long_context`.
    """

    block_tokens: int = 64
    warps: int = 4
    stages: int = 3
    min_chunk: int = 64
    programs_per_sm: int = 3
    long_context: int = 4096
    long_splits: int = 4


DEFAULT_TUNING = DecodeTuning()
MAX_SPLITS = 64


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
) -> torch.Tensor:
    """Attend from one token per request to all of its context, the token itself included.

    Args:
        q: [B, Hq, D] queries; rows may be strided, heads are contiguous.
        k_cache: [pages, page_size, Hk, D]; Hk divides Hq. The token's own entry is there.
        v_cache: as `k_cache`.
        page_table: int32[R, max_pages]; token x of row r: page `page_table[r, x // page_size]`.
        rows: int32[B], the row of each request.
        positions: int32[B], the index of its token; `positions + 1` tokens are attended.
        scale: factor of the logits.
        max_context: no context is longer; picks the grid only.
        counters: int32[>= B * Hk] zeros, owned by whoever owns the stream and left as zeros. With
            it the last split of a head combines the partial results, without it a second kernel.

    Returns:
        [B, Hq, D], contiguous, in the dtype of `q`.
    """
    del max_context, counters
    batch, heads, _ = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for request in range(batch):
        context = int(positions[request]) + 1
        pages = page_table[int(rows[request]), : -(-context // page_size)].long()
        k, v = (cache[pages].flatten(0, 1)[:context].float() for cache in (k_cache, v_cache))
        query = q[request].float().reshape(kv_heads, heads // kv_heads, -1)
        weights = torch.einsum("hgd,nhd->hgn", query, k).mul_(scale).softmax(-1)
        out[request] = torch.einsum("hgn,nhd->hgd", weights, v).reshape(heads, -1).to(q.dtype)
    return out


@triton.jit
def _chunk_tokens(
    positions, batch, kv_heads, target, min_chunk, context, splits, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Tokens per split of one request: equal work for `target` programs over all requests."""
    total = batch
    for first in range(0, batch, 128):
        index = first + tl.arange(0, 128)
        total += tl.sum(tl.load(positions + index, mask=index < batch, other=0))
    fair = tl.maximum(tl.cdiv(total * kv_heads, target), min_chunk)
    deserved = tl.minimum(tl.cdiv(context, fair), splits)
    return tl.cdiv(tl.cdiv(context, deserved), BLOCK_N) * BLOCK_N


@triton.jit
def _combine(
    partial, log_sums, out, active,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Weigh the results of `active` splits by their sums; pointers are those of one KV head."""
    group = tl.arange(0, GROUP_ROWS)
    dims = tl.arange(0, HEAD_DIM)
    top = tl.full((GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_ROWS,), tl.float32)
    acc = tl.zeros((GROUP_ROWS, HEAD_DIM), tl.float32)
    for first in range(0, active, ROWS):
        split = first + tl.arange(0, ROWS)
        inside = (split < active)[:, None] & (group < GROUP)[None, :]
        row = split[:, None] * GROUP + group[None, :]
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
        k = tl.load(k_cache + offset[None, :] + dims[:, None])
        v = tl.load(v_cache + offset[:, None] + dims[None, :])
        # The next pages are looked up one iteration early, so that loads do not wait for them.
        token = tl.minimum(start + BLOCK_N + block, end - 1).to(tl.uint32)
        page = tl.load(table + token // PAGE_SIZE)
        logits = tl.dot(q, k, input_precision="ieee") * qk_scale
        logits = tl.where((start + block < end)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(logits - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return top, total, acc


@triton.jit(do_not_specialize=["batch", "target", "min_chunk", "table_stride"])
def _decode_attention_kernel(
    q, k_cache, v_cache, page_table, rows, positions, out, partial, log_sums, counters,
    batch, target, min_chunk, qk_scale, table_stride, q_stride, page_stride, token_stride,
    GROUP: tl.constexpr, M: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    GROUP_ROWS: tl.constexpr, COMBINE_ROWS: tl.constexpr, LAST_COMBINES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    kv_head, request, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(0), tl.num_programs(2)
    group = tl.arange(0, M)
    dims = tl.arange(0, HEAD_DIM)
    launch_dependents(PDL)
    wait(PDL)
    context = tl.load(positions + request) + 1
    row = tl.load(rows + request).to(tl.int64)
    queries = tl.load(
        q + request.to(tl.int64) * q_stride
        + (kv_head * GROUP + group)[:, None] * HEAD_DIM + dims[None, :],
        mask=(group < GROUP)[:, None], other=0.0,
    )  # fmt: skip
    begin, end, active = 0, context, 1
    if SPLIT:
        chunk = _chunk_tokens(
            positions, batch, kv_heads, target, min_chunk, context, splits, BLOCK_N
        )
        active = tl.cdiv(context, chunk)
        begin = split * chunk
        end = tl.minimum(begin + chunk, context)
        if begin >= context:
            return
    head_offset = kv_head.to(tl.int64) * HEAD_DIM
    top, total, acc = _attend(
        queries, k_cache + head_offset, v_cache + head_offset, page_table + row * table_stride,
        begin, end, qk_scale, page_stride, token_stride, BLOCK_N, PAGE_SIZE, HEAD_DIM, M,
    )  # fmt: skip
    acc = acc / total[:, None]
    pair = (request * kv_heads + kv_head).to(tl.int64)
    out += pair * GROUP * HEAD_DIM
    within = group[:, None] * HEAD_DIM + dims[None, :]
    if active == 1:
        tl.store(out + within, acc.to(out.dtype.element_ty), mask=(group < GROUP)[:, None])
    else:
        log_sums += pair * splits * GROUP
        partial += pair * splits * GROUP * HEAD_DIM
        tl.store(log_sums + split * GROUP + group, top + tl.log2(total), mask=group < GROUP)
        tl.store(partial + split * GROUP * HEAD_DIM + within, acc, mask=(group < GROUP)[:, None])
        if LAST_COMBINES:
            # Every thread's stores come before the one release; the winner acquires all of them.
            tl.debug_barrier()
            if tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu") == active - 1:
                tl.debug_barrier()
                tl.store(counters + pair, 0)
                _combine(partial, log_sums, out, active, GROUP, GROUP_ROWS, HEAD_DIM, COMBINE_ROWS)


@triton.jit(do_not_specialize=["batch", "target", "min_chunk", "splits"])
def _combine_kernel(
    positions, out, partial, log_sums, batch, target, min_chunk, splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr, COMBINE_ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    kv_head, request = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(0)
    launch_dependents(PDL)
    wait(PDL)
    context = tl.load(positions + request) + 1
    chunk = _chunk_tokens(positions, batch, kv_heads, target, min_chunk, context, splits, BLOCK_N)
    active = tl.cdiv(context, chunk)
    if active > 1:
        pair = (request * kv_heads + kv_head).to(tl.int64) * GROUP
        _combine(
            partial + pair * splits * HEAD_DIM, log_sums + pair * splits, out + pair * HEAD_DIM,
            active, GROUP, GROUP_ROWS, HEAD_DIM, COMBINE_ROWS,
        )  # fmt: skip


@cache
def _multiprocessors(device_index: int) -> int:
    return torch.cuda.get_device_properties(device_index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """SMs of a GPU; the interpreter, which runs one program at a time, counts as one."""
    if INTERPRETED or device.type != "cuda":
        return 1
    return _multiprocessors(device.index if device.index is not None else 0)


def split_grid(batch: int, kv_heads: int, max_context: int, sms: int, tuning: DecodeTuning) -> int:
    """The number of splits in the grid: an upper bound, of which the device uses what it needs."""
    fit = max(1, min(MAX_SPLITS, max_context // tuning.min_chunk))
    if batch * kv_heads >= 2 * sms:
        return min(fit, tuning.long_splits) if max_context >= tuning.long_context else 1
    # Twice the fair share, because a long request among short ones deserves more than they do.
    return min(fit, triton.cdiv(2 * tuning.programs_per_sm * sms, batch * kv_heads))


def launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    *,
    splits: int,
    target: int,
    tuning: DecodeTuning,
    counters: torch.Tensor | None,
) -> torch.Tensor:
    """Run the kernel with `splits` in the grid and `target` programs with work in mind."""
    batch, heads, head_dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    if k_cache.stride() != v_cache.stride() or k_cache.stride()[2:] != (head_dim, 1):
        raise ValueError("entries of a token in the KV caches must be contiguous, and both alike")
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError("the heads of a query must be contiguous")
    out = torch.empty(batch, heads, head_dim, dtype=q.dtype, device=q.device)
    options = launch_options(q.device)
    shape = dict(GROUP=group, HEAD_DIM=head_dim, BLOCK_N=tuning.block_tokens, **options)
    partial, log_sums = out, out
    if splits > 1:
        count = batch * heads * splits
        space = torch.empty(count * (head_dim + 1), dtype=torch.float32, device=q.device)
        partial, log_sums = space[: count * head_dim], space[count * head_dim :]
        group_rows = triton.next_power_of_2(group)
        shape |= dict(
            GROUP_ROWS=group_rows,
            COMBINE_ROWS=max(1, min(16, COMBINE_ELEMENTS // (group_rows * head_dim))),
        )  # fmt: skip
    else:
        shape |= dict(GROUP_ROWS=1, COMBINE_ROWS=1)
    last_combines = splits > 1 and counters is not None
    _decode_attention_kernel[(kv_heads, batch, splits)](
        q, k_cache, v_cache, page_table, rows, positions, out, partial, log_sums,
        counters if last_combines else out, batch, target, tuning.min_chunk, scale * LOG2_E,
        page_table.stride(0), q.stride(0), k_cache.stride(0), k_cache.stride(1),
        M=max(16, triton.next_power_of_2(group)), PAGE_SIZE=page_size, SPLIT=splits > 1,
        LAST_COMBINES=last_combines, num_warps=tuning.warps, num_stages=tuning.stages, **shape,
    )  # fmt: skip
    if splits > 1 and not last_combines:
        _combine_kernel[(kv_heads, batch)](
            positions,
            out,
            partial,
            log_sums,
            batch,
            target,
            tuning.min_chunk,
            splits,
            num_warps=4,
            **shape,
        )
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
) -> torch.Tensor:
    """As `decode_attention_reference`, in one kernel, or two if splits lack `counters`."""
    sms = multiprocessors(q.device)
    tuning = DEFAULT_TUNING
    return launch(
        q, k_cache, v_cache, page_table, rows, positions, scale,
        splits=split_grid(len(q), k_cache.shape[2], max_context, sms, tuning),
        target=tuning.programs_per_sm * sms, tuning=tuning, counters=counters,
    )  # fmt: skip


IMPLEMENTATIONS = {"torch": decode_attention_reference, "triton": decode_attention_triton}
