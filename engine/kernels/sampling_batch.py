"""What the sampler gets beside the logits, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.sampling_params import SamplingParams

ERROR_TOKEN = -1  # the token of a row whose logits hold NaN or +inf, or nothing but -inf


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Sampling parameters of the rows of a batch, on the device, and what the host knows of them.

    The flags choose kernels, hence belong to a captured CUDA Graph; the tensors may change between
    replays. A flag may be True without need; a flag that is False though a row needs it makes the
    tokens of that row undefined.

    Attributes:
        temperature: float32[B]; below 1e-5: greedy.
        top_k: int32[B]; 0 or less, or at least V: off.
        top_p: float32[B] in (0, 1]; 1: off.
        min_p: float32[B] in [0, 1]; 0: off.
        seeds: int64[B].
        steps: int32[B], how many tokens the request has sampled before. A request draws the same
            token for (seed, step), in whatever batch and row.
        all_greedy: no row draws.
        needs_logprobs: some row wants the log-probability of its token.
        max_top_logprobs: how many of the most probable tokens to tell, 0 to 32.
        any_top_k: some row has top_k.
        any_top_p: some row has top_p.
        any_min_p: some row has min_p.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    steps: torch.Tensor
    all_greedy: bool = False
    needs_logprobs: bool = False
    max_top_logprobs: int = 0
    any_top_k: bool = True
    any_top_p: bool = True
    any_min_p: bool = True

    @property
    def truncates(self) -> bool:
        """Whether some row excludes tokens from its draw."""
        return not self.all_greedy and (self.any_top_k or self.any_top_p or self.any_min_p)

    @classmethod
    def of(
        cls,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        steps: Sequence[int],
        device: torch.device,
    ) -> SamplingBatch:
        """The batch of requests with `params`, one row each."""

        def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            column([p.temperature for p in params], torch.float32),
            column([max(p.top_k, 0) for p in params], torch.int32),
            column([p.top_p for p in params], torch.float32),
            column([p.min_p for p in params], torch.float32),
            column(seeds, torch.int64),
            column(steps, torch.int32),
            all_greedy=all(p.is_greedy for p in params),
            needs_logprobs=any(p.logprobs is not None for p in params),
            max_top_logprobs=max((p.logprobs or 0 for p in params), default=0),
            any_top_k=any(p.top_k > 0 and not p.is_greedy for p in params),
            any_top_p=any(p.top_p < 1 and not p.is_greedy for p in params),
            any_min_p=any(p.min_p > 0 and not p.is_greedy for p in params),
        )


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What was sampled, on the device.

    Log-probabilities are the model's own (log-softmax of the logits as they came, before
    temperature and filters), which is also what vLLM tells by default.

    Attributes:
        tokens: int32[B]; `ERROR_TOKEN` where the logits were no distribution.
        logprobs: float32[B] of `tokens`, NaN at `ERROR_TOKEN`; None unless asked for.
        top_logprobs: float32[B, K] of the K most probable tokens, falling, -inf where a row has
            fewer than K; undefined at `ERROR_TOKEN`; None unless K > 0.
        top_ids: int32[B, K], their ids, the lowest first among equals; -1 where there is none.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
