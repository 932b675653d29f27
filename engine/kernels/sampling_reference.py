"""Sampling in plain torch: the CPU path, and what the kernels are compared with."""

from __future__ import annotations

import torch

from engine.kernels.sampling_batch import ERROR_TOKEN, SampleResult, SamplingBatch
from engine.kernels.sampling_random import gumbel_reference
from engine.sampling_params import GREEDY_BELOW

MASS_ONE = float(2**40)  # weights are integers, so that their sums do not depend on the order


def sample_reference(
    logits: torch.Tensor,
    batch: SamplingBatch,
    last_tokens: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> SampleResult:
    """Choose one token for each row of `logits`; see `engine.kernels.sampling`."""
    raw = logits.float()
    top = raw.amax(dim=1)
    broken = ~(raw < torch.inf).all(dim=1) | (top == -torch.inf)
    tokens = _lowest_argmax(raw)
    draws = (batch.temperature >= GREEDY_BELOW).nonzero().flatten()
    if not batch.all_greedy and len(draws):
        scores = _scores(raw[draws], top[draws], batch, draws)
        scores += gumbel_reference(batch.seeds[draws], batch.steps[draws], raw.shape[1])
        tokens[draws] = _lowest_argmax(scores)
    tokens = torch.where(broken, ERROR_TOKEN, tokens)
    if last_tokens is not None and rows is not None:
        last_tokens[rows.long()] = tokens.clamp(min=0)
    return SampleResult(tokens, *_logprobs(raw, tokens, batch))


def keep_reference(
    distance: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Which tokens the filters let through.

    Args:
        distance: float32[B, V], (best logit - logit) / temperature: 0 at the best token.
        top_k: int32[B]; 0: off.
        top_p: float32[B]; 1: off.
        min_p: float32[B]; 0: off.

    Returns:
        bool[B, V]: in this order, the tokens with `exp(-distance) >= min_p`; those of them with
        fewer than top_k that are nearer; those of these for which the nearer ones have together
        less than top_p of the probability. Equal tokens share their fate.
    """
    nearest = torch.where(distance <= -min_p.log()[:, None], distance, torch.inf).sort(dim=1).values
    weights = (torch.exp(-nearest) * MASS_ONE).long()
    off = (top_k <= 0) | (top_k >= distance.shape[1])
    kth = torch.where(off, distance.shape[1], top_k).long()[:, None] - 1
    limit_k = nearest.gather(1, kth)
    weights[nearest > limit_k] = 0
    below = weights.cumsum(dim=1) - weights
    target = (top_p.double() * weights.sum(dim=1)).long().clamp(min=1)[:, None]
    reached = (below < target).sum(dim=1, keepdim=True) - 1
    limit_p = torch.where(top_p[:, None] < 1, nearest.gather(1, reached), torch.inf)
    limit = torch.minimum(torch.minimum(limit_k, limit_p), -min_p.log()[:, None])
    return (distance <= limit) & (distance < torch.inf)


def _scores(
    raw: torch.Tensor, top: torch.Tensor, batch: SamplingBatch, draws: torch.Tensor
) -> torch.Tensor:
    """Logits over temperature of the rows `draws`, -inf where a token is excluded."""
    inverse = (1.0 / batch.temperature[draws])[:, None]
    scores = raw * inverse
    top_k, top_p, min_p = batch.top_k[draws], batch.top_p[draws], batch.min_p[draws]
    filtered = ((top_k > 0) & (top_k < raw.shape[1])) | (top_p < 1) | (min_p > 0)
    some = filtered.nonzero().flatten()
    if batch.truncates and len(some):
        distance = (top[some][:, None] - raw[some]) * inverse[some]
        keep = keep_reference(distance, top_k[some], top_p[some], min_p[some])
        scores[some] = torch.where(keep, -distance, -torch.inf)
    return scores


def _lowest_argmax(scores: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    best = scores == scores.amax(dim=1, keepdim=True)
    return torch.where(best, ids, scores.shape[1] - 1).amin(dim=1)


def _logprobs(
    raw: torch.Tensor, tokens: torch.Tensor, batch: SamplingBatch
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    if not batch.needs_logprobs and not batch.max_top_logprobs:
        return None, None, None
    total = raw.logsumexp(dim=1, keepdim=True)
    chosen = raw.gather(1, tokens.clamp(min=0).long()[:, None]) - total
    logprobs = torch.where(tokens < 0, torch.nan, chosen[:, 0])
    if not batch.max_top_logprobs:
        return logprobs, None, None
    values, ids = _top(raw, batch.max_top_logprobs)
    return logprobs, values - total, torch.where(values == -torch.inf, -1, ids)


def _top(raw: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logits, falling, and their ids; among equals the lowest id first."""
    vocab = raw.shape[1]
    bits = (raw + 0.0).contiguous().view(torch.int32).long()  # + 0.0: -0.0 equals 0.0
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    ids = torch.arange(vocab, device=raw.device)
    keys = (ordered << 32) + (vocab - ids)
    chosen = keys.topk(min(count, vocab), dim=1).indices
    values = raw.gather(1, chosen)
    pad = (0, count - values.shape[1])
    ids = torch.nn.functional.pad(chosen.int(), pad, value=-1)
    return torch.nn.functional.pad(values, pad, value=-torch.inf), ids
