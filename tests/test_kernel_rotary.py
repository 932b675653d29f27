"""QK-norm, rotary embedding and the write to the cache, of queries, keys and values in one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, relative_error

from engine.kernels.rotary import IMPLEMENTATIONS, QKNorm

EPS = 1e-6
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


@dataclass
class Given:
    """Tokens of several requests, and a cache in which nothing is a number yet."""

    qkv: torch.Tensor
    bias: torch.Tensor | None
    norm: QKNorm | None
    cos_sin: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    page_table: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor

    def arguments(self) -> tuple[object, ...]:
        return (
            self.qkv, self.bias, self.norm, self.cos_sin, self.positions, self.rows,
            self.page_table, self.k_cache, self.v_cache,
        )  # fmt: skip


def given(
    dtype: torch.dtype,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 16,
    page_size: int = 16,
    parts: int = 0,
    bias: bool = False,
    norm: bool = False,
) -> Given:
    places = [(3, 0), (3, 1), (3, 2), (0, 17), (5, 63), (1, 64), (2, 40), (4, 15), (4, 16)]
    tokens, longest, width = len(places), 65, (heads + 2 * kv_heads) * dim
    shape = (tokens, width) if parts == 0 else (parts, tokens, width)
    pages = -(-longest // page_size)
    table = torch.randperm(6 * pages, dtype=torch.int32).view(6, pages)
    angles = torch.rand(longest, dim // 2) * 2 * math.pi
    cache = torch.full((6 * pages, page_size, kv_heads, dim), math.nan, dtype=dtype)

    def weights(count: int) -> torch.Tensor:
        return (torch.rand(count) + 0.5).to(DEVICE, dtype)

    return Given(
        torch.randn(shape).to(DEVICE, dtype if parts == 0 else torch.float32),
        torch.randn(width).to(DEVICE, dtype) if bias else None,
        QKNorm(weights(dim), weights(dim), EPS) if norm else None,
        torch.cat([angles.cos(), angles.sin()], 1).to(DEVICE),
        torch.tensor([x for _, x in places], dtype=torch.int32, device=DEVICE),
        torch.tensor([row for row, _ in places], dtype=torch.int32, device=DEVICE),
        table.to(DEVICE),
        cache.to(DEVICE),
        cache.clone().to(DEVICE),
    )


def expected(world: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values in float64, [T, heads, D] each."""
    kv_heads, dim = world.k_cache.shape[2:]
    qkv = (world.qkv if world.qkv.ndim == 2 else world.qkv.sum(0)).double()
    if world.bias is not None:
        qkv = qkv + world.bias.double()
    qkv = qkv.view(len(qkv), -1, dim)
    q, k, v = qkv.split([qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)
    if world.norm is not None:
        q, k = (
            x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
            for x, weight in ((q, world.norm.query), (k, world.norm.key))
        )
    half = dim // 2
    turns = torch.polar(
        torch.ones_like(world.cos_sin[:, half:]).double(),
        torch.atan2(world.cos_sin[:, half:].double(), world.cos_sin[:, :half].double()),
    )[world.positions.long()][:, None]
    rotated = (torch.complex(x[..., :half], x[..., half:]) * turns for x in (q, k))
    q, k = (torch.cat([x.real, x.imag], -1) for x in rotated)
    return q, k, v


def check(implementation: str, world: Given) -> None:
    """Queries come back, keys and values lie in their slots, and in no other."""
    tolerance = TOLERANCE[world.k_cache.dtype]
    q, k, v = expected(world)
    into = torch.full(q.shape, torch.nan, dtype=world.k_cache.dtype, device=DEVICE)
    out = IMPLEMENTATIONS[implementation](*world.arguments(), out=into)
    assert out.data_ptr() == into.data_ptr()
    assert out.dtype == world.k_cache.dtype
    assert out.is_contiguous()
    assert relative_error(out, q) < tolerance
    assert torch.equal(IMPLEMENTATIONS[implementation](*world.arguments()), out)
    size = world.k_cache.shape[1]
    index = world.positions.long()
    pages = world.page_table[world.rows.long(), index // size].long()
    written = torch.zeros(world.k_cache.shape[:2], dtype=torch.bool, device=DEVICE)
    written[pages, index % size] = True
    for cache, wanted in ((world.k_cache, k), (world.v_cache, v)):
        assert relative_error(cache[pages, index % size], wanted) < tolerance
        assert cache[~written].isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_page_sizes(implementation: str, dtype: torch.dtype, page_size: int) -> None:
    """Slots are found through the page table, whatever the size of a page."""
    check(implementation, given(dtype, page_size=page_size))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parts", [0, 1, 2, 3, 4])
def test_parts_bias_and_norm(implementation: str, dtype: torch.dtype, parts: int) -> None:
    """Parts are summed, the bias added, queries and keys normed, in this order."""
    check(implementation, given(dtype, parts=parts, bias=True, norm=True))
    if parts == 0:
        check(implementation, given(dtype, bias=True))
        check(implementation, given(dtype, norm=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 8), (5, 1, 24), (4, 4, 2), (32, 8, 8), (8, 2, 96)]
)
def test_shapes(implementation: str, heads: int, kv_heads: int, dim: int) -> None:
    """Blocks of heads that hold queries, keys and values at once, and odd head sizes."""
    shape = dict(heads=heads, kv_heads=kv_heads, dim=dim)
    check(implementation, given(torch.float32, **shape, norm=True, bias=True))
    check(implementation, given(torch.float32, **shape))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_many_tokens(implementation: str) -> None:
    """Long steps are cut otherwise, and give the same."""
    world = given(torch.float32, heads=6, kv_heads=2, dim=4, norm=True)
    few = {n: getattr(world, n) for n in ("qkv", "positions", "rows")}
    for name, value in few.items():
        setattr(world, name, value.repeat(30, *[1] * (value.ndim - 1)))
    if DEVICE.type == "cpu" and implementation == "triton":
        world.qkv, world.positions, world.rows = (x[:257] for x in (
            world.qkv, world.positions, world.rows
        ))  # fmt: skip
    check(implementation, world)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_go_where_they_are_wanted(implementation: str) -> None:
    """With `out` given, that is what is filled and returned."""
    world = given(torch.float32)
    out = torch.full((len(world.rows), 6, 16), math.nan, device=DEVICE)
    assert IMPLEMENTATIONS[implementation](*world.arguments(), out=out) is out
    assert relative_error(out, expected(world)[0]) < 1e-6


def test_compiles_for_hopper_without_spills() -> None:
    """The shapes of the models that are to be fast stay in registers; loads are 16 bytes wide."""

    def variant(heads: int, kv_heads: int, parts: int, norm: bool, block: int) -> sm90_gate.Variant:
        kind = "*bf16" if parts == 1 else "*fp32"
        signature = {
            "qkv": kind, "bias": "*bf16", "query_norm": "*bf16", "key_norm": "*bf16",
            "eps": "fp32", "cos_sin": "*fp32", "positions": "*i32", "rows": "*i32",
            "page_table": "*i32", "table_stride": "i32", "k_cache": "*bf16", "v_cache": "*bf16",
            "out": "*bf16", "part_stride": "i32",
        }  # fmt: skip
        constants = dict(
            HEADS=heads, KV_HEADS=kv_heads, DIM=128, PAGE=16, BLOCK_HEADS=block, HALF=64,
            PARTS=parts, HAS_BIAS=False, HAS_NORM=norm, PDL=True, bias=None,
        )  # fmt: skip
        if not norm:
            constants |= dict(query_norm=None, key_norm=None)
        return sm90_gate.Variant(
            "engine.kernels.rotary:_rotary_kernel", signature, constants,
            {"num_warps": 1 if block == 4 else 4}, aligned=("part_stride",),
        )  # fmt: skip

    made = sm90_gate.run([
        variant(32, 8, 1, False, 4), variant(16, 8, 4, True, 4), variant(32, 4, 1, True, 16),
    ])  # fmt: skip
    for one in made:
        assert one.stack_bytes == 0
        assert one.opcodes["STL"] == one.opcodes["LDL"] == 0
        assert one.opcodes["LDG.E.128"] > 0
        assert one.opcodes["STG.E.128"] > 0
