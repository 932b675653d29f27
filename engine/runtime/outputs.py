"""What a caller gets back: texts with their tokens, their ends and their times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

EndReason = Literal["stop", "length", "abort", "error"]


class Logprob(NamedTuple):
    """How likely the model found a token at one position.

    Attributes:
        logprob: natural logarithm of its probability, before temperature and filters.
        rank: 1 for the likeliest token; None where the sampled token is not among those that were
            asked for.
        decoded_token: the token alone as text; None without a tokenizer.
    """

    logprob: float
    rank: int | None
    decoded_token: str | None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated text, or with deltas the part of it that is new.

    Attributes:
        index: which of the `n` texts of its prompt.
        text: without special tokens and without what ended it; empty without a tokenizer.
        token_ids: with the token that ended it.
        logprobs: one mapping per token, from token id to log-probability: the sampled token and the
            likeliest ones; None if none were asked for.
        finish_reason: "stop": a stop token or string, or the model's end of text; "length":
            max_tokens, or the longest text that the engine holds; "abort": the caller gave up;
            "error": see `error`; None: it goes on.
        stop_reason: the stop string or the id of the stop token that ended it; None for the model's
            own end of text.
        error: what went wrong, for a person.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    finish_reason: EndReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened, in s on the engine's clock, which starts with the engine.

    Attributes:
        arrival_s: the engine took the request in.
        first_token_s: the first token of any of its texts was on the host, or None.
        finish_s: the last of its texts ended, or None.
    """

    arrival_s: float
    first_token_s: float | None
    finish_s: float | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What has come of one prompt.

    Attributes:
        request_id: the caller's name for it, or the engine's.
        prompt: its text, or None if it was given as token ids.
        prompt_token_ids: its token ids.
        outputs: its texts by index; with deltas only those that have something new.
        finished: whether all its texts have ended.
        num_cached_tokens: prompt tokens whose KV was in the prefix cache when it started.
        metrics: its times.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int
    metrics: RequestMetrics
