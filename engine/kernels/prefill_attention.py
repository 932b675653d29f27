"""Attention of chunks of prompts over their paged KV caches, which already hold the chunks.

FlashAttention-2 (Dao, arXiv 2307.08691): a program owns a tile of queries of one head, walks over
the KV with an online softmax and skips what causality hides; blocks that every query of the tile
sees are not masked. Tiles of all requests lie in one flat grid that depends on the number of tokens
and requests alone: request p gets the tiles from `starts[p] // BLOCK_M + p` on, which leaves it at
least as many as it needs.

This kernel runs everywhere; where `prefill_attention_hopper` can run, that one does: it computes
the same for one and a half times as many operations per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait
from engine.kernels.prefill_attention_hopper import launch_hopper, takes_hopper

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """How the kernel is cut: queries of a tile, KV tokens of a step, warps, pipeline depth."""

    block_queries: int = 128
    block_tokens: int = 64
    warps: int = 8
    stages: int = 3


DEFAULT_TUNING = PrefillTuning()


def prefill_attention_reference(
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
    """Attend causally from the tokens of each chunk to all tokens before them and to themselves.

    Args:
        q: [T, Hq, D] queries; rows may be strided, heads are contiguous.
        k_cache: [pages, page_size, Hk, D]; Hk divides Hq. The chunks' entries are there.
        v_cache: as `k_cache`.
        page_table: int32[R, max_pages]; token x of row r: page `page_table[r, x // page_size]`.
        starts: int32[P + 1]; request p has the queries `starts[p] : starts[p + 1]`, of which there
            may be none.
        rows: int32[P], the row of each request.
        contexts: int32[P], its tokens before the chunk; its query i attends `contexts[p] + i + 1`.
        scale: factor of the logits.
        out: where to write the result, contiguous.

    Returns:
        `out`, or else a new [T, Hq, D], contiguous, in the dtype of `q`. For queries of no request
        nothing is written.
    """
    heads = q.shape[1]
    page_size, kv_heads = k_cache.shape[1:3]
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    edges = starts.tolist()
    for row, context, first, last in zip(
        rows.tolist(), contexts.tolist(), edges[:-1], edges[1:], strict=True
    ):
        end = context + last - first
        pages = page_table[row, : -(-end // page_size)].long()
        keys, values = (cache[pages].flatten(0, 1)[:end].float() for cache in (k_cache, v_cache))
        query = q[first:last].float().unflatten(1, (kv_heads, heads // kv_heads))
        logits = torch.einsum("qhgd,nhd->hgqn", query, keys).mul_(scale)
        index = torch.arange(end, device=q.device)
        hidden = index[None, :] > index[context:, None]
        weights = logits.masked_fill_(hidden, -math.inf).softmax(-1)
        out[first:last] = torch.einsum("hgqn,nhd->qhgd", weights, values).flatten(1, 2).to(q.dtype)
    return out


@triton.jit
def _find_request(starts, requests, tile, BLOCK_M: tl.constexpr):
    """The request of a tile of the flat grid: the last one whose first tile is not behind it."""
    request = -1
    for first in range(0, requests, 64):
        index = first + tl.arange(0, 64)
        start = tl.load(starts + index, mask=index < requests, other=0)
        begun = (start // BLOCK_M + index <= tile) & (index < requests)
        request += tl.sum(begun.to(tl.int32))
    return request


@triton.jit
def _attend(
    queries, k_cache, v_cache, table, first, last, end, seen, token, page, top, total, acc,
    qk_scale, page_stride, token_stride,
    MASKED: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Online softmax over the blocks in first..last-1; query i sees the tokens up to `seen[i]`."""
    dims = tl.arange(0, HEAD_DIM)
    block = tl.arange(0, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        offset = page.to(tl.int64) * page_stride + (token % PAGE_SIZE).to(tl.int64) * token_stride
        within = offset[:, None] + dims[None, :]
        k = tl.load(k_cache + within)
        v = tl.load(v_cache + within)
        # The next pages are looked up one iteration early, so that loads do not wait for them.
        token = tl.minimum(start + BLOCK_N + block, end - 1).to(tl.uint32)
        page = tl.load(table + token // PAGE_SIZE)
        logits = tl.dot(queries, tl.trans(k), input_precision="ieee")
        if MASKED:
            logits = tl.where((start + block)[None, :] <= seen[:, None], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1) * qk_scale)
        weights = tl.exp2(logits * qk_scale - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return token, page, top, total, acc


@kernel(do_not_specialize=["requests", "table_stride"])
def _prefill_attention_kernel(
    q, k_cache, v_cache, page_table, starts, rows, contexts, out,
    requests, qk_scale, table_stride, q_stride, page_stride, token_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    # The last tiles of a request have the most work: they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    launch_dependents(PDL)
    wait(PDL)
    # Tiles before the first request are nobody's.
    request = tl.maximum(_find_request(starts, requests, tile, BLOCK_M), 0)
    start = tl.load(starts + request)
    length = tl.load(starts + request + 1) - start
    context = tl.load(contexts + request)
    row = tl.load(rows + request).to(tl.int64)
    begin = (tile - request - start // BLOCK_M) * BLOCK_M
    if (begin < 0) | (begin >= length):
        return
    dims = tl.arange(0, HEAD_DIM)
    query = begin + tl.arange(0, BLOCK_M)
    inside = (query < length)[:, None]
    q_row = (start + query).to(tl.int64)[:, None]
    queries = tl.load(
        q + q_row * q_stride + head * HEAD_DIM + dims[None, :], mask=inside, other=0.0
    )
    table = page_table + row * table_stride
    head_offset = (head // GROUP).to(tl.int64) * HEAD_DIM
    k_cache += head_offset
    v_cache += head_offset
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    # Every query of the tile sees the blocks before `diagonal`.
    diagonal = (context + begin + 1) // BLOCK_N * BLOCK_N
    end = context + tl.minimum(begin + BLOCK_M, length)
    # Tokens past the end repeat the last one: whatever else lies in the cache is never read.
    token = tl.minimum(tl.arange(0, BLOCK_N), end - 1).to(tl.uint32)
    page = tl.load(table + token // PAGE_SIZE)
    token, page, top, total, acc = _attend(
        queries, k_cache, v_cache, table, 0, diagonal, end, query, token, page, top, total, acc,
        qk_scale, page_stride, token_stride, False, BLOCK_N, PAGE_SIZE, HEAD_DIM,
    )  # fmt: skip
    token, page, top, total, acc = _attend(
        queries, k_cache, v_cache, table, diagonal, end, end, context + query, token, page, top,
        total, acc, qk_scale, page_stride, token_stride, True, BLOCK_N, PAGE_SIZE, HEAD_DIM,
    )  # fmt: skip
    acc = acc / total[:, None]
    at = out + q_row * (HEADS * HEAD_DIM) + head * HEAD_DIM + dims[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


def launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    starts: torch.Tensor,
    rows: torch.Tensor,
    contexts: torch.Tensor,
    scale: float,
    *,
    tuning: PrefillTuning,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the kernel; the arguments are those of `prefill_attention_reference`."""
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    if k_cache.stride() != v_cache.stride() or k_cache.stride()[2:] != (head_dim, 1):
        raise ValueError("entries of a token in the KV caches must be contiguous, and both alike")
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError("the heads of a query must be contiguous")
    if out is None:
        out = torch.empty(tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    tiles = tokens // tuning.block_queries + len(rows)
    _prefill_attention_kernel[(heads, tiles)](
        q, k_cache, v_cache, page_table, starts, rows, contexts, out,
        len(rows), scale * LOG2_E, page_table.stride(0), q.stride(0), k_cache.stride(0),
        k_cache.stride(1), HEADS=heads, GROUP=heads // kv_heads, HEAD_DIM=head_dim,
        PAGE_SIZE=page_size, BLOCK_M=tuning.block_queries, BLOCK_N=tuning.block_tokens,
        num_warps=tuning.warps, num_stages=tuning.stages, **launch_options(q.device),
    )  # fmt: skip
    return out


def prefill_attention_portable(
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
    """As `prefill_attention_reference`, by the kernel of this module."""
    tuning = DEFAULT_TUNING
    return launch(
        q, k_cache, v_cache, page_table, starts, rows, contexts, scale, tuning=tuning, out=out
    )


def prefill_attention_triton(
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
    """As `prefill_attention_reference`, by Hopper's kernel if `takes_hopper`, else the portable."""
    run = launch_hopper if takes_hopper(q, k_cache) else partial(launch, tuning=DEFAULT_TUNING)
    return run(q, k_cache, v_cache, page_table, starts, rows, contexts, scale, out=out)


IMPLEMENTATIONS = {
    "torch": prefill_attention_reference,
    "triton": prefill_attention_triton,
    "triton-portable": prefill_attention_portable,
}
