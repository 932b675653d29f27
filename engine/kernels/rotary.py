"""Between the QKV projection and attention: QK-norm, rotary embedding, and the write to the cache.

Rotary position embedding is that of arXiv:2104.09864 with the two halves of a head rotated against
each other, as Hugging Face checkpoints are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.parts import load_parts, num_parts, sum_parts
from engine.kernels.pdl import launch_dependents, launch_options, wait
from engine.kernels.rms_norm import rms_norm_reference


@dataclass(frozen=True, slots=True)
class QKNorm:
    """RMSNorm of each query and key head: weights [D] of both, and eps."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


def rotary_kv_write_reference(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    norm: QKNorm | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    page_table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn the QKV projection into rotated queries, and store rotated keys and values.

    Args:
        qkv: [T, (Hq + 2 Hk) * D], or parts float32[S, T, (Hq + 2 Hk) * D].
        bias: [(Hq + 2 Hk) * D] to add first, or None.
        norm: of queries and keys before rotation, or None.
        cos_sin: float32[positions, D]; cosines of the D/2 angles, then their sines.
        positions: int32[T], of each token in its text.
        rows: int32[T], row of the page table of each token.
        page_table: int32[R, P], page of each page_size positions of a row.
        k_cache: [pages, page_size, Hk, D], written at the tokens' slots.
        v_cache: likewise.
        out: where to put the result, contiguous; None: a new tensor.

    Returns:
        queries [T, Hq, D] in the dtype of the cache.
    """
    page_size, kv_heads, dim = k_cache.shape[1:]
    flat = sum_parts(qkv)
    flat = (flat if bias is None else flat + bias).to(k_cache.dtype)
    heads = flat.shape[1] // dim - 2 * kv_heads
    query, key, value = flat.view(len(flat), -1, dim).split([heads, kv_heads, kv_heads], dim=1)
    if norm is not None:
        query = rms_norm_reference(query, norm.query, norm.eps)
        key = rms_norm_reference(key, norm.key, norm.eps)
    index = positions.long()
    cos, sin = cos_sin[index][:, None].chunk(2, dim=-1)
    page = page_table[rows.long(), index // page_size].long()
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    k_cache[page, index % page_size] = key
    v_cache[page, index % page_size] = value
    return query if out is None else out.copy_(query)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


@kernel(do_not_specialize=["table_stride", "part_stride"])
def _rotary_kernel(
    qkv, bias, query_norm, key_norm, eps, cos_sin, positions, rows, page_table, table_stride,
    k_cache, v_cache, out, part_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    # All heads in one row of blocks: queries, keys, values. A block may hold some of each.
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    inside = (head < HEADS + 2 * KV_HEADS) & (lane < DIM // 2)
    launch_dependents(PDL)
    wait(PDL)
    position = tl.load(positions + token)
    row = tl.load(rows + token).to(tl.int64)
    page = tl.load(page_table + row * table_stride + position // PAGE).to(tl.int64)
    cosine = tl.load(cos_sin + position.to(tl.int64) * DIM + lane, mask=lane < DIM // 2)
    sine = tl.load(cos_sin + position.to(tl.int64) * DIM + DIM // 2 + lane, mask=lane < DIM // 2)

    width = (HEADS + 2 * KV_HEADS) * DIM
    at = head * DIM + lane
    first = load_parts(qkv, token * width + at, inside, part_stride, PARTS)
    second = load_parts(qkv, token * width + at + DIM // 2, inside, part_stride, PARTS)
    if HAS_BIAS:
        first += tl.load(bias + at, mask=inside, other=0.0)
        second += tl.load(bias + at + DIM // 2, mask=inside, other=0.0)
    dtype = out.dtype.element_ty
    first, second = first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    if HAS_NORM:
        square = tl.sum(first * first + second * second, 1)[:, None]
        inverse = tl.rsqrt(square / DIM + eps)
        for_query = is_query & inside
        for_key = (head >= HEADS) & inside
        one = tl.load(query_norm + lane + head * 0, mask=for_query, other=0.0)
        one += tl.load(key_norm + lane + head * 0, mask=for_key, other=0.0)
        two = tl.load(query_norm + DIM // 2 + lane + head * 0, mask=for_query, other=0.0)
        two += tl.load(key_norm + DIM // 2 + lane + head * 0, mask=for_key, other=0.0)
        normed_first = ((first * inverse).to(dtype) * one).to(tl.float32)
        normed_second = ((second * inverse).to(dtype) * two).to(tl.float32)
        first = tl.where(is_value, first, normed_first)
        second = tl.where(is_value, second, normed_second)
    rotated_first = first * cosine - second * sine
    rotated_second = second * cosine + first * sine

    to_query = is_query & inside
    target = out + token * HEADS * DIM + at
    tl.store(target, rotated_first, mask=to_query)
    tl.store(target + DIM // 2, rotated_second, mask=to_query)
    slot = (page * PAGE + position % PAGE) * KV_HEADS * DIM
    to_key = (head >= HEADS) & (head < HEADS + KV_HEADS) & inside
    target = k_cache + slot + (head - HEADS) * DIM + lane
    tl.store(target, rotated_first, mask=to_key)
    tl.store(target + DIM // 2, rotated_second, mask=to_key)
    to_value = is_value & inside
    target = v_cache + slot + (head - HEADS - KV_HEADS) * DIM + lane
    tl.store(target, first, mask=to_value)
    tl.store(target + DIM // 2, second, mask=to_value)


def rotary_kv_write_triton(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    norm: QKNorm | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    page_table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `rotary_kv_write_reference`; a program takes some heads of one token."""
    page_size, kv_heads, dim = k_cache.shape[1:]
    tokens, width = qkv.shape[-2:]
    all_heads = width // dim
    heads = all_heads - 2 * kv_heads
    if out is None:
        out = torch.empty(tokens, heads, dim, dtype=k_cache.dtype, device=qkv.device)
    # Few tokens: many small programs, for latency. Many tokens: fewer and larger ones.
    block_heads = 4 if tokens <= 256 else 16
    _rotary_kernel[(tokens, triton.cdiv(all_heads, block_heads))](
        qkv, bias, norm.query if norm else None, norm.key if norm else None,
        norm.eps if norm else 0.0, cos_sin, positions, rows, page_table, page_table.stride(0),
        k_cache, v_cache, out, tokens * width,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, PAGE=page_size, BLOCK_HEADS=block_heads,
        HALF=triton.next_power_of_2(dim // 2), PARTS=num_parts(qkv),
        HAS_BIAS=bias is not None, HAS_NORM=norm is not None,
        num_warps=1 if block_heads == 4 else 4, **launch_options(qkv.device),
    )  # fmt: skip
    return out


IMPLEMENTATIONS = {"torch": rotary_kv_write_reference, "triton": rotary_kv_write_triton}
