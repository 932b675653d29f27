"""One text while it is generated: what ends it, and what has been found out about its tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.request import Request
from engine.core.token_ids import TokenBuffer
from engine.runtime.executor import EngineError, TopLogprobs
from engine.runtime.outputs import EndReason
from engine.runtime.stop_strings import StopStrings
from engine.runtime.tokenizer import Detokenizer, Tokenizer
from engine.sampling_params import SamplingParams


class StepLogprobs(NamedTuple):
    """What a step brought of log-probabilities, for the rows that want them.

    Attributes:
        sampled: float32[rows], of the sampled tokens.
        top: of the likeliest tokens; None if nobody wants them.
    """

    sampled: NDArray[np.float32]
    top: TopLogprobs | None


class TokenLogprobs(NamedTuple):
    """Log-probabilities of one token: a row of a step, which is looked at when it is read."""

    token_id: int
    step: StepLogprobs
    row: int


class GrowingText:
    """One of the texts of a prompt.

    The thread that drives the engine writes, any one may read at the same time: what is written
    only grows, and `finish_reason` is written last. Tokens are in `request.tokens`; they follow
    what is found out about them here.

    Args:
        index: which of the texts of its prompt.
        request: what the scheduler knows of it, with a `TokenBuffer`.
        params: what was asked for.
        eos_token_ids: the model's ends of a text.
        tokenizer: needed for stop strings only.

    Attributes:
        stop_ids: token ids that end it.
        settled: (output tokens, characters) that no stop string can take back any more; kept only
            if there are stop strings.
        strings: the stop strings and the text so far, or None.
        logprobs: one entry per output token, or None.
        finish_reason, stop_reason, error: see `CompletionOutput`.
    """

    __slots__ = (
        "_detokenizer", "_eos", "error", "finish_reason", "index", "logprobs", "params", "request",
        "settled", "stop_ids", "stop_reason", "strings", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        request: Request,
        params: SamplingParams,
        eos_token_ids: Collection[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        if not isinstance(request.tokens, TokenBuffer):
            raise TypeError(f"request {request.request_id} has no token buffer")
        self.index, self.request, self.params = index, request, params
        self.tokens: TokenBuffer = request.tokens
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self.stop_ids = self._eos.union(params.stop_token_ids)
        self.strings: StopStrings | None = None
        self._detokenizer: Detokenizer | None = None
        if params.stop:
            if tokenizer is None:
                raise ValueError("stop strings need a tokenizer; use stop_token_ids")
            self.strings = StopStrings(params.stop)
            prompt = request.tokens.ids(0, request.prompt_tokens).tolist()
            self._detokenizer = Detokenizer(tokenizer, prompt)
        self.settled = (0, 0)
        self.logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        self.finish_reason: EndReason | None = None

    @property
    def is_watched(self) -> bool:
        """Whether every token must be looked at, not only those that may end it."""
        return self.strings is not None or self.logprobs is not None

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.request.prompt_tokens

    def ends_with(self, token_id: int, count: int) -> bool:
        """Whether output token number `count` (from 1) is a stop token that counts."""
        return token_id in self.stop_ids and count > self.params.min_tokens

    def take(self, token_id: int, logprobs: StepLogprobs | None = None, row: int = 0) -> bool:
        """Look at the next token, before it is added to `tokens`; True if the text ends with it.

        Args:
            token_id: the token, or -1 for none.
            logprobs: of the step that brought it; needed if they were asked for.
            row: its row there.
        """
        count = self.num_tokens + 1
        if token_id < 0:
            self.error = f"the logits of output token {count} are not numbers (NaN)"
            return False
        if self.logprobs is not None:
            if logprobs is None:
                raise EngineError("the executor brought no log-probabilities, which were asked for")
            self.logprobs.append(TokenLogprobs(token_id, logprobs, row))
        if self.ends_with(token_id, count):
            self.stop_reason = None if token_id in self._eos else token_id
            return True
        if self.strings is None or self._detokenizer is None:
            return False
        piece = self._detokenizer.push(token_id)
        ended = self.strings.push(piece, exempt=count <= self.params.min_tokens)
        self.settled = (count, self.strings.settled)
        self.stop_reason = self.strings.found
        return ended

    def finish(self, reason: EndReason, error: str | None = None) -> None:
        """It has ended."""
        if self.strings is not None and self._detokenizer is not None:
            self.strings.push(self._detokenizer.finish(), exempt=True)
        if reason != "stop":
            self.stop_reason = None
        self.error = (self.error or error) if reason == "error" else None
        self.finish_reason = reason
