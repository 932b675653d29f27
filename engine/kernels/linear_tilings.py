"""Which tiling a linear layer of few rows takes, as measured; None leaves it to cuBLAS."""

from __future__ import annotations

from functools import cache

from engine.kernels.skinny_linear import Tiling

MOST_ROWS = 64


@cache
def choose_tiling(rows: int, out_features: int, inner: int, *, gated: bool) -> Tiling | None:
    """The tiling of `[rows, inner] x [out_features, inner].T`.

    Args:
        rows: of the activations.
        out_features: rows of the weight; of its gate alone, if gated.
        inner: columns of the weight.
        gated: whether two products share a program.
    """
    if rows > MOST_ROWS:
        return None
    if rows == 1:
        return Tiling(4, 2048 if inner % 2048 == 0 else 1024, 1, 1, 8)
    split = 1
    tile = 32 if gated else 64
    while not gated and split < 8 and -(-out_features // tile) * split < 256:
        split *= 2
    return Tiling(tile, 128, split, 4, 4)
