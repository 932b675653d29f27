"""The rungs of attention of one new token per request over its pages."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from engine.kernels.decode_attention import decode_attention_triton, multiprocessors
from engine.kernels.lab.case import Lab, Work, relative_error, sampled
from engine.kernels.lab.cuda_launch import lab_kernel, launch

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 16
GROUP = HEADS // KV_HEADS
SCALE = HEAD_DIM**-0.5
WARPS, TILE, STAGES = 4, 16, 3  # of a block of cuda-tensor; as attention_decode.cu has them
BLOCKS_PER_SM, AT_A_TIME = 6, 2  # of a multiprocessor: wanted where contexts are split, and fitting


class DecodeCase(NamedTuple):
    """Inputs of one call.

    Attributes:
        q: [batch, HEADS, HEAD_DIM].
        k_pages, v_pages: [pages, PAGE_SIZE, KV_HEADS, HEAD_DIM].
        table: int32[batch, max_pages].
        contexts: int32[batch], tokens that each request attends.
        rows, positions: as `decode_attention_reference` wants them.
        longest: the longest context.
        equal: whether all contexts are the longest.
        contiguous: keys and values [batch, longest, KV_HEADS, HEAD_DIM], as gathered before.
    """

    q: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    table: torch.Tensor
    contexts: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    longest: int
    equal: bool
    contiguous: tuple[torch.Tensor, torch.Tensor]


def make(device: torch.device, *, batch: int, context: int, ragged: int = 0) -> DecodeCase:
    """Fresh random inputs; the pages of a request are scattered.

    Args:
        device: where they are.
        batch: requests.
        context: the longest, which the last request has.
        ragged: if not 0, the others are shorter, each by its own share.
    """

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(torch.bfloat16)

    most = -(-context // PAGE_SIZE)
    table = torch.randperm(batch * most, device=device).view(batch, most).to(torch.int32)
    k, v = (random(batch * most, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in range(2))
    shares = torch.arange(1, batch + 1, device=device)
    contexts = shares * context // batch if ragged else torch.full_like(shares, context)
    contexts = contexts.clamp(min=1).to(torch.int32)
    case = DecodeCase(
        random(batch, HEADS, HEAD_DIM), k, v, table, contexts,
        torch.arange(batch, dtype=torch.int32, device=device), contexts - 1, context, not ragged,
        (k, v),
    )  # fmt: skip
    return case._replace(contiguous=_gathered(case))


def _gathered(case: DecodeCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of every request, one token after the other."""
    index = case.table.long()
    k, v = (pages[index].flatten(1, 2)[:, : case.longest] for pages in (case.k_pages, case.v_pages))
    return k, v


def _inside(case: DecodeCase) -> torch.Tensor:
    """Which of the longest context's tokens each request has: [batch, 1, 1, longest]."""
    token = torch.arange(case.longest, device=case.q.device)
    return (token[None, :] < case.contexts[:, None])[:, None, None, :]


def torch_naive(case: DecodeCase) -> torch.Tensor:
    """The definition."""
    k, v = (
        part.repeat_interleave(GROUP, 2).permute(0, 2, 1, 3) for part in _gathered(case)
    )  # [batch, HEADS, longest, HEAD_DIM]
    logits = (case.q[:, :, None] @ k.mT).mul_(SCALE)
    logits = logits.masked_fill_(~_inside(case), -math.inf)
    weights = logits.softmax(-1, dtype=torch.float32).to(case.q.dtype)
    return (weights @ v)[:, :, 0]


def cuda_naive(case: DecodeCase) -> torch.Tensor:
    """A warp per query head of a request."""
    out = torch.empty_like(case.q)
    made = lab_kernel("attention_decode.cu", "decode_naive", {"GROUP": GROUP})
    arguments = (
        case.q, case.k_pages, case.v_pages, case.table, case.contexts, out, KV_HEADS, PAGE_SIZE,
        case.table.shape[1], SCALE * math.log2(math.e),
    )  # fmt: skip
    launch(made, (HEADS, len(case.q)), 32, 0, arguments, case.q.device)
    return out


