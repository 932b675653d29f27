"""The first kernel of sampling: reads all logits once, in parallel over rows and splits of a row.

For each (row, split) it leaves the best token, which is already the answer for rows that are greedy
or draw from all tokens, the largest logit, the sum of exponentials for log-probabilities, and the
largest logits of many small groups of tokens ("peaks"), from which the filters take a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait
from engine.kernels.sampling_batch import SamplingBatch
from engine.kernels.sampling_random import RUN, TILE, gumbel_of_words, random_words

PEAKS = 1024  # most groups of a row
DRAW_REGISTERS = 128  # told, the assembler does not spill a few for the sake of occupancy
PROGRAMS = 1056  # how many programs keep a GPU of 132 multiprocessors busy: 8 on each


@dataclass(frozen=True, slots=True)
class Scan:
    """What the scan leaves for the kernels after it.

    Attributes:
        splits: S, parts of a row.
        tiles: parts have so many times `TILE` tokens.
        ids: int32[B, S], the best token.
        parts: float32[3, B, S]: the best token's score, the largest logit (NaN if a logit is NaN or
            +inf), the sum of exp(logit - largest logit).
        peaks: float32[B, PEAKS], the largest logits of `splits * groups` groups.
        groups: groups per split.
        found: int32[2, B], set to 0: how many tokens a later kernel picked out.
    """

    splits: int
    tiles: int
    ids: torch.Tensor
    parts: torch.Tensor
    peaks: torch.Tensor
    groups: int
    found: torch.Tensor


@triton.jit
def load_params(row, vocab, temperature, top_k, top_p, min_p) -> tuple[tl.tensor, ...]:
    """A row's 1 / temperature (0 if greedy), top_k, top_p, min_p, and whether these exclude any."""
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least = tl.load(min_p + row)
    k = tl.where((k > 0) & (k < vocab), k, 0)
    greedy = heat < 1e-5
    inverse = tl.where(greedy, 0.0, tl.div_rn(1.0, tl.where(greedy, 1.0, heat)))
    filtered = (greedy == 0) & ((k > 0) | (p < 1.0) | (least > 0.0))
    return inverse, k, p, least, filtered


