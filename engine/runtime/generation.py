"""What one prompt is asked for: its texts, and how its caller sees them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.enums import RequestStatus
from engine.runtime.growing_text import GrowingText
from engine.runtime.outputs import RequestMetrics, RequestOutput
from engine.runtime.text_reader import TextReader
from engine.runtime.tokenizer import Tokenizer

_NS_PER_S = 1e9


class Generation:
    """One prompt and its `n` texts.

    Args:
        request_id: the caller's name for it.
        prompt: its text, or None.
        prompt_token_ids: its token ids.
        texts: in the order of their index.
        tokenizer: of the engine.
        delta: whether each output holds only what is new.
        arrival_ns: when it came, on the engine's clock.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: tuple[int, ...],
        texts: Sequence[GrowingText],
        tokenizer: Tokenizer | None,
        delta: bool,
        arrival_ns: int,
    ) -> None:
        self.request_id = request_id
        self.prompt, self.prompt_token_ids = prompt, prompt_token_ids
        self.texts = list(texts)
        self._delta = delta
        self._arrival_ns = arrival_ns
        self._readers = [TextReader(text, tokenizer, delta) for text in texts]

    @property
    def is_over(self) -> bool:
        """Whether all texts have ended."""
        return all(text.finish_reason is not None for text in self.texts)

    @property
    def has_failed(self) -> bool:
        """Whether a text has ended with an error."""
        return any(text.finish_reason == "error" for text in self.texts)

    @property
    def first_text_has_begun(self) -> bool:
        """Whether the prompt's KV is computed, or never will be."""
        first = self.texts[0].request
        return first.first_token_ns >= 0 or first.status == RequestStatus.FINISHED

    @property
    def has_news(self) -> bool:
        """Whether `output` would tell anything new."""
        return any(reader.has_news for reader in self._readers)

    def output(self) -> RequestOutput:
        """What there is now, or with deltas what is new since the last call."""
        readers = self._readers
        if self._delta:
            readers = [reader for reader in readers if reader.has_news]
        outputs = tuple(reader.read() for reader in readers)
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=outputs,
            finished=all(reader.ended for reader in self._readers),
            num_cached_tokens=self.texts[0].request.cached_tokens,
            metrics=self._metrics(),
        )

    def _metrics(self) -> RequestMetrics:
        requests = [text.request for text in self.texts]
        firsts = [r.first_token_ns for r in requests if r.first_token_ns >= 0]
        ends = [r.finish_ns for r in requests if r.finish_ns >= 0]
        over = self.is_over and bool(ends)
        return RequestMetrics(
            arrival_s=self._arrival_ns / _NS_PER_S,
            first_token_s=min(firsts) / _NS_PER_S if firsts else None,
            finish_s=max(ends) / _NS_PER_S if over else None,
        )