def splits_of(batch: int, longest: int, device: torch.device) -> int:
    """Into how many pieces each context is cut: enough blocks for a GPU, none without a tile."""
    pairs, processors = batch * KV_HEADS, multiprocessors(device)
    wanted = 1 if pairs >= AT_A_TIME * processors else -(-BLOCKS_PER_SM * processors // pairs)
    return max(1, min(wanted, -(-longest // (TILE * WARPS))))


def cuda_tensor(case: DecodeCase, splits: int | None = None) -> torch.Tensor:
    """Split contexts (into `splits`, or as many as is best), tensor cores, a kernel to combine."""
    device, batch = case.q.device, len(case.q)
    splits = splits or splits_of(batch, case.longest, device)
    out = torch.empty_like(case.q)
    partial = torch.empty(batch * HEADS * splits * HEAD_DIM, dtype=torch.float32, device=device)
    log_sums = torch.empty(batch * HEADS * splits, dtype=torch.float32, device=device)
    arguments = (
        case.q, case.k_pages, case.v_pages, case.table, case.contexts, partial, log_sums, splits,
        KV_HEADS, PAGE_SIZE, case.table.shape[1], SCALE * math.log2(math.e),
    )  # fmt: skip
    shared_bytes = WARPS * STAGES * 2 * TILE * 2 * HEAD_DIM
    made = lab_kernel("attention_decode.cu", "decode_tensor", {"GROUP": GROUP})
    launch(made, (KV_HEADS, splits * batch), 32 * WARPS, shared_bytes, arguments, device)
    combine = lab_kernel("attention_decode.cu", "decode_combine", {"GROUP": GROUP})
    launch(combine, (HEADS, batch), HEAD_DIM, 0, (partial, log_sums, out, splits), device)
    return out


def triton_paged(case: DecodeCase) -> torch.Tensor:
    """The engine's kernel."""
    return decode_attention_triton(
        case.q, case.k_pages, case.v_pages, case.table, case.rows, case.positions, SCALE,
        case.longest,
    )  # fmt: skip


def _library(case: DecodeCase, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(
        case.q[:, :, None], k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=None if case.equal else _inside(case), scale=SCALE, enable_gqa=True,
    )  # fmt: skip
    return out[:, :, 0]


def library(case: DecodeCase) -> torch.Tensor:
    """PyTorch's attention of gathered pages."""
    return _library(case, *_gathered(case))


def library_contiguous(case: DecodeCase) -> torch.Tensor:
    """PyTorch's attention of what was gathered before."""
    return _library(case, *case.contiguous)


def error(case: DecodeCase, out: torch.Tensor) -> float:
    """Against float64, over at most eight requests."""
    index = sampled(len(case.q), 8, case.q.device)
    k, v = (part[index].double() for part in case.contiguous)
    q = case.q[index].double().unflatten(1, (KV_HEADS, GROUP))
    logits = torch.einsum("bhgd,bnhd->bhgn", q, k).mul_(SCALE)
    weights = logits.masked_fill_(~_inside(case)[index], -math.inf).softmax(-1)
    exact = torch.einsum("bhgn,bnhd->bhgd", weights, v).flatten(1, 2)
    return relative_error(out[index], exact)


def work(case: DecodeCase) -> Work:
    """KV of all contexts read once; queries, table and result."""
    tokens = int(case.contexts.sum())
    kv_bytes = 2 * 2 * KV_HEADS * HEAD_DIM * tokens
    flops = 4 * HEADS * HEAD_DIM * tokens
    return Work(kv_bytes + 2 * case.q.nbytes + case.table.nbytes, flops)


LAB = Lab(
    sizes=(
        {"batch": 64, "context": 1088},
        {"batch": 64, "context": 8192},
        {"batch": 1, "context": 65536},
    ),
    small_sizes=(
        {"batch": 1, "context": 1}, {"batch": 3, "context": 77, "ragged": 1},
        {"batch": 2, "context": 300},
    ),
    make=make,
    rungs={
        "torch-naive": torch_naive, "cuda-naive": cuda_naive, "cuda-tensor": cuda_tensor,
        "triton": triton_paged, "library": library, "library-contiguous": library_contiguous,
    },
    error=error,
    work=work,
)  # fmt: skip
