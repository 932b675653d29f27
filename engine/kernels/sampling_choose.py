"""The last kernels of sampling, one program per row: the token, and the most probable tokens.

A filter is a limit on the distance: the largest distance v for which the measure of the tokens
nearer than v (their number, or their mass) is below a target. It is found digit by digit in base
16 of the bits of v, each digit in one pass over the tokens picked out before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait
from engine.kernels.sampling_batch import SamplingBatch
from engine.kernels.sampling_filter import Gathered, Masses, farthest, highest_logit, masses_of
from engine.kernels.sampling_random import gumbel_of_tokens
from engine.kernels.sampling_scan import Scan, load_params, splits_bound

BLOCK = 512  # tokens at a time; a search compares each with 16 edges


@triton.jit
def _load_tokens(
    logits_row, distances_row, ids_row, index, number, dense, top, inverse, limit
):  # fmt: skip
    """Distances (inf beyond the limit) and ids, from the copies or from the row itself."""
    copied = (index < number) & (dense == 0)
    value = tl.load(
        logits_row + index, mask=(index < number) & (dense == 1), other=float("-inf")
    ).to(tl.float32)
    distance = tl.load(distances_row + index, mask=copied, other=float("inf"))
    distance = tl.where(dense == 1, (top - value) * inverse, distance)
    ids = tl.load(ids_row + index, mask=copied, other=0)
    ids = tl.where(dense == 1, index, ids)
    return tl.where(distance <= limit, distance, float("inf")), ids


@triton.jit
def _search(
    logits_row, distances_row, ids_row, number, dense, top, inverse, limit, target,
    BY_MASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest distance for which the tokens that are nearer measure less than `target`."""
    ways = tl.arange(0, 16)
    base = tl.zeros([16], tl.uint32)
    for digit in range(8):
        shift = 28 - 4 * digit
        pivots = base + (ways << shift).to(tl.uint32, bitcast=True)
        measure = tl.zeros([16], tl.int64)
        for start in range(0, number, BLOCK):
            index = start + tl.arange(0, BLOCK)
            distance, _ids = _load_tokens(
                logits_row, distances_row, ids_row, index, number, dense, top, inverse, limit
            )
            nearer = distance.to(tl.uint32, bitcast=True)[None, :] < pivots[:, None]
            if BY_MASS:
                measure += tl.sum(tl.where(nearer, masses_of(distance)[None, :], 0), axis=1)
            else:
                measure += tl.sum(nearer.to(tl.int32), axis=1).to(tl.int64)
        way = tl.sum((measure < target).to(tl.int32), axis=0) - 1
        base += (way << shift).to(tl.uint32, bitcast=True)
    edge = tl.minimum(tl.max(base, axis=0), 0x7F7FFFFF)
    return edge.to(tl.float32, bitcast=True)


@triton.jit
def _mass_within(
    logits_row, distances_row, ids_row, number, dense, top, inverse, limit, BLOCK: tl.constexpr
):  # fmt: skip
    mass = tl.zeros([BLOCK], tl.int64)
    for start in range(0, number, BLOCK):
        index = start + tl.arange(0, BLOCK)
        distance, _ids = _load_tokens(
            logits_row, distances_row, ids_row, index, number, dense, top, inverse, limit
        )
        mass += masses_of(distance)
    return tl.sum(mass, axis=0)


