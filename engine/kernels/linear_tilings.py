"""How a linear layer of few rows is cut up, as measured; None leaves it to somebody else.

The rules for one row and for a few reproduce, within 3 %, the best of some 3,000 measured
candidates for the layers of Llama-3.1-8B, Qwen3-30B-A3B and Qwen3-0.6B, each by itself and in the
chain of a whole layer (`benchmarks/linear_chain.py`; the story is in `benchmarks/NOTES.md`). The
rule for Hopper's kernel is a score that picks one of the best candidates that were measured there.
What they say: one wave of programs, about one on each multiprocessor, with many tiles in flight
beats several smaller ones; where the weight has too few rows for that, K is split; activations are
read again by every program, so tiles must not be too narrow.
"""

from __future__ import annotations

from functools import cache

from engine.kernels.gemv import GemvTiling
from engine.kernels.linear_hopper import COLUMNS, HopperTiling
from engine.kernels.skinny_linear import Tiling

MOST_ROWS = 64  # beyond that the products are no longer bound by the weights' bandwidth
MOST_HOPPER_ROWS = 128  # beyond that cuBLAS, whose weights are an instruction's rows, pads less
MOST_GATED_ROWS = 256  # saving the activation's own kernel pays for longer
HOPPER_ROWS = (17, 33, 65, 129, 193, 233)  # the first rows of each class that is cut up alike
SMS = 132  # multiprocessors of an H100 or H200; elsewhere the tilings are right, if less good
_MOST_SPLITS = 8
_VOCABULARY = 32_768  # rows from which on a weight fills the GPU several times over


@cache
def gemv_tiling(out_features: int, inner: int, *, norm: bool, gated: bool) -> GemvTiling:
    """The tiling of a single row.

    Args:
        out_features: rows of the weight; of its gate alone, if gated.
        inner: columns of the weight.
        norm: the input is normed in passing, which every program does for itself.
        gated: two products share a program.
    """
    if gated:
        return GemvTiling(8, 256, 4) if inner >= 4096 else GemvTiling(8, 512, 4)
    if out_features >= _VOCABULARY and inner > 1024:
        return GemvTiling(4, 2048, 8)
    if norm:
        return GemvTiling(8, 256, 8) if inner >= 4096 else GemvTiling(4, 512, 4)
    return GemvTiling(2, 2048, 4) if 2048 <= inner < 4096 else GemvTiling(4, 512, 4)


@cache
def skinny_tiling(
    rows: int, out_features: int, inner: int, *, gated: bool, whole: bool
) -> Tiling | None:
    """The tiling of `[rows, inner] x [out_features, inner].T`, 2 <= rows.

    Args:
        rows: of the activations.
        out_features: rows of the weight; of its gate alone, if gated.
        inner: columns of the weight.
        gated: two products share a program.
        whole: the result may not come in parts.
    """
    if rows > MOST_ROWS:
        return None
    if gated:
        if out_features < 64 * SMS:
            return Tiling(64, 128, 1, _stages(inner, 128, 4), 4)
        return Tiling(64, 128, 1, 4, 4) if rows <= 32 else Tiling(64, 64, 1, 6, 4)
    if whole or out_features >= _VOCABULARY:
        return Tiling(64, 128, 1, _stages(inner, 128, 5 if rows <= 16 else 3), 4)
    tiles = -(-out_features // 64)
    if tiles > SMS // 2:
        if inner >= 4096:
            waves = -(-tiles // (SMS - 1))  # a program takes 64 rows at most
            return Tiling(64, 128, 1, 6, 4, tiles=min(waves * (SMS - 1), out_features))
        return Tiling(64, 64, 4, _stages(inner // 4, 64, 6), 4)
    split = min(_MOST_SPLITS, 1 << ((SMS // tiles).bit_length() - 1))
    while split > 1 and inner < 256 * split:
        split //= 2
    each = -(-inner // split)
    step = 128 if each >= 384 else 64
    return Tiling(64, step, split, _stages(each, step, 6), 4)


@cache
def hopper_tiling(
    rows: int, out_features: int, inner: int, *, gated: bool, whole: bool
) -> HopperTiling | None:
    """The tiling for Hopper's kernel, or None where another one is faster.

    The arguments are those of `skinny_tiling`. Blocks are to fill the multiprocessors once or
    twice; with few weight rows that takes narrow tiles or splits, both of which cost something.
    """
    few = 16 if inner < 4096 else 32  # up to here the skinny products are as good
    most = MOST_GATED_ROWS if gated else MOST_HOPPER_ROWS
    if not few < rows <= most or (whole and out_features >= _VOCABULARY):
        return None
    if inner >= 4096 and MOST_HOPPER_ROWS < rows <= 232:  # cuBLAS is fast enough for two kernels
        return None
    groups, cluster = -(-rows // 64), 1
    if groups % 2 == 0 and not gated:
        groups, cluster = groups // 2, 2
    best, best_score = None, 0.25  # a GPU that is emptier than that is cuBLAS's
    for features in (32, 48, 64, 80, 96, 112, 128):
        for split in range(1, 2 if gated or whole else _MOST_SPLITS + 1):
            tiling = HopperTiling(groups, features, cluster, split)
            score = _hopper_score(tiling, out_features * (2 if gated else 1), inner)
            if tiling.fits and score > best_score:
                best, best_score = tiling, score
    return best


def _hopper_score(tiling: HopperTiling, weight_rows: int, inner: int) -> float:
    """Share of the multiprocessors at work, less what narrow tiles, splits and waves cost."""
    blocks = -(-weight_rows // tiling.features) * tiling.cluster * tiling.split
    waves = -(-blocks // SMS)
    steps = inner // COLUMNS / tiling.split
    if steps < 4:
        return 0.0
    score = blocks / (SMS * waves) - 0.04 * (tiling.split - 1) - 0.02 * (waves - 1)
    if tiling.features < 64:
        score -= 0.05
    return score if steps * waves <= 128 else score - 0.1


def _stages(inner: int, step: int, most: int) -> int:
    """Tiles in flight: no more than there are."""
    return max(2, min(most, -(-inner // step)))