@triton.jit
def _load_run(logits_row, first, run: tl.constexpr, vocab, RUN: tl.constexpr):
    index = first + run * RUN + tl.arange(0, RUN)
    return tl.load(logits_row + index, mask=index < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def _better(best, best_ids, score, first, run: tl.constexpr, RUN: tl.constexpr):
    ids = first + run * RUN + tl.arange(0, RUN)
    return tl.maximum(best, score), tl.where(score > best, ids, best_ids)


@triton.jit
def _highest(left, right):
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _exp_from(value, base):
    return tl.exp(value - tl.where(base == float("-inf"), 0.0, base))


@kernel(do_not_specialize=["batch", "splits", "tiles"])
def _scan_kernel(
    logits, stride, vocab, temperature, top_k, top_p, min_p, seeds, steps,
    ids, parts, peaks, found, batch, splits, tiles,
    RUN: tl.constexpr, GROUPS: tl.constexpr, PEAKS: tl.constexpr,
    DRAWS: tl.constexpr, FILTERS: tl.constexpr, LOGPROBS: tl.constexpr, STORE_PEAKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    split = tl.program_id(1)
    launch_dependents(PDL)
    wait(PDL)
    logits_row = logits + row.to(tl.int64) * stride
    noisy = False
    if DRAWS:
        inverse, _k, _p, _least, filtered = load_params(
            row, vocab, temperature, top_k, top_p, min_p
        )
        noisy = inverse > 0
        if FILTERS:
            noisy = noisy & (filtered == 0)
        seed = tl.load(seeds + row)
        step = tl.load(steps + row)
    best = tl.full([RUN], float("-inf"), tl.float32)
    top = tl.full([RUN], float("-inf"), tl.float32)
    total = tl.zeros([RUN], tl.float32)
    best_ids = tl.zeros([RUN], tl.int32)
    for tile in range(tiles):
        first = (split * tiles + tile) * 4 * RUN
        a = _load_run(logits_row, first, 0, vocab, RUN)
        b = _load_run(logits_row, first, 1, vocab, RUN)
        c = _load_run(logits_row, first, 2, vocab, RUN)
        d = _load_run(logits_row, first, 3, vocab, RUN)
        higher = _highest(_highest(top, _highest(a, b)), _highest(c, d))
        if LOGPROBS:
            total = total * _exp_from(top, higher) + _exp_from(a, higher) + _exp_from(b, higher)
            total += _exp_from(c, higher) + _exp_from(d, higher)
        top = higher
        if DRAWS:  # noqa: SIM102 - decided by the compiler
            if noisy:
                counters = first // 4 + tl.arange(0, RUN)
                ra, rb, rc, rd = random_words(seed, step, counters)
                a = a * inverse + gumbel_of_words(ra)
                b = b * inverse + gumbel_of_words(rb)
                c = c * inverse + gumbel_of_words(rc)
                d = d * inverse + gumbel_of_words(rd)
        best, best_ids = _better(best, best_ids, a, first, 0, RUN)
        best, best_ids = _better(best, best_ids, b, first, 1, RUN)
        best, best_ids = _better(best, best_ids, c, first, 2, RUN)
        best, best_ids = _better(best, best_ids, d, first, 3, RUN)
    here = row * splits + split
    each = batch * splits
    score = tl.max(best, axis=0)
    broken = tl.max((top < float("inf")).to(tl.int32) ^ 1, axis=0)
    highest = tl.max(top, axis=0)
    tl.store(ids + here, tl.min(tl.where(best == score, best_ids, vocab), axis=0))
    tl.store(parts + here, score)
    tl.store(parts + each + here, tl.where(broken == 1, float("nan"), highest))
    if LOGPROBS:
        tl.store(parts + 2 * each + here, tl.sum(total * _exp_from(top, highest), axis=0))
    if STORE_PEAKS:
        group = tl.max(tl.reshape(top, [GROUPS, RUN // GROUPS]), axis=1)
        target = peaks + row * PEAKS + split * GROUPS + tl.arange(0, GROUPS)
        tl.store(target, group)
        if split == 0:
            tl.store(found + row, 0)
            tl.store(found + batch + row, 0)


def splits_bound(splits: int) -> int:
    """Lanes for the splits of a row; the same for all usual shapes, which saves compilations."""
    return max(64, triton.next_power_of_2(splits))


def scan(logits: torch.Tensor, batch: SamplingBatch) -> Scan:
    """Launch the scan of float logits [B, V]."""
    rows, vocab = logits.shape
    tiles_of_row = triton.cdiv(vocab, TILE)
    splits = min(tiles_of_row, triton.cdiv(PROGRAMS, rows), PEAKS)
    tiles = triton.cdiv(tiles_of_row, splits)
    splits = triton.cdiv(tiles_of_row, tiles)
    groups = PEAKS // triton.next_power_of_2(splits)
    logprobs = batch.needs_logprobs or batch.max_top_logprobs > 0
    peaks = batch.truncates or batch.max_top_logprobs > 0
    new = torch.empty
    left = Scan(
        splits, tiles,
        new(rows, splits, dtype=torch.int32, device=logits.device),
        new(3, rows, splits, dtype=torch.float32, device=logits.device),
        new(rows, PEAKS if peaks else 0, dtype=torch.float32, device=logits.device),
        groups,
        new(2, rows, dtype=torch.int32, device=logits.device),
    )  # fmt: skip
    _scan_kernel[(rows, splits)](
        logits, logits.stride(0), vocab, batch.temperature, batch.top_k, batch.top_p, batch.min_p,
        batch.seeds, batch.steps, left.ids, left.parts, left.peaks, left.found, rows, splits,
        tiles, RUN=RUN, GROUPS=groups if peaks else 1, PEAKS=PEAKS, DRAWS=not batch.all_greedy,
        FILTERS=batch.truncates, LOGPROBS=logprobs, STORE_PEAKS=peaks,
        num_warps=4 if batch.all_greedy else 8,
        maxnreg=None if batch.all_greedy else DRAW_REGISTERS, **launch_options(logits.device),
    )  # fmt: skip
    return left