@triton.jit
def _draw_within(
    logits_row, distances_row, ids_row, number, dense, top, inverse, limit, vocab, seed, step,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gumbel-max over the tokens within the limit; the lowest id wins a tie."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_ids = tl.full([BLOCK], 0, tl.int32) + vocab
    for start in range(0, number, BLOCK):
        index = start + tl.arange(0, BLOCK)
        distance, ids = _load_tokens(
            logits_row, distances_row, ids_row, index, number, dense, top, inverse, limit
        )
        score = gumbel_of_tokens(seed, step, ids) - distance
        wins = (score > best) | ((score == best) & (ids < best_ids))
        best_ids = tl.where(wins, ids, best_ids)
        best = tl.where(wins, score, best)
    return tl.min(tl.where(best == tl.max(best, axis=0), best_ids, vocab), axis=0)


@triton.jit
def _log_of_sum(parts, row, batch, splits, SPLITS: tl.constexpr):
    """Log of the sum of the exponentials of a row's logits."""
    split = tl.arange(0, SPLITS)
    inside = split < splits
    here = parts + row * splits + split
    top = tl.load(here + batch * splits, mask=inside, other=float("-inf"))
    total = tl.load(here + 2 * batch * splits, mask=inside, other=0.0)
    highest = tl.max(top, axis=0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return base + tl.log(tl.sum(total * tl.exp(top - base), axis=0))


@kernel(do_not_specialize=["batch", "splits"])
def _choose_kernel(
    logits, stride, vocab, temperature, top_k, top_p, min_p, seeds, steps, scan_ids, parts,
    total, found, distances, ids, tokens, logprobs, last_tokens, rows, batch, splits,
    SPLITS: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr, FILTERS: tl.constexpr,
    TOP_P: tl.constexpr, LOGPROBS: tl.constexpr, FEEDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    launch_dependents(PDL)
    wait(PDL)
    split = tl.arange(0, SPLITS)
    inside = split < splits
    here = row * splits + split
    logits_row = logits + row.to(tl.int64) * stride
    tops = tl.load(parts + batch * splits + here, mask=inside, other=float("-inf"))
    broken = tl.max((tops < float("inf")).to(tl.int32) ^ 1, axis=0)
    top = tl.max(tops, axis=0)
    broken = (broken == 1) | (top == float("-inf"))
    scores = tl.load(parts + here, mask=inside, other=float("-inf"))
    candidates = tl.load(scan_ids + here, mask=inside, other=0)
    token = tl.min(tl.where(scores == tl.max(scores, axis=0), candidates, vocab), axis=0)
    if FILTERS:
        inverse, k, p, least, filtered = load_params(row, vocab, temperature, top_k, top_p, min_p)
        if filtered & (broken == 0):
            distances_row = distances + row.to(tl.int64) * CAPACITY
            ids_row = ids + row.to(tl.int64) * CAPACITY
            number = tl.load(found + row)
            dense = (number > CAPACITY).to(tl.int32)
            number = tl.where(dense == 1, vocab, number)
            limit = farthest(least)
            if k > 0:
                edge = _search(
                    logits_row, distances_row, ids_row, number, dense, top, inverse, limit,
                    k.to(tl.int64), False, BLOCK,
                )  # fmt: skip
                limit = tl.minimum(limit, edge)
            if TOP_P:  # noqa: SIM102 - decided by the compiler
                if p < 1.0:
                    if k == 0:
                        mass = tl.sum(tl.load(total + here, mask=inside, other=0), axis=0)
                    else:
                        mass = _mass_within(
                            logits_row, distances_row, ids_row, number, dense, top, inverse, limit,
                            BLOCK,
                        )  # fmt: skip
                    target = (p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
                    edge = _search(
                        logits_row, distances_row, ids_row, number, dense, top, inverse, limit,
                        tl.maximum(target, 1), True, BLOCK,
                    )  # fmt: skip
                    limit = tl.minimum(limit, edge)
            token = _draw_within(
                logits_row, distances_row, ids_row, number, dense, top, inverse, limit, vocab,
                tl.load(seeds + row), tl.load(steps + row), BLOCK,
            )  # fmt: skip
    token = tl.where(broken, -1, token)
    tl.store(tokens + row, token)
    if FEEDS:
        tl.store(last_tokens + tl.load(rows + row), tl.maximum(token, 0))
    if LOGPROBS:
        logit = tl.load(logits_row + tl.maximum(token, 0)).to(tl.float32)
        logprob = logit - _log_of_sum(parts, row, batch, splits, SPLITS)
        tl.store(logprobs + row, tl.where(broken, float("nan"), logprob))


@kernel(do_not_specialize=["batch", "splits"])
def _top_kernel(
    logits, stride, vocab, parts, found, distances, ids, top_logprobs, top_ids, batch, splits,
    K: tl.constexpr, SPLITS: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    launch_dependents(PDL)
    wait(PDL)
    top = highest_logit(parts, row, batch, splits, SPLITS)
    best = top - _log_of_sum(parts, row, batch, splits, SPLITS)
    logits_row = logits + row.to(tl.int64) * stride
    distances_row = distances + row.to(tl.int64) * CAPACITY
    ids_row = ids + row.to(tl.int64) * CAPACITY
    number = tl.load(found + row)
    dense = (number > CAPACITY).to(tl.int32)
    number = tl.where(dense == 1, vocab, number)
    beyond = 0x7F80000000000000  # the key of distance inf; a key is (distance bits, id)
    last = tl.full([BLOCK], -1, tl.int64)
    for rank in range(K):
        least = tl.full([BLOCK], 0x7F80000000000000, tl.int64)
        for start in range(0, number, BLOCK):
            index = start + tl.arange(0, BLOCK)
            distance, token = _load_tokens(
                logits_row, distances_row, ids_row, index, number, dense, top, 1.0,
                3.4028234663852886e38,
            )  # fmt: skip
            key = (distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) | token.to(tl.int64)
            least = tl.where((key > last) & (key < least), key, least)
        key = tl.min(least, axis=0)
        distance = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        token = tl.where(key < beyond, (key & 0x7FFFFFFF).to(tl.int32), -1)
        tl.store(top_logprobs + row * K + rank, best - distance)
        tl.store(top_ids + row * K + rank, token)
        last = tl.zeros([BLOCK], tl.int64) + key


def choose(
    logits: torch.Tensor,
    batch: SamplingBatch,
    scanned: Scan,
    gathered: Gathered | None,
    masses: Masses | None,
    feed: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch the choice: tokens, and their log-probabilities if asked for."""
    count, vocab = logits.shape
    tokens = torch.empty(count, dtype=torch.int32, device=logits.device)
    wanted = batch.needs_logprobs or batch.max_top_logprobs > 0
    logprobs = None
    if wanted:
        logprobs = torch.empty(count, dtype=torch.float32, device=logits.device)
    last_tokens, rows = feed or (tokens, tokens)
    _choose_kernel[(count,)](
        logits, logits.stride(0), vocab, batch.temperature, batch.top_k, batch.top_p, batch.min_p,
        batch.seeds, batch.steps, scanned.ids, scanned.parts,
        masses.total if masses else scanned.ids, scanned.found,
        gathered.distances if gathered else scanned.parts,
        gathered.ids if gathered else scanned.ids,
        tokens, scanned.parts if logprobs is None else logprobs, last_tokens, rows, count,
        scanned.splits, SPLITS=splits_bound(scanned.splits),
        CAPACITY=gathered.ids.shape[1] if gathered else 1, BLOCK=BLOCK,
        FILTERS=gathered is not None, TOP_P=masses is not None, LOGPROBS=wanted,
        FEEDS=feed is not None, num_warps=8 if gathered else 1, **launch_options(logits.device),
    )  # fmt: skip
    return tokens, logprobs


def list_top(
    logits: torch.Tensor, count: int, scanned: Scan, gathered: Gathered
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the listing of the `count` most probable tokens: log-probabilities and ids."""
    batch, vocab = logits.shape
    values = torch.empty(batch, count, dtype=torch.float32, device=logits.device)
    ids = torch.empty(batch, count, dtype=torch.int32, device=logits.device)
    _top_kernel[(batch,)](
        logits, logits.stride(0), vocab, scanned.parts, gathered.found, gathered.distances,
        gathered.ids, values, ids, batch, scanned.splits, K=count,
        SPLITS=splits_bound(scanned.splits), CAPACITY=gathered.ids.shape[1], BLOCK=BLOCK,
        num_warps=4, **launch_options(logits.device),
    )  # fmt: skip
    return values, ids
