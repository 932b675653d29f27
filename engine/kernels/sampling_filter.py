"""Picks out the tokens that may pass top-k, top-p and min-p, without sorting.

Everything is told by a token's distance (best logit - logit) / temperature >= 0. For each row a
limit is found that the filters cannot exceed, and the few tokens within it are copied out:

* min-p says the limit itself, -log(min_p);
* top-k: the k-th nearest of the groups' nearest tokens, since k groups hold k tokens;
* top-p alone: a token further than log(V / (1 - top_p)) cannot matter, and neither can one beyond a
  pivot within which the masses already add up to top_p.

Copies are made in any order; what is computed from them does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait
from engine.kernels.sampling_batch import SamplingBatch
from engine.kernels.sampling_random import TILE
from engine.kernels.sampling_scan import PEAKS, Scan, load_params, splits_bound

CAPACITY = 16384  # tokens copied out of a row at most; beyond, the row itself is searched
PIVOTS = 8
PIVOT_STEP = 1.5  # of the distance, hence a factor of 4.5 in probability
GATHER_BLOCK = 2048
MASS_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Gathered:
    """Tokens that may pass, row by row; `found` tells how many were found, kept or not.

    Attributes:
        found: int32[B].
        distances: float32[B, CAPACITY].
        ids: int32[B, CAPACITY].
    """

    found: torch.Tensor
    distances: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class Masses:
    """Probability masses of the rows that have top-p but no top-k, split by split.

    Attributes:
        within: float32[B, S, PIVOTS], the mass nearer than each pivot; the best token has mass 1.
        total: int64[B, S] of all tokens that pass min-p, in units of 2^-40.
    """

    within: torch.Tensor
    total: torch.Tensor


@triton.jit
def highest_logit(parts, row, batch, splits, SPLITS: tl.constexpr) -> tl.tensor:
    """The row's largest logit, from the scan."""
    split = tl.arange(0, SPLITS)
    here = parts + batch * splits + row * splits + split
    return tl.max(tl.load(here, mask=split < splits, other=float("-inf")), axis=0)


@triton.jit
def farthest(min_p) -> tl.tensor:
    """The largest distance that min-p lets through; finite, so that -inf logits never pass."""
    return tl.where(min_p > 0.0, -tl.log(tl.where(min_p > 0.0, min_p, 1.0)), 3.4028234663852886e38)


@triton.jit
def masses_of(distances) -> tl.tensor:
    """Probability relative to the best token's, in units of 2^-40: sums are exact in any order."""
    return (tl.exp(-distances) * 1099511627776.0).to(tl.int64)


@triton.jit
def _limit_of_peaks(peaks_row, number, top, inverse, k, PEAKS: tl.constexpr):
    """A distance, at most 1 % above that of the k-th nearest peak; huge if there are fewer.

    Distances are not negative, so their bits are ordered as they are: digit by digit of base 16,
    the largest number with fewer than k peaks below it, in the upper half of the bits.
    """
    index = tl.arange(0, PEAKS)
    peak = tl.load(peaks_row + index, mask=index < number, other=float("-inf"))
    bits = ((top - peak) * inverse).to(tl.uint32, bitcast=True)
    ways = tl.arange(0, 16)
    base = tl.zeros([16], tl.uint32)
    for digit in tl.static_range(4):
        pivots = base + (ways << (28 - 4 * digit)).to(tl.uint32, bitcast=True)
        nearer = tl.sum((bits[None, :] < pivots[:, None]).to(tl.int32), axis=1)
        way = tl.sum((nearer < k).to(tl.int32), axis=0) - 1
        base += (way << (28 - 4 * digit)).to(tl.uint32, bitcast=True)
    edge = tl.minimum(tl.max(base, axis=0), 0x7F7F0000) + 0xFFFF
    return edge.to(tl.float32, bitcast=True)


@triton.jit
def _limit_of_masses(
    within, total, row, splits, p, vocab, SPLITS: tl.constexpr, PIVOTS: tl.constexpr,
    PIVOT_STEP: tl.constexpr,
):  # fmt: skip
    split = tl.arange(0, SPLITS)
    pivot = tl.arange(0, PIVOTS)
    index = (row * splits + split[:, None]) * PIVOTS + pivot[None, :]
    nearer = tl.sum(tl.load(within + index, mask=split[:, None] < splits, other=0.0), axis=0)
    masses = tl.load(total + row * splits + split, mask=split < splits, other=0)
    # 0.1 % more than needed, because these sums are rounded
    needed = 1.001 * p * (tl.sum(masses, axis=0).to(tl.float32) * 9.094947017729282e-13)
    enough = tl.where(nearer >= needed, (pivot + 1) * PIVOT_STEP, 3.4028234663852886e38)
    negligible = tl.log(vocab / (1.0 - p)) + 0.01
    return tl.minimum(tl.min(enough, axis=0), negligible)


