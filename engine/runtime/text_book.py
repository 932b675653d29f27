"""All texts that are being generated, and which of them end with a step.

A step of many requests costs two numpy calls as long as no token in it may end a text and nobody
needs to see every token of his text: a table over the vocabulary says which ids anybody stops at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.core.enums import FinishReason
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.runtime.executor import StepOutput, TopLogprobs
from engine.runtime.growing_text import GrowingText, StepLogprobs
from engine.runtime.outputs import EndReason

END_REASONS: dict[FinishReason, EndReason] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.REJECTED: "error",
    FinishReason.ERROR: "error",
}


class TextBook:
    """The live texts of a serving loop; an `engine.runtime.serving_loop.TextEnds`.

    Args:
        vocab_size: token ids are below it.
    """

    def __init__(self, vocab_size: int) -> None:
        self._texts: dict[int, GrowingText] = {}
        self._watched: set[int] = set()
        # How many texts stop at each id. The last place stands for -1, no token: always a reason to
        # look.
        self._stops = np.zeros(vocab_size + 1, np.int32)
        self._stops[-1] = 1

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: GrowingText) -> None:
        """A text begins; call it before its request is planned."""
        request_id = text.request.request_id
        self._texts[request_id] = text
        for token_id in text.stop_ids:
            self._stops[token_id] += 1
        if text.is_watched:
            self._watched.add(request_id)

    def end(self, request: Request, error: str | None) -> GrowingText | None:
        """A request has ended: so has its text, which is returned; None if it is not here.

        Args:
            request: says why.
            error: what went wrong last, in case that is why.
        """
        text = self._texts.pop(request.request_id, None)
        if text is None:
            return None
        self._watched.discard(request.request_id)
        for token_id in text.stop_ids:
            self._stops[token_id] -= 1
        text.finish(END_REASONS[request.finish_reason], error)
        return text

    def abandon(self, error: str) -> None:
        """All texts end here, because of `error`."""
        for text in self._texts.values():
            text.finish("error", error)
        self._texts.clear()
        self._watched.clear()

    def planned(self, plan: StepPlan) -> None:
        """Nothing needs to be known of a plan."""

    def stopped(self, plan: StepPlan, output: StepOutput) -> Sequence[int]:
        """Ids of the requests whose text ends with this step."""
        ids = output.token_ids
        hits = np.flatnonzero(self._stops[ids])
        if not (len(hits) or self._watched):
            return ()
        rows, look = plan.sampling_requests(), hits.tolist()
        logprobs: StepLogprobs | None = None
        if self._watched:
            watched = [at for at, row in enumerate(rows) if row[0].request_id in self._watched]
            look = sorted({*look, *watched})
            logprobs = _logprobs_of(output, look)
        ended = []
        for place, at in enumerate(look):
            request, epoch = rows[at]
            text = self._texts.get(request.request_id)
            if text is None or request.epoch != epoch:
                continue
            if text.take(int(ids[at]), logprobs, place):
                ended.append(request.request_id)
        return ended


def _logprobs_of(output: StepOutput, rows: list[int]) -> StepLogprobs | None:
    """A copy of some rows, because the executor's arrays may be memory that it needs again."""
    if output.logprobs is None:
        return None
    top = output.top_logprobs
    if top is not None:
        top = TopLogprobs(top.token_ids[rows], top.logprobs[rows])
    return StepLogprobs(output.logprobs[rows], top)
