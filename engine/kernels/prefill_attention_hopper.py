"""Prefill attention over pages on Hopper: bulk copies of pages, asynchronous matrix products.

It computes what `prefill_attention` does, in the schedule of FlashAttention-3 (Shah et al.,
arXiv 2407.08608): one warp keeps buffers of keys and values full by the tensor memory accelerator,
a box per page and half a head, so that nobody computes addresses of tokens; two warp groups of 64
queries each consume them, each at its own pace, and while its tensor cores multiply the weights of
one block by its values, the softmax of the next block runs.

Written in Gluon, Triton's language of explicit layouts, because pages of 16 tokens have to be put
together in shared memory to operands of 128, which Triton's own language cannot express.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from engine.kernels.launching import kernel

HEAD_DIM = 128
HALF = gl.constexpr(64)  # 16-bit numbers that the widest swizzle covers
BLOCK_QUERIES = 128
BLOCK_TOKENS = 128
STAGES = 2
PAGE_SIZES = (16, 32, 64, 128)  # a box has at least the 8 rows of a swizzle, a block whole boxes
LOG2_E = math.log2(math.e)
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # Triton 3.6's name


@gluon.jit
def _load_block(
    descriptor, table, block, last_page, column, arrived, low, high,
    PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """Start the copies of a block's pages; pages past the last repeat it."""
    PAGES: gl.constexpr = BLOCK_N // PAGE_SIZE
    mbarrier.expect(arrived, 2 * BLOCK_N * HALF * 2)
    for i in gl.static_range(PAGES):
        row = gl.load(table + gl.minimum(block * PAGES + i, last_page)) * PAGE_SIZE
        tma.async_copy_global_to_shared(
            descriptor, [row, column], arrived, low.slice(i * PAGE_SIZE, PAGE_SIZE)
        )
        tma.async_copy_global_to_shared(
            descriptor, [row, column + HALF], arrived, high.slice(i * PAGE_SIZE, PAGE_SIZE)
        )


