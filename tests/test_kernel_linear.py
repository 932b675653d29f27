"""Linear layers of one row, of a few and of many, with the norms and additions around them."""

from __future__ import annotations

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, ON_GPU, relative_error

from engine.kernels import linear
from engine.kernels.gemv import GemvTiling, InputNorm, gemv
from engine.kernels.linear_tilings import MOST_ROWS, gemv_tiling, skinny_tiling
from engine.kernels.parts import sum_parts
from engine.kernels.skinny_linear import Tiling, skinny_linear

EPS = 1e-5
# A GPU multiplies fp32 in the matrix units as tf32, which has 10 bits of mantissa.
TOLERANCE = {torch.float32: 2e-3 if ON_GPU else 3e-6, torch.bfloat16: 5e-3}
ROWS = [1, 2, 5, 16, 33, MOST_ROWS, MOST_ROWS + 1]


def randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def gated(product: torch.Tensor) -> torch.Tensor:
    gate, up = product.chunk(2, -1)
    return gate * gate.sigmoid() * up


def whole(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[T, N] of a result, which is in the model's dtype, or parts in fp32."""
    assert x.dtype == (torch.float32 if x.ndim == 3 else dtype)
    return sum_parts(x)


@pytest.mark.parametrize("implementation", linear.LINEAR)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ROWS)
def test_linear(implementation: str, dtype: torch.dtype, rows: int) -> None:
    """x @ weight.T of odd sizes; in one part if that is asked for, or if there is a bias."""
    apply = linear.LINEAR[implementation]
    for features, inner in ((70, 520), (1, 72), (129, 40)):
        x, weight = randn(rows, inner, dtype=dtype), randn(features, inner, dtype=dtype)
        bias = randn(features, dtype=dtype)
        expected = product(x, weight)
        most = TOLERANCE[dtype]
        if expected.numel() == 1:  # a single sum may be next to nothing, what it is made of not
            most *= (product(x.abs(), weight.abs()) / expected.abs()).item()
        assert relative_error(whole(apply(x, weight), dtype), expected) < most
        out = apply(x, weight, whole=True)
        assert (out.dtype, out.shape) == (dtype, (rows, features))
        assert relative_error(out, expected) < most
        biased, added = apply(x, weight, bias), expected + bias.double()
        if expected.numel() == 1:
            most *= (expected.abs() / added.abs()).item()
        assert relative_error(whole(biased, dtype), added) < most


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_splits_are_parts(dtype: torch.dtype) -> None:
    """A weight of few rows and a long inner dimension comes in parts, whose sum is the product."""
    x, weight = randn(3, 2050, dtype=dtype), randn(40, 2050, dtype=dtype)
    out = linear.linear_triton(x, weight)
    assert out.ndim == 3
    assert out.shape[0] > 1
    assert relative_error(out.sum(0), product(x, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("implementation", linear.NORM_LINEAR)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS + 1])
@pytest.mark.parametrize("pending", [None, 0, 2])
def test_norm_before(
    implementation: str, dtype: torch.dtype, rows: int, pending: int | None
) -> None:
    """What is pending joins the stream, which is normed and multiplied, gated or not."""
    width, features = 136, 44
    stream, scale = randn(rows, width, dtype=dtype), randn(width, dtype=dtype)
    weight = randn(features, width, dtype=dtype) / 8
    added, total = None, stream.double()
    if pending is not None:
        shape = (pending, rows, width) if pending else (rows, width)
        added = randn(*shape, dtype=torch.float32 if pending else dtype)
        total = total + sum_parts(added).double()
    expected = product(normed(total, scale), weight)
    before = stream.clone()
    for op, wanted in (
        (linear.NORM_LINEAR, expected),
        (linear.NORM_GATED_LINEAR, gated(expected)),
    ):
        residual = before.clone()
        out = whole(op[implementation](added, residual, scale, EPS, weight), dtype)
        assert out.shape == wanted.shape
        assert relative_error(out, wanted) < 3 * TOLERANCE[dtype]
        assert relative_error(residual, total) < TOLERANCE[dtype]
    out = linear.NORM_LINEAR[implementation](added, before, scale, EPS, weight, whole=True)
    assert out.dtype == dtype
    assert relative_error(out, expected) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("implementation", linear.RESIDUAL_LINEAR)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_addition_after(implementation: str, dtype: torch.dtype, rows: int, bias: bool) -> None:
    """The product is added to the stream or is pending, not both and not neither."""
    x, weight = randn(rows, 72, dtype=dtype), randn(50, 72, dtype=dtype)
    residual = randn(rows, 50, dtype=dtype)
    offset = randn(50, dtype=dtype) if bias else None
    total = residual.double() + product(x, weight)
    if offset is not None:
        total = total + offset.double()
    out = linear.RESIDUAL_LINEAR[implementation](x, weight, offset, residual)
    found = residual.double() if out is None else residual.double() + sum_parts(out).double()
    assert relative_error(found, total) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inner", [1, 63, 64, 130])
@pytest.mark.parametrize("form", ["plain", "gated", "split", "few tiles"])
def test_tilings_of_few_rows(dtype: torch.dtype, inner: int, form: str) -> None:
    """However a product is cut up: ragged rows, a ragged inner dimension, splits without work."""
    features, rows = 50, 7
    tiling = Tiling(32, 64, 1, 2, 4)
    if form == "split":
        tiling = tiling._replace(split=3)
    elif form == "few tiles":  # 50 rows over 3 programs: 17, 17 and 16
        tiling = tiling._replace(tiles=3)
    is_gated = form == "gated"
    x, weight = randn(rows, inner, dtype=dtype), randn(features, inner, dtype=dtype)
    expected = product(x, weight)
    out = whole(skinny_linear(x, weight, tiling, gated=is_gated), dtype)
    wanted = gated(expected) if is_gated else expected
    assert out.shape == wanted.shape
    assert relative_error(out, wanted) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inner", [3, 128, 300])
