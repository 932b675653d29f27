"""Decode attention: one token per request over pages that lie anywhere in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, relative_error

from engine.kernels import decode_attention as op

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


@dataclass
class Paged:
    """Requests whose KV lies in shuffled pages; every entry outside their contexts is NaN."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    page_table: torch.Tensor
    rows: torch.Tensor
    contexts: list[int]
    k: list[torch.Tensor]
    v: list[torch.Tensor]


def paged(
    contexts: list[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Paged:
    """A cache of requests with `contexts` tokens each, on rows and pages drawn at random."""
    counts = [-(-context // page_size) for context in contexts]
    spare = 5
    owned = torch.randperm(sum(counts) + spare)
    table = torch.full((len(contexts) + 2, max(counts) + 2), int(owned[-1]), dtype=torch.int32)
    rows = torch.randperm(len(contexts) + 2)[: len(contexts)]
    shape = (len(owned), page_size, kv_heads, dim)
    caches = [torch.full(shape, math.nan, dtype=dtype) for _ in range(2)]
    texts: list[list[torch.Tensor]] = [[], []]
    for row, context, count in zip(rows.tolist(), contexts, counts, strict=True):
        pages, owned = owned[:count], owned[count:]
        table[row, :count] = pages.int()
        place = torch.arange(context)
        for cache, text in zip(caches, texts, strict=True):
            text.append(torch.randn(context, kv_heads, dim).to(dtype))
            cache[pages[place // page_size], place % page_size] = text[-1]
    return Paged(
        *(cache.to(DEVICE) for cache in caches), table.to(DEVICE), rows.int().to(DEVICE), contexts,
        *texts,
    )  # fmt: skip


def expected(q: torch.Tensor, world: Paged, scale: float) -> torch.Tensor:
    """Softmax attention in float64 over the texts themselves."""
    rows = []
    for query, *text in zip(q.double().cpu(), world.k, world.v, strict=True):
        k, v = (x.double().repeat_interleave(len(query) // x.shape[1], 1) for x in text)
        weights = (torch.einsum("hd,nhd->hn", query, k) * scale).softmax(-1)
        rows.append(torch.einsum("hn,nhd->hd", weights, v))
    return torch.stack(rows)


def arguments(world: Paged, q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    positions = torch.tensor(world.contexts, dtype=torch.int32, device=DEVICE) - 1
    return q, world.k_cache, world.v_cache, world.page_table, world.rows, positions


def launched(
    world: Paged, q: torch.Tensor, scale: float, pieces: int, counters: bool, **tuning: int
) -> torch.Tensor:  # fmt: skip
    """The kernel with a grid of its own; the counters must be zeros afterwards."""
    count = torch.zeros(len(q) * world.k_cache.shape[2], dtype=torch.int32, device=DEVICE)
    out = op.launch(
        *arguments(world, q), scale, pieces=pieces,
        tuning=op.DecodeTuning(**tuning), counters=count if counters else None,
    )  # fmt: skip
    assert not count.any()
    return out


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_implementation_equals_softmax_attention(page_size: int, dtype: torch.dtype) -> None:
    """Contexts of one token, of page and block edges and beyond; what is outside them is NaN."""
    contexts = [1, page_size, page_size + 1, 65, 64, 70]
    world = paged(contexts, page_size, 2, 16, dtype)
    q = torch.randn(len(contexts), 4, 16, dtype=dtype, device=DEVICE)
    for name, attend in op.IMPLEMENTATIONS.items():
        out = attend(*arguments(world, q), 0.3, 128)
        assert out.shape == q.shape
        assert out.dtype == dtype
        assert relative_error(out, expected(q, world, 0.3)) < TOLERANCE[dtype], name


@pytest.mark.parametrize(("pieces", "counters"), [(1, False), (3, True), (29, True)])
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (5, 16), (7, 32), (16, 16)])
def test_pieces_combine(pieces: int, counters: bool, group: int, dim: int) -> None:
    """Programs with several heads, with parts of two, and of one, for every size of group."""
    world = paged([130, 3, 33, 32], 16, 2, dim, torch.float32)
    q = torch.randn(4, 2 * group, dim, device=DEVICE)
    out = launched(world, q, 0.2, pieces, counters, block_tokens=16, min_chunk=16)
    assert relative_error(out, expected(q, world, 0.2)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("counters", [True, False])
def test_more_splits_than_a_combining_tile(counters: bool) -> None:
    """Partial results beyond the first tile of a combining program count as well."""
    world = paged([300], 16, 1, 16, torch.float32)
    q = torch.randn(1, 2, 16, device=DEVICE)
    out = launched(world, q, 0.5, 19, counters, block_tokens=16, min_chunk=16)
    assert relative_error(out, expected(q, world, 0.5)) < TOLERANCE[torch.float32]


def test_one_launch_serves_every_context() -> None:
    """With a fixed grid, contexts may change from call to call; counters are ready again."""
    q = torch.randn(2, 2, 16, device=DEVICE)
    counters = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    for contexts in ([1, 90], [77, 2], [16, 16]):
        world = paged(contexts, 16, 1, 16, torch.float32)
        out = op.launch(
            *arguments(world, q), 0.4, pieces=5, counters=counters,
            tuning=op.DecodeTuning(block_tokens=16, min_chunk=16),
        )  # fmt: skip
        assert relative_error(out, expected(q, world, 0.4)) < TOLERANCE[torch.float32]


def test_strided_queries_of_a_fused_projection() -> None:
    """Queries may be a slice of wider rows."""
    world = paged([20, 40], 16, 2, 16, torch.float32)
    wide = torch.randn(2, 8, 16, device=DEVICE)
    for attend in op.IMPLEMENTATIONS.values():
        out = attend(*arguments(world, wide[:, :4]), 0.3, 64)
        assert out.is_contiguous()
        assert relative_error(out, expected(wide[:, :4], world, 0.3)) < TOLERANCE[torch.float32]


def test_padding_on_the_dummy_row_does_not_disturb() -> None:
    """Padding requests share one row of dummy pages; the others' results are as without them."""
    world = paged([37, 18], 16, 2, 16, torch.float32)
    q = torch.randn(4, 4, 16, device=DEVICE)
    inputs = arguments(world, q)
    dummy = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    rows, positions = (torch.cat((x, dummy)) for x in inputs[4:])
    rows[2:] = min(set(range(4)) - set(world.rows.tolist()))
    for attend in op.IMPLEMENTATIONS.values():
        out = attend(*inputs[:4], rows, positions, 0.3, 64)
        assert relative_error(out[:2], expected(q[:2], world, 0.3)) < TOLERANCE[torch.float32]


def test_nothing_happens_at_position_minus_one() -> None:
    """Requests at position -1 at the end keep what is there, whether there are others or not."""
    world = paged([40, 3], 16, 1, 16, torch.float32)
    q = torch.randn(7, 2, 16, device=DEVICE)
    for real in (2, 0):
        _, k_cache, v_cache, table, rows, positions = arguments(world, q)
        rows = torch.cat((rows[:real], rows.new_zeros(7 - real)))
        positions = torch.cat((positions[:real], positions.new_full((7 - real,), -1)))
        for name, attend in op.IMPLEMENTATIONS.items():
            out = torch.full_like(q, math.nan)
            attend(q, k_cache, v_cache, table, rows, positions, 0.3, 128, out=out)
            assert out[real:].isnan().all(), name
            if real:
                assert relative_error(out[:real], expected(q[:real], world, 0.3)) < 2e-6, name


def test_large_logits_do_not_overflow() -> None:
    """Logits in the thousands give the softmax of float64, not infinities."""
    world = paged([50], 16, 1, 16, torch.float32)
    q = 300 * torch.randn(1, 2, 16, device=DEVICE)
    out = launched(world, q, 1.0, 3, True, block_tokens=16, min_chunk=16)
    assert relative_error(out, expected(q, world, 1.0)) < 1e-4


@pytest.mark.parametrize("batch", [1, 17, 130])
def test_batches_of_any_size(batch: int) -> None:
    """Requests are found whatever their number, with many more or fewer programs than heads."""
    contexts = torch.randint(1, 40, (batch,)).tolist()
    world = paged(contexts, 16, 1, 16, torch.float32)
    q = torch.randn(batch, 1, 16, device=DEVICE)
    for pieces in (3, 50):
        out = launched(world, q, 0.3, pieces, True, block_tokens=16, min_chunk=16)
        assert relative_error(out, expected(q, world, 0.3)) < TOLERANCE[torch.float32]


def test_writes_where_it_is_told() -> None:
    """The result goes to `out` and nowhere else."""
    world = paged([20, 40], 16, 2, 16, torch.float32)
    q = torch.randn(2, 4, 16, device=DEVICE)
    for attend in op.IMPLEMENTATIONS.values():
        whole = torch.full((4, 4, 16), math.nan, device=DEVICE)
        out = attend(*arguments(world, q), 0.3, 64, out=whole[1:3])
        assert out.data_ptr() == whole[1:3].data_ptr()
        assert relative_error(whole[1:3], expected(q, world, 0.3)) < TOLERANCE[torch.float32]
        assert whole[::3].isnan().all()


def compiled(group: int, dim: int, tuning: op.DecodeTuning) -> sm90_gate.Compiled:
    rows = 1 << (group - 1).bit_length()
    tensors = ("q", "k_cache", "v_cache", "out")
    integers = (
        "batch", "min_blocks", "table_rows", "table_stride", "pages", "q_stride", "page_stride",
        "token_stride",
    )  # fmt: skip
    signature = dict.fromkeys(tensors, "*bf16")
    signature |= dict.fromkeys(("page_table", "rows", "positions", "counters"), "*i32")
    signature |= dict.fromkeys(("partial", "log_sums"), "*fp32")
    signature |= dict.fromkeys(integers, "i32") | {"qk_scale": "fp32"}
    variant = sm90_gate.Variant(
        "engine.kernels.decode_attention:_decode_attention_kernel",
        signature,
        {
            "GROUP": group, "M": max(16, rows), "HEAD_DIM": dim, "PAGE_SIZE": 16, "PDL": True,
            "BLOCK_N": tuning.block_tokens, "SCAN": 128, "GROUP_ROWS": rows,
            "COMBINE_ROWS": max(1, min(16, op.COMBINE_ELEMENTS // (rows * dim))),
            "EARLY_BLOCKS": tuning.early_tokens // tuning.block_tokens,
        },
        {"num_warps": tuning.warps, "num_stages": tuning.stages},
        aligned=("q_stride", "page_stride", "token_stride"),
    )  # fmt: skip
    return sm90_gate.run([variant])[0]


@pytest.mark.parametrize(("group", "dim"), [(4, 128), (7, 64), (8, 128)])
@pytest.mark.parametrize("batch", [1, 256])
def test_compiles_for_hopper(group: int, dim: int, batch: int) -> None:
    """Tensor cores fed by asynchronous copies, nothing spilled, two programs fit on an SM."""
    tuning = op.pick_tuning(batch, 8, group)
    made = compiled(group, dim, tuning)
    assert made.stack_bytes == 0
    assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
    assert made.opcodes["HMMA"] > 0
    assert made.opcodes["LDGSTS"] > 0
    assert made.registers <= 65536 // (2 * 32 * made.warps)
    assert made.shared_bytes <= 227 * 1024 // 2 - 1024
