"""The rungs of causal attention of one prompt."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.kernels.lab.case import Lab, Work, relative_error, sampled
from engine.kernels.lab.cuda_launch import lab_kernel, launch
from engine.kernels.prefill_attention import prefill_attention_portable
from engine.kernels.prefill_attention_hopper import launch_hopper

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 64
SCALE = HEAD_DIM**-0.5
QUERIES = 128  # of a block
NAIVE_WARPS = 4
KEYS, WARPS = 48, 4  # of a tile, of a block; measured: 64 keys spill, 8 warps read too much


class PrefillCase(NamedTuple):
    """Inputs of one call.

    Attributes:
        q: [tokens, HEADS, HEAD_DIM].
        k, v: [tokens, KV_HEADS, HEAD_DIM], the beginning of the pages.
        k_pages, v_pages: [pages, PAGE_SIZE, KV_HEADS, HEAD_DIM].
        table: int32[1, pages].
        starts, rows, contexts: as `prefill_attention_reference` wants them, of one request.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    table: torch.Tensor
    starts: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor


def make(device: torch.device, *, tokens: int) -> PrefillCase:
    """Fresh random inputs; the pages lie in order, so that they are contiguous KV, too."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(torch.bfloat16)

    def int32(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    pages = -(-tokens // PAGE_SIZE)
    k, v = (random(pages * PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in range(2))
    return PrefillCase(
        random(tokens, HEADS, HEAD_DIM), k[:tokens], v[:tokens],
        k.view(pages, PAGE_SIZE, KV_HEADS, HEAD_DIM), v.view(pages, PAGE_SIZE, KV_HEADS, HEAD_DIM),
        torch.arange(pages, dtype=torch.int32, device=device)[None], int32(0, tokens), int32(0),
        int32(0),
    )  # fmt: skip


def _by_head(case: PrefillCase) -> tuple[torch.Tensor, ...]:
    """q, k, v as [1, heads, tokens, HEAD_DIM]."""
    return tuple(part.transpose(0, 1)[None] for part in (case.q, case.k, case.v))


def torch_naive(case: PrefillCase) -> torch.Tensor:
    """The definition."""
    q, k, v = _by_head(case)
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    hidden = torch.ones(len(case.q), len(case.q), dtype=torch.bool, device=q.device).triu(1)
    logits = (q @ k.mT).mul_(SCALE).masked_fill_(hidden, -math.inf)
    weights = logits.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v)[0].transpose(0, 1)


def _arguments(case: PrefillCase, out: torch.Tensor) -> tuple[torch.Tensor | int | float, ...]:
    scale_log2 = SCALE * math.log2(math.e)
    return case.q, case.k, case.v, out, len(case.q), HEADS, KV_HEADS, scale_log2


def cuda_naive(case: PrefillCase) -> torch.Tensor:
    """A warp per query."""
    out = torch.empty_like(case.q)
    made = lab_kernel("attention_prefill.cu", "attention_naive", {"KEYS": KEYS, "WARPS": WARPS})
    grid = (-(-len(case.q) // NAIVE_WARPS), HEADS)
    launch(made, grid, 32 * NAIVE_WARPS, 0, _arguments(case, out), case.q.device)
    return out


def cuda_tensor(case: PrefillCase, keys: int = KEYS, warps: int = WARPS) -> torch.Tensor:
    """Tensor cores; `keys` of a tile, `warps` of a block."""
    out = torch.empty_like(case.q)
    made = lab_kernel(
        "attention_prefill.cu", "attention_tensor", {"KEYS": keys, "WARPS": warps}
    )  # fmt: skip
    shared_bytes = 2 * HEAD_DIM * (QUERIES + 2 * 2 * keys)
    grid = (HEADS, -(-len(case.q) // QUERIES))
    launch(made, grid, 32 * warps, shared_bytes, _arguments(case, out), case.q.device)
    return out


def _paged(case: PrefillCase) -> tuple[torch.Tensor | float, ...]:
    return (
        case.q, case.k_pages, case.v_pages, case.table, case.starts, case.rows, case.contexts,
        SCALE,
    )  # fmt: skip


def triton_paged(case: PrefillCase) -> torch.Tensor:
    """The engine's portable kernel."""
    return prefill_attention_portable(*_paged(case))  # type: ignore[arg-type]


def gluon_paged(case: PrefillCase) -> torch.Tensor:
    """The engine's kernel on Hopper."""
    return launch_hopper(*_paged(case))  # type: ignore[arg-type]


def _library(case: PrefillCase, backend: SDPBackend) -> torch.Tensor:
    q, k, v = _by_head(case)
    with sdpa_kernel(backend):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=SCALE, enable_gqa=True
        )
    return out[0].transpose(0, 1)


def library_flash(case: PrefillCase) -> torch.Tensor:
    """PyTorch's FlashAttention-2."""
    return _library(case, SDPBackend.FLASH_ATTENTION)


def library(case: PrefillCase) -> torch.Tensor:
    """CuDNN's on a GPU, which refuses a single key."""
    on_gpu = case.q.device.type == "cuda" and len(case.k) > 1
    return _library(case, SDPBackend.CUDNN_ATTENTION if on_gpu else SDPBackend.MATH)


def error(case: PrefillCase, out: torch.Tensor) -> float:
    """Against float64, over at most 96 queries."""
    index = sampled(len(case.q), 96, case.q.device)
    q = case.q[index].double().unflatten(1, (KV_HEADS, HEADS // KV_HEADS))
    logits = torch.einsum("qhgd,nhd->hgqn", q, case.k.double()).mul_(SCALE)
    hidden = torch.arange(len(case.k), device=q.device)[None, :] > index[:, None]
    weights = logits.masked_fill_(hidden, -math.inf).softmax(-1)
    exact = torch.einsum("hgqn,nhd->qhgd", weights, case.v.double()).flatten(1, 2)
    return relative_error(out[index], exact)


def work(case: PrefillCase) -> Work:
    """The products of the pairs that causality leaves; q, k, v read and the result written."""
    tokens = len(case.q)
    pairs = tokens * (tokens + 1) // 2
    return Work(2 * case.q.nbytes + case.k.nbytes + case.v.nbytes, 4 * HEADS * HEAD_DIM * pairs)


LAB = Lab(
    sizes=({"tokens": 2048}, {"tokens": 8192}),
    small_sizes=({"tokens": 1}, {"tokens": 77}, {"tokens": 321}),
    make=make,
    rungs={
        "torch-naive": torch_naive, "cuda-naive": cuda_naive, "cuda-tensor": cuda_tensor,
        "triton": triton_paged, "gluon": gluon_paged, "library-flash": library_flash,
        "library": library,
    },
    error=error,
    work=work,
)  # fmt: skip
