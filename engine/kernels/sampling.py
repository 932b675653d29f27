"""Sampling: one token for each row of logits, chosen on the device.

What is chosen, for a row with V logits:

1. temperature below 1e-5: the largest logit. Otherwise x = logit / temperature is drawn from:
2. min_p excludes tokens less probable than min_p times the most probable one;
3. top_k excludes what is behind the k-th of the rest;
4. top_p excludes tokens before which the more probable ones, of those that are left, already reach
   top_p of their common probability;
5. of the tokens left, the one with the largest x + Gumbel noise: a draw from their softmax.

This is the order of vLLM's V1 sampler. Equal logits share their fate in 2 to 4; otherwise the
lowest id wins ties. The noise depends on (seed, step, token id) only, so a request draws the same
token in whatever batch or row, now or after it was retracted: see `sampling_random`.

A logit of -inf is never chosen. A row that holds NaN or +inf, or nothing but -inf, gets the token
`ERROR_TOKEN` (-1), and what is fed to the next step is token 0 there, so that the step in flight
reads a valid embedding; other rows are not touched by it.

On the GPU nothing is sorted and nothing waits for the host: `scan` reads the logits once and
decides greedy rows and draws from all tokens; `gather` copies out the few tokens that filters may
let through; `choose` finishes each row. Grids depend on B and V alone.
"""

from __future__ import annotations

import torch

from engine.kernels.sampling_batch import ERROR_TOKEN, SampleResult, SamplingBatch
from engine.kernels.sampling_choose import choose, list_top
from engine.kernels.sampling_filter import add_masses, gather
from engine.kernels.sampling_reference import sample_reference
from engine.kernels.sampling_scan import scan

__all__ = [
    "ERROR_TOKEN",
    "IMPLEMENTATIONS",
    "SampleResult",
    "SamplingBatch",
    "sample_reference",
    "sample_triton",
]


def sample_triton(
    logits: torch.Tensor,
    batch: SamplingBatch,
    last_tokens: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> SampleResult:
    """Choose one token for each row of logits.

    Args:
        logits: bf16, fp16 or fp32 [B, V], rows contiguous.
        batch: parameters of the B rows.
        last_tokens: int32[R + 1], gets each token at its row of the page table.
        rows: int32[B], that row; padding uses the dummy row R.

    Returns:
        Tokens, and log-probabilities as `batch` asks.

    Raises:
        ValueError: neighbouring logits of a row are not neighbours in memory.
    """
    if logits.stride(1) != 1:
        raise ValueError(f"logits must be contiguous in a row, not have strides {logits.stride()}")
    feed = None if last_tokens is None or rows is None else (last_tokens, rows)
    scanned = scan(logits, batch)
    masses = gathered = None
    if batch.truncates:
        masses = add_masses(logits, batch, scanned) if batch.any_top_p else None
        gathered = gather(logits, batch, scanned, masses)
    tokens, logprobs = choose(logits, batch, scanned, gathered, masses, feed)
    if not batch.max_top_logprobs:
        return SampleResult(tokens, logprobs)
    count = batch.max_top_logprobs
    listed = gather(logits, batch, scanned, fixed_k=count)
    return SampleResult(tokens, logprobs, *list_top(logits, count, scanned, listed))


IMPLEMENTATIONS = {"torch": sample_reference, "triton": sample_triton}
