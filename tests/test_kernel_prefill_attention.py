"""Prefill attention: chunks of prompts over pages that lie anywhere in the cache."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, ON_GPU, relative_error

from engine.kernels import prefill_attention as op
from engine.kernels import prefill_attention_hopper as hopper

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


@dataclass
class Paged:
    """Chunks whose KV lies in shuffled pages; every entry after a chunk's end is NaN."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    page_table: torch.Tensor
    starts: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The arguments of the op between the queries and the scale."""
        tables = (self.page_table, self.starts, self.rows, self.contexts)
        return (self.k_cache, self.v_cache, *(table.to(DEVICE) for table in tables))


def paged(
    chunks: list[tuple[int, int]], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Paged:
    """Chunks given as (tokens cached before, tokens), on rows and pages drawn at random."""
    ends = [context + length for context, length in chunks]
    counts = [-(-end // page_size) for end in ends]
    owned = torch.randperm(sum(counts) + 5)
    table = torch.full((len(chunks) + 2, max(counts) + 2), int(owned[-1]), dtype=torch.int32)
    rows = torch.randperm(len(chunks) + 2)[: len(chunks)]
    caches = [
        torch.full((len(owned), page_size, kv_heads, dim), math.nan, dtype=dtype) for _ in range(2)
    ]
    texts: list[list[torch.Tensor]] = [[], []]
    for row, end, count in zip(rows.tolist(), ends, counts, strict=True):
        pages, owned = owned[:count], owned[count:]
        table[row, :count] = pages.int()
        place = torch.arange(end)
        for cache, text in zip(caches, texts, strict=True):
            text.append(torch.randn(end, kv_heads, dim).to(dtype))
            cache[pages[place // page_size], place % page_size] = text[-1]
    starts = [0, *itertools.accumulate(length for _, length in chunks)]
    return Paged(
        *(cache.to(DEVICE) for cache in caches), table, torch.tensor(starts, dtype=torch.int32),
        rows.int(), torch.tensor([context for context, _ in chunks], dtype=torch.int32), *texts,
    )  # fmt: skip


def expected(q: torch.Tensor, world: Paged, scale: float) -> torch.Tensor:
    """Causal softmax attention in float64 over the texts themselves."""
    made = []
    edges = world.starts.tolist()
    for first, last, *text in zip(edges[:-1], edges[1:], world.k, world.v, strict=True):
        query = q[first:last].double().cpu()
        k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in text)
        logits = torch.einsum("qhd,nhd->hqn", query, k) * scale
        seen = torch.ones(logits.shape[1:]).tril(len(k) - len(query)).bool()
        weights = logits.masked_fill(~seen, -math.inf).softmax(-1)
        made.append(torch.einsum("hqn,nhd->qhd", weights, v))
    return torch.cat(made)


def queries(world: Paged, heads: int) -> torch.Tensor:
    dim, dtype = world.k_cache.shape[-1], world.k_cache.dtype
    return torch.randn(int(world.starts[-1]), heads, dim, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_implementation_equals_softmax_attention(page_size: int, dtype: torch.dtype) -> None:
    """Chunks of one token and more, with and without a prefix, at page edges; the rest is NaN."""
    chunks = [(0, 1), (page_size, 5), (0, page_size), (63, 2), (33, 40)]
    world = paged(chunks, page_size, 1, 16, dtype)
    q = queries(world, 2)
    for name, attend in op.IMPLEMENTATIONS.items():
        out = attend(q, *world.inputs(), 0.3)
        assert out.dtype == dtype
        assert relative_error(out, expected(q, world, 0.3)) < TOLERANCE[dtype], name


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 64), (5, 1, 16), (4, 2, 16), (7, 1, 32), (8, 1, 16)]
)
def test_groups(heads: int, kv_heads: int, dim: int) -> None:
    """Query heads read the KV head of their group."""
    world = paged([(10, 9), (0, 21)], 16, kv_heads, dim, torch.float32)
    q = queries(world, heads)
    out = op.prefill_attention_portable(q, *world.inputs(), 0.2)
    assert relative_error(out, expected(q, world, 0.2)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("block_queries", "block_tokens"), [(16, 16), (32, 16), (16, 32)])
def test_tiles_of_any_size(block_queries: int, block_tokens: int) -> None:
    """Chunks over several tiles and blocks, whose edges fall anywhere, and empty chunks."""
    lengths = torch.randint(0, 71, (3,)).tolist()
    chunks = [(20, lengths[0]), (0, lengths[1]), (16, 33), (7, lengths[2])]
    world = paged(chunks, 16, 1, 16, torch.float32)
    q = queries(world, 1)
    tuning = replace(op.DEFAULT_TUNING, block_queries=block_queries, block_tokens=block_tokens)
    out = op.launch(q, *world.inputs(), 0.4, tuning=tuning)
    assert relative_error(out, expected(q, world, 0.4)) < TOLERANCE[torch.float32], chunks


def among_others(world: Paged, before: int, after: int) -> tuple[torch.Tensor, ...]:
    """The arguments of `Paged.inputs` with `before` queries of nobody, and `after` empty chunks."""
    k_cache, v_cache, table, starts, rows, contexts = world.inputs()
    dummy = min(set(range(len(table))) - set(world.rows.tolist()))
    starts = torch.cat((starts, starts[-1:].repeat(after))) + before
    rows = torch.cat((rows, torch.full((after,), dummy, dtype=torch.int32, device=DEVICE)))
    contexts = torch.cat((contexts, contexts.new_zeros(after)))
    return k_cache, v_cache, table, starts, rows, contexts


@pytest.mark.parametrize("before", [0, 3, 150])
def test_padding_disturbs_nobody(before: int) -> None:
    """Queries of no request keep what is there; requests of no token, on the dummy row, do nothing.

    Queries of nobody before the first request may fill whole tiles.
    """
    world = paged([(5, 20), (0, 3)], 16, 1, 16, torch.float32)
    q = torch.randn(before + 40, 2, 16, device=DEVICE)
    for name, attend in op.IMPLEMENTATIONS.items():
        out = torch.full_like(q, math.nan)
        attend(q, *among_others(world, before, 2), 0.3, out=out)
        mine = slice(before, before + 23)
        assert relative_error(out[mine], expected(q[mine], world, 0.3)) < 2e-6, name
        assert out[:before].isnan().all()
        assert out[before + 23 :].isnan().all()


def test_strided_queries_of_a_fused_projection() -> None:
    """Queries may be a slice of wider rows; the result is contiguous."""
    world = paged([(4, 20)], 16, 1, 16, torch.float32)
    wide = torch.randn(20, 5, 16, device=DEVICE)
    for name, attend in op.IMPLEMENTATIONS.items():
        out = attend(wide[:, 1:3], *world.inputs(), 0.3)
        assert out.is_contiguous()
        assert relative_error(out, expected(wide[:, 1:3], world, 0.3)) < 2e-6, name


def test_writes_where_it_is_told() -> None:
    """The result goes to `out` and nowhere else."""
    world = paged([(4, 20)], 16, 1, 16, torch.float32)
    q = queries(world, 2)
    for name, attend in op.IMPLEMENTATIONS.items():
        whole = torch.full((22, 2, 16), math.nan, device=DEVICE)
        out = attend(q, *world.inputs(), 0.3, out=whole[1:21])
        assert out.data_ptr() == whole[1:21].data_ptr()
        assert relative_error(out, expected(q, world, 0.3)) < 2e-6, name
        assert whole[::21].isnan().all(), name


@pytest.mark.skipif(not ON_GPU, reason="Hopper's own instructions")
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hopper_equals_softmax_attention(page_size: int, dtype: torch.dtype) -> None:
    """Chunks over many blocks and of one token, with and without a prefix; the rest is NaN."""
    chunks = [(0, 1), (5, 1), (0, 299), (200, 77), (1000, 500), (128, 128), (255, 129), (0, 0)]
    world = paged(chunks, page_size, 2, 128, dtype)
    q = queries(world, 8)
    assert op.takes_hopper(q, world.k_cache)
    out = torch.full_like(q, math.nan)
    op.launch_hopper(q, *world.inputs(), 0.1, out=out)
    assert relative_error(out, expected(q, world, 0.1)) < TOLERANCE[torch.bfloat16]


@pytest.mark.skipif(not ON_GPU, reason="Hopper's own instructions")
@pytest.mark.parametrize("before", [1, 300])
def test_padding_disturbs_nobody_on_hopper(before: int) -> None:
    """As `test_padding_disturbs_nobody`."""
    world = paged([(5, 200), (1000, 3)], 16, 2, 128, torch.bfloat16)
    q = torch.randn(before + 640, 8, 128, dtype=torch.bfloat16, device=DEVICE)
    out = torch.full_like(q, math.nan)
    op.launch_hopper(q, *among_others(world, before, 20), 0.1, out=out)
    mine = slice(before, before + 203)
    assert relative_error(out[mine], expected(q[mine], world, 0.1)) < TOLERANCE[torch.bfloat16]
    assert out[:before].isnan().all()
    assert out[before + 203 :].isnan().all()


def test_hopper_takes_what_it_can() -> None:
    """Small pages and other heads are for the portable kernel, and so is a CPU."""
    cache = torch.empty(2, 16, 1, 128, dtype=torch.bfloat16, device=DEVICE)
    q = torch.empty(1, 1, 128, dtype=torch.bfloat16, device=DEVICE)
    assert op.takes_hopper(q, cache) == ON_GPU
    assert not op.takes_hopper(q, cache[:, :1].contiguous())
    assert not op.takes_hopper(q[..., :64], cache[..., :64].contiguous())
    assert not op.takes_hopper(q.float(), cache.float())


@pytest.mark.parametrize(("heads", "group", "dim"), [(32, 4, 128), (14, 7, 64)])
def test_compiles_for_hopper(heads: int, group: int, dim: int) -> None:
    """Warp-group tensor cores fed by asynchronous copies; nothing spilled."""
    signature = dict.fromkeys(("q", "k_cache", "v_cache", "out"), "*bf16")
    signature |= dict.fromkeys(("page_table", "starts", "rows", "contexts"), "*i32")
    integers = ("requests", "table_stride", "q_stride", "page_stride", "token_stride")
    signature |= dict.fromkeys(integers, "i32") | {"qk_scale": "fp32"}
    tuning = op.DEFAULT_TUNING
    variant = sm90_gate.Variant(
        "engine.kernels.prefill_attention:_prefill_attention_kernel",
        signature,
        {
            "HEADS": heads, "GROUP": group, "HEAD_DIM": dim, "PAGE_SIZE": 16, "PDL": True,
            "BLOCK_M": tuning.block_queries, "BLOCK_N": tuning.block_tokens,
        },
        {"num_warps": tuning.warps, "num_stages": tuning.stages},
        aligned=("q_stride", "page_stride", "token_stride"),
    )  # fmt: skip
    (made,) = sm90_gate.run([variant])
    assert made.stack_bytes == 0
    assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
    assert made.opcodes["HGMMA"] > 0
    assert made.opcodes["HMMA"] == 0
    assert made.opcodes["LDGSTS"] > 0
    assert made.shared_bytes <= 227 * 1024


def test_hopper_kernel_compiles() -> None:
    """Warp-group matrix products fed by bulk copies; nothing spilled; one program per SM."""
    box = "tensordesc<bf16[16, 64],NVMMASharedLayout(128, 16, 2)>"
    signature = dict.fromkeys(("q", "out"), "*bf16") | dict.fromkeys(("k_pages", "v_pages"), box)
    signature |= dict.fromkeys(("page_table", "starts", "rows", "contexts"), "*i32")
    signature |= dict.fromkeys(("requests", "table_stride", "q_stride"), "i32")
    variant = sm90_gate.Variant(
        "engine.kernels.prefill_attention_hopper:_prefill_attention_hopper_kernel",
        signature | {"qk_scale": "fp32"},
        {
            "HEADS": 32, "GROUP": 4, "PAGE_SIZE": 16, "BLOCK_M": hopper.BLOCK_QUERIES,
            "BLOCK_N": hopper.BLOCK_TOKENS, "STAGES": hopper.STAGES,
        },
        {"num_warps": 4},
        aligned=("q_stride",),
    )  # fmt: skip
    (made,) = sm90_gate.run([variant])
    assert made.stack_bytes == 0
    assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
    assert made.opcodes["HGMMA"] > 0
    assert made.opcodes["UTMALDG"] > 0
    assert made.shared_bytes <= 227 * 1024