@kernel(do_not_specialize=["batch", "splits", "tiles"])
def _masses_kernel(
    logits, stride, vocab, temperature, top_k, top_p, min_p, parts, within, total, batch, splits,
    tiles, SPLITS: tl.constexpr, BLOCK: tl.constexpr, PIVOTS: tl.constexpr,
    PIVOT_STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    split = tl.program_id(1)
    launch_dependents(PDL)
    wait(PDL)
    inverse, k, p, least, filtered = load_params(row, vocab, temperature, top_k, top_p, min_p)
    if filtered & (k == 0) & (p < 1.0):
        top = highest_logit(parts, row, batch, splits, SPLITS)
        limit = farthest(least)
        pivot = tl.arange(0, PIVOTS)
        edges = (pivot + 1) * PIVOT_STEP
        nearer = tl.zeros([PIVOTS], tl.float32)
        mass = tl.zeros([BLOCK], tl.int64)
        for tile in range(tiles):
            index = (split * tiles + tile) * BLOCK + tl.arange(0, BLOCK)
            value = tl.load(
                logits + row.to(tl.int64) * stride + index, mask=index < vocab, other=float("-inf")
            )
            distance = (top - value.to(tl.float32)) * inverse
            distance = tl.where(distance <= limit, distance, float("inf"))
            weight = tl.exp(-distance)
            inner = tl.where(distance[None, :] < edges[:, None], weight[None, :], 0.0)
            nearer += tl.sum(inner, axis=1)
            mass += masses_of(distance)
        here = row * splits + split
        tl.store(within + here * PIVOTS + pivot, nearer)
        tl.store(total + here, tl.sum(mass, axis=0))


@kernel(do_not_specialize=["batch", "splits", "groups", "tiles"])
def _gather_kernel(
    logits, stride, vocab, temperature, top_k, top_p, min_p, parts, peaks, within, total,
    found, distances, ids, batch, splits, groups, tiles,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PEAKS: tl.constexpr,
    PIVOTS: tl.constexpr, PIVOT_STEP: tl.constexpr, CAPACITY: tl.constexpr,
    FIXED_K: tl.constexpr, TOP_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    split = tl.program_id(1)
    launch_dependents(PDL)
    wait(PDL)
    if FIXED_K:
        inverse = 1.0
        k = FIXED_K
        p = 1.0
        least = 0.0
        filtered = row >= 0
    else:
        inverse, k, p, least, filtered = load_params(row, vocab, temperature, top_k, top_p, min_p)
    if filtered:
        top = highest_logit(parts, row, batch, splits, SPLITS)
        limit = farthest(least)
        if k > 0:
            peaks_row = peaks + row * PEAKS
            edge = _limit_of_peaks(peaks_row, splits * groups, top, inverse, k, PEAKS)
            limit = tl.minimum(limit, edge)
        if TOP_P:  # noqa: SIM102 - decided by the compiler
            if (k == 0) & (p < 1.0):
                edge = _limit_of_masses(
                    within, total, row, splits, p, vocab, SPLITS, PIVOTS, PIVOT_STEP
                )
                limit = tl.minimum(limit, edge)
        for tile in range(tiles):
            index = (split * tiles + tile) * BLOCK + tl.arange(0, BLOCK)
            value = tl.load(
                logits + row.to(tl.int64) * stride + index, mask=index < vocab, other=float("-inf")
            )
            distance = (top - value.to(tl.float32)) * inverse
            keep = (distance <= limit).to(tl.int32)
            number = tl.sum(keep, axis=0)
            if number > 0:
                start = tl.atomic_add(found + row, number, sem="relaxed")
                slot = start + tl.cumsum(keep, axis=0) - keep
                inside = (keep == 1) & (slot < CAPACITY)
                target = row.to(tl.int64) * CAPACITY + slot
                tl.store(distances + target, distance, mask=inside)
                tl.store(ids + target, index, mask=inside)


def add_masses(logits: torch.Tensor, batch: SamplingBatch, scanned: Scan) -> Masses:
    """Launch the masses of rows that have top-p but no top-k."""
    rows, vocab = logits.shape
    within = torch.empty(rows, scanned.splits, PIVOTS, dtype=torch.float32, device=logits.device)
    total = torch.empty(rows, scanned.splits, dtype=torch.int64, device=logits.device)
    _masses_kernel[(rows, scanned.splits)](
        logits, logits.stride(0), vocab, batch.temperature, batch.top_k, batch.top_p, batch.min_p,
        scanned.parts, within, total, rows, scanned.splits,
        scanned.tiles * (TILE // MASS_BLOCK), SPLITS=splits_bound(scanned.splits),
        BLOCK=MASS_BLOCK, PIVOTS=PIVOTS, PIVOT_STEP=PIVOT_STEP,
        num_warps=4, **launch_options(logits.device),
    )  # fmt: skip
    return Masses(within, total)


def gather(
    logits: torch.Tensor,
    batch: SamplingBatch,
    scanned: Scan,
    masses: Masses | None = None,
    fixed_k: int = 0,
) -> Gathered:
    """Copy out the tokens that may pass the filters, or, with `fixed_k`, the k largest logits."""
    rows, vocab = logits.shape
    capacity = min(CAPACITY, triton.next_power_of_2(vocab))
    found = scanned.found[1 if fixed_k else 0]
    distances = torch.empty(rows, capacity, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, capacity, dtype=torch.int32, device=logits.device)
    within = masses.within if masses else scanned.parts
    total = masses.total if masses else scanned.parts
    _gather_kernel[(rows, scanned.splits)](
        logits, logits.stride(0), vocab, batch.temperature, batch.top_k, batch.top_p, batch.min_p,
        scanned.parts, scanned.peaks, within, total, found, distances, ids, rows, scanned.splits,
        scanned.groups, scanned.tiles * (TILE // GATHER_BLOCK), SPLITS=splits_bound(scanned.splits),
        BLOCK=GATHER_BLOCK, PEAKS=PEAKS, PIVOTS=PIVOTS, PIVOT_STEP=PIVOT_STEP, CAPACITY=capacity,
        FIXED_K=fixed_k, TOP_P=masses is not None, num_warps=8, **launch_options(logits.device),
    )  # fmt: skip
    return Gathered(found, distances, ids)