@pytest.mark.parametrize("is_gated", [False, True])
def test_tilings_of_one_row(dtype: torch.dtype, inner: int, is_gated: bool) -> None:
    """One row, normed or not, gated or not, added or not."""
    features = 22
    x, weight = randn(1, inner, dtype=dtype), randn(features, inner, dtype=dtype)
    scale = randn(inner, dtype=dtype)
    for tiling in (GemvTiling(4, 128, 4), GemvTiling(1, 256, 1)):
        for norm in (None, InputNorm(scale, EPS)):
            expected = product(x if norm is None else normed(x, scale), weight)
            wanted = gated(expected) if is_gated else expected
            out = gemv(x, weight, tiling, norm=norm, gated=is_gated)
            assert out.dtype == dtype
            assert relative_error(out, wanted) < 2 * TOLERANCE[dtype]
            residual = randn(*wanted.shape, dtype=dtype)
            total = residual.double() + wanted
            out = gemv(x, weight, tiling, norm=norm, gated=is_gated, residual=residual)
            assert out is residual
            assert relative_error(residual, total) < 2 * TOLERANCE[dtype]


def test_every_tiling_covers_its_weight() -> None:
    """No rule leaves rows of a weight to nobody, or cuts the gated form over K."""
    for rows in (2, 16, 17, MOST_ROWS):
        for features in (1, 8, 48, 64, 2048, 4096, 6144, 14336, 28672, 32768, 128256):
            for inner in (8, 768, 1024, 2048, 4096, 14336):
                for is_gated in (False, True):
                    for one in (False, True):
                        found = skinny_tiling(rows, features, inner, gated=is_gated, whole=one)
                        assert found is not None
                        tiles = found.tiles or -(-features // found.rows)
                        assert -(-features // tiles) <= found.rows
                        assert found.split == 1 or not (is_gated or one)
                    assert gemv_tiling(features, inner, norm=True, gated=is_gated).rows >= 1
    assert skinny_tiling(MOST_ROWS + 1, 64, 64, gated=False, whole=True) is None


_SKINNY = {"x": "*bf16", "weight": "*bf16", "m": "i32", "n": "i32", "k": "i32",
           "k_per_split": "i32", "rows_per_tile": "i32"}  # fmt: skip


def test_few_rows_compile_for_hopper_without_spills() -> None:
    """Weights come through asynchronous copies into matrix units; nothing goes to local memory."""

    def variant(batch: int, tiling: Tiling, is_gated: bool) -> sm90_gate.Variant:
        return sm90_gate.Variant(
            "engine.kernels.skinny_linear:_skinny_kernel",
            {**_SKINNY, "out": "*bf16" if tiling.split == 1 else "*fp32"},
            dict(
                BM=batch, BN=tiling.rows, BK=tiling.inner, STAGES=tiling.stages, GATED=is_gated,
                PREFETCH=tiling.prefetch, EVEN=True, PDL=True,
            ),
            {"num_warps": tiling.warps}, aligned=("n", "k", "k_per_split"),
        )  # fmt: skip

    variants = []
    for batch in (16, 64):
        for shape, is_gated in (
            ((6144, 4096), False),
            ((4096, 4096), False),
            ((14336, 4096), True),
        ):
            tiling = skinny_tiling(batch, *shape, gated=is_gated, whole=False)
            assert tiling is not None
            variants.append(variant(batch, tiling, is_gated))
    for made in sm90_gate.run(variants):
        assert made.stack_bytes == 0
        assert made.opcodes["STL"] == made.opcodes["LDL"] == 0
        assert made.opcodes["HGMMA"] + made.opcodes["HMMA"] > 0
        assert made.opcodes["LDGSTS"] > 0


def test_one_row_compiles_for_hopper_without_spills() -> None:
    """The weight is read 16 bytes at a time, by every form of the kernel."""

    def variant(inner: int, norm: bool, is_gated: bool, add: bool) -> sm90_gate.Variant:
        tiling = gemv_tiling(4096, inner, norm=norm, gated=is_gated)
        signature = {"x": "*bf16", "norm_weight": "*bf16", "eps": "fp32", "weight": "*bf16",
                     "residual": "*bf16", "out": "*bf16", "n": "i32", "k": "i32"}  # fmt: skip
        constants = dict(
            BN=tiling.rows, BK=tiling.inner, NORM=norm, GATED=is_gated, ADD=add, PDL=True
        )
        absent = {"norm_weight": None} if not norm else {}
        absent |= {"residual": None} if not add else {}
        return sm90_gate.Variant(
            "engine.kernels.gemv:_gemv_kernel", signature, {**constants, **absent},
            {"num_warps": tiling.warps}, aligned=("n", "k"),
        )  # fmt: skip

    made = sm90_gate.run([
        variant(4096, True, False, False), variant(4096, True, True, False),
        variant(14336, False, False, True), variant(1024, True, True, False),
    ])  # fmt: skip
    for one in made:
        assert one.stack_bytes == 0
        assert one.opcodes["STL"] == one.opcodes["LDL"] == 0
        assert one.opcodes["LDG.E.128"] > 0