@gluon.jit
def _produce(
    k_pages, v_pages, table, blocks, last_page, column, k_low, k_high, v_low, v_high,
    k_arrived, v_arrived, k_free, v_free,
    PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that keeps the buffers of keys and values full."""
    for block in range(blocks):
        stage = block % STAGES
        # The first round of buffers is free: the phase before the first counts as over.
        turn = block // STAGES % 2 ^ 1
        mbarrier.wait(k_free.index(stage), turn)
        _load_block(
            k_pages, table, block, last_page, column, k_arrived.index(stage), k_low.index(stage),
            k_high.index(stage), PAGE_SIZE, BLOCK_N,
        )  # fmt: skip
        mbarrier.wait(v_free.index(stage), turn)
        _load_block(
            v_pages, table, block, last_page, column, v_arrived.index(stage), v_low.index(stage),
            v_high.index(stage), PAGE_SIZE, BLOCK_N,
        )  # fmt: skip


@gluon.jit
def _without_rest(buffer, rest, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """Zero the rows of a block of values from `rest` on: what else lies in a page may be NaN."""
    token = gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
    values = buffer.load(layout)
    buffer.store(gl.where((token < rest)[:, None], values, gl.zeros_like(values)))


@gluon.jit
def _softmax(logits, top, total, qk_scale):
    """One step of the online softmax: weights, and what earlier results shrink by."""
    new_top = gl.maximum(top, gl.max(logits, 1) * qk_scale)
    weights = gl.exp2(logits * qk_scale - new_top[:, None])
    shrink = gl.exp2(top - new_top)
    return weights, new_top, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _consume(
    q, out, blocks, end, context, begin, length, start, head, qk_scale, q_stride,
    q_low, q_high, k_low, k_high, v_low, v_high, v_mine, k_arrived, v_arrived, k_free, v_free,
    cleared,
    HEADS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A warp group attends from BLOCK_M queries from `begin` on.

    It clears the rest of the last block in `v_mine`, and another one that in the other half.
    """
    DIM: gl.constexpr = 2 * HALF
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    logits_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    dtype: gl.constexpr = q.dtype.element_ty

    q_row = begin + gl.arange(0, BLOCK_M, gl.SliceLayout(1, wide))
    at = (
        q + (start + q_row).to(gl.int64)[:, None] * q_stride + head * DIM
        + gl.arange(0, HALF, gl.SliceLayout(0, wide))[None, :]
    )  # fmt: skip
    inside = (q_row < length)[:, None]
    q_low.store(gl.load(at, mask=inside, other=0.0))
    q_high.store(gl.load(at + HALF, mask=inside, other=0.0))
    fence_async_shared()
    barrier()

    seen = context + begin + gl.arange(0, BLOCK_M, gl.SliceLayout(1, logits_layout))
    token = gl.arange(0, BLOCK_N, gl.SliceLayout(0, logits_layout))
    diagonal = (context + begin + 1) // BLOCK_N  # every query sees all blocks before it
    zeros = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, logits_layout)
    acc_low = gl.zeros([BLOCK_M, HALF], gl.float32, acc_layout)
    acc_high = gl.zeros([BLOCK_M, HALF], gl.float32, acc_layout)
    top = gl.full([BLOCK_M], float("-inf"), gl.float32, gl.SliceLayout(1, logits_layout))
    total = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, logits_layout))

    mbarrier.wait(k_arrived.index(0), 0)
    logits = warpgroup_mma(
        q_low, k_low.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True
    )
    logits = warpgroup_mma(q_high, k_high.index(0).permute((1, 0)), logits, is_async=True)
    logits = warpgroup_mma_wait(0, [logits])
    barrier()
    mbarrier.arrive(k_free.index(0), count=1)
    if diagonal == 0:
        logits = gl.where(token[None, :] <= seen[:, None], logits, float("-inf"))
    weights, top, total, shrink = _softmax(logits, top, total, qk_scale)
    weights = gl.convert_layout(weights.to(dtype), weights_layout)
    for block in range(1, blocks):
        stage = block % STAGES
        before = (block - 1) % STAGES
        mbarrier.wait(k_arrived.index(stage), block // STAGES % 2)
        logits = warpgroup_mma(
            q_low, k_low.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        logits = warpgroup_mma(q_high, k_high.index(stage).permute((1, 0)), logits, is_async=True)
        mbarrier.wait(v_arrived.index(before), (block - 1) // STAGES % 2)
        acc_low = warpgroup_mma(weights, v_low.index(before), acc_low, is_async=True)
        acc_high = warpgroup_mma(weights, v_high.index(before), acc_high, is_async=True)
        logits = warpgroup_mma_wait(2, [logits])
        barrier()
        mbarrier.arrive(k_free.index(stage), count=1)
        if block >= diagonal:
            logits = gl.where(
                (block * BLOCK_N + token)[None, :] <= seen[:, None], logits, float("-inf")
            )
        next_weights, top, total, shrink = _softmax(logits, top, total, qk_scale)
        acc_low, acc_high, weights = warpgroup_mma_wait(0, [acc_low, acc_high, weights])
        barrier()
        mbarrier.arrive(v_free.index(before), count=1)
        kept = gl.convert_layout(shrink, gl.SliceLayout(1, acc_layout))[:, None]
        acc_low *= kept
        acc_high *= kept
        weights = gl.convert_layout(next_weights.to(dtype), weights_layout)

    last = blocks - 1
    stage = last % STAGES
    mbarrier.wait(v_arrived.index(stage), last // STAGES % 2)
    if end % BLOCK_N != 0:
        _without_rest(v_mine.index(stage), end - last * BLOCK_N, BLOCK_N, wide)
        fence_async_shared()
        barrier()
        mbarrier.arrive(cleared.index(0), count=1)
        mbarrier.wait(cleared.index(0), 0)
    acc_low = warpgroup_mma(weights, v_low.index(stage), acc_low, is_async=True)
    acc_high = warpgroup_mma(weights, v_high.index(stage), acc_high, is_async=True)
    acc_low, acc_high = warpgroup_mma_wait(0, [acc_low, acc_high])

    factor = gl.convert_layout(1.0 / total, gl.SliceLayout(1, acc_layout))[:, None]
    out_row = begin + gl.arange(0, BLOCK_M, gl.SliceLayout(1, acc_layout))
    to = (
        out + (start + out_row).to(gl.int64)[:, None] * (HEADS * DIM) + head * DIM
        + gl.arange(0, HALF, gl.SliceLayout(0, acc_layout))[None, :]
    )  # fmt: skip
    inside = (out_row < length)[:, None]
    gl.store(to, (acc_low * factor).to(dtype), mask=inside)
    gl.store(to + HALF, (acc_high * factor).to(dtype), mask=inside)


@kernel(jit=gluon.jit, do_not_specialize=["requests", "table_stride"])
def _prefill_attention_hopper_kernel(
    q, k_pages, v_pages, page_table, starts, rows, contexts, out,
    requests, qk_scale, table_stride, q_stride,
    HEADS: gl.constexpr, GROUP: gl.constexpr, PAGE_SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    swizzled: gl.constexpr = k_pages.layout
    dtype: gl.constexpr = q.dtype.element_ty
    HALF_M: gl.constexpr = BLOCK_M // 2

    head = gl.program_id(0)
    # The last tiles of a request have the most work: they start first.
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    request = -1
    for first in range(0, requests, 128):
        index = first + gl.arange(0, 128, flat)
        start_of = gl.load(starts + index, mask=index < requests, other=0)
        begun = (start_of // BLOCK_M + index <= tile) & (index < requests)
        request += gl.sum(begun.to(gl.int32), 0)
    request = gl.maximum(request, 0)  # tiles before the first request are nobody's
    start = gl.load(starts + request)
    length = gl.load(starts + request + 1) - start
    context = gl.load(contexts + request)
    begin = (tile - request - start // BLOCK_M) * BLOCK_M
    if (begin < 0) | (begin >= length):
        return
    table = page_table + gl.load(rows + request).to(gl.int64) * table_stride
    end = context + gl.minimum(begin + BLOCK_M, length)
    blocks = gl.cdiv(end, BLOCK_N)

    q_low = gl.allocate_shared_memory(dtype, [2, HALF_M, HALF], swizzled)
    q_high = gl.allocate_shared_memory(dtype, [2, HALF_M, HALF], swizzled)
    k_low = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HALF], swizzled)
    k_high = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HALF], swizzled)
    v_low = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HALF], swizzled)
    v_high = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HALF], swizzled)
    k_arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    cleared = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(cleared.index(0), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_arrived.index(i), count=1)
        mbarrier.init(v_arrived.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)
        mbarrier.init(v_free.index(i), count=2)
    barrier()
    gl.warp_specialize(
        [
            (_consume, (
                q, out, blocks, end, context, begin, length, start, head, qk_scale, q_stride,
                q_low.index(0), q_high.index(0), k_low, k_high, v_low, v_high, v_low, k_arrived,
                v_arrived, k_free, v_free, cleared, HEADS, HALF_M, BLOCK_N, STAGES,
            )),
            (_consume, (
                q, out, blocks, end, context, begin + HALF_M, length, start, head, qk_scale,
                q_stride, q_low.index(1), q_high.index(1), k_low, k_high, v_low, v_high, v_high,
                k_arrived, v_arrived, k_free, v_free, cleared, HEADS, HALF_M, BLOCK_N, STAGES,
            )),
            (_produce, (
                k_pages, v_pages, table, blocks, (end - 1) // PAGE_SIZE, head // GROUP * 2 * HALF,
                k_low, k_high, v_low, v_high, k_arrived, v_arrived, k_free, v_free,
                PAGE_SIZE, BLOCK_N, STAGES,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


@cache
def _is_hopper(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index)[0] == 9


def takes_hopper(q: torch.Tensor, k_cache: torch.Tensor) -> bool:
    """Whether the kernel can run: Hopper, 16-bit heads of 128, contiguous caches, large pages."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = q.shape[2] == HEAD_DIM and k_cache.shape[1] in PAGE_SIZES and k_cache.is_contiguous()
    index = q.device.index if q.device.index is not None else torch.cuda.current_device()
    return fits and _is_hopper(index)


def launch_hopper(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    starts: torch.Tensor,
    rows: torch.Tensor,
    contexts: torch.Tensor,
    scale: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the kernel; the arguments are those of `prefill_attention_reference`."""
    tokens, heads, head_dim = q.shape
    pages, page_size, kv_heads, _ = k_cache.shape
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError("the heads of a query must be contiguous")
    if out is None:
        out = torch.empty(tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    box = [page_size, HALF.value]
    bits = gl.bfloat16 if q.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(box, bits)
    k_pages, v_pages = (
        TensorDescriptor.from_tensor(c.view(pages * page_size, kv_heads * head_dim), box, layout)
        for c in (k_cache, v_cache)
    )
    tiles = tokens // BLOCK_QUERIES + len(rows)
    _prefill_attention_hopper_kernel[(heads, tiles)](
        q, k_pages, v_pages, page_table, starts, rows, contexts, out, len(rows), scale * LOG2_E,
        page_table.stride(0), q.stride(0), HEADS=heads, GROUP=heads // kv_heads,
        PAGE_SIZE=page_size, BLOCK_M=BLOCK_QUERIES, BLOCK_N=BLOCK_TOKENS, STAGES=STAGES,
        num_warps=4,
    )  # fmt: skip
    return out
