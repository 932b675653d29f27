"""Reads a growing text for its caller: whole, as it stands, or only what is new.

Detokenizing happens here, in the caller's thread; only a text with stop strings is written by the
engine itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.runtime.growing_text import GrowingText, TokenLogprobs
from engine.runtime.outputs import CompletionOutput, EndReason, Logprob
from engine.runtime.tokenizer import Detokenizer, Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what undecodable bytes become
_CONTEXT_TOKENS = 8  # tokens before a text that may change how it begins


class TextReader:
    """The one reader of a text.

    Args:
        text: is read while the engine writes it.
        tokenizer: None: texts stay empty.
        delta: whether each output holds only what is new.
    """

    def __init__(self, text: GrowingText, tokenizer: Tokenizer | None, delta: bool) -> None:
        self._text, self._tokenizer, self._delta = text, tokenizer, delta
        self._detokenizer: Detokenizer | None = None
        self._ids: list[int] = []
        self._written = ""
        self._logprobs: list[dict[int, Logprob]] = []
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the end was read."""
        return self._ended

    @property
    def has_news(self) -> bool:
        """Whether `read` would tell anything new."""
        text = self._text
        if self._ended:
            return False
        return text.num_tokens > len(self._ids) or text.finish_reason is not None

    def read(self) -> CompletionOutput:
        """What there is now."""
        text, ids = self._text, self._ids
        reason = text.finish_reason  # before the rest, which is complete if this is set
        settled = text.settled
        seen, shown = len(ids), len(self._written)
        start = text.request.prompt_tokens
        ids += text.tokens.ids(start + seen, start + max(text.num_tokens, seen)).tolist()
        self._write(seen, reason, settled)
        if text.logprobs is not None:
            new = text.logprobs[len(self._logprobs) : len(ids)]
            self._logprobs += [self._named(entry) for entry in new]
        self._ended = reason is not None
        first, first_character = (seen, shown) if self._delta else (0, 0)
        return CompletionOutput(
            index=text.index,
            text=self._written[first_character:],
            token_ids=tuple(ids[first:]),
            logprobs=tuple(self._logprobs[first:]) if text.logprobs is not None else None,
            finish_reason=reason,
            stop_reason=text.stop_reason if reason is not None else None,
            error=text.error if reason is not None else None,
        )

    def _write(self, seen: int, reason: EndReason | None, settled: tuple[int, int]) -> None:
        """Bring the written text up to date with the ids, of which `seen` were there before."""
        if self._tokenizer is None:
            return
        text, strings = self._text, self._text.strings
        if strings is not None:
            end = len(strings.text) if reason is not None else settled[1]
            self._written += strings.text[len(self._written) : end]
            return
        spoken = len(self._ids)
        if spoken and text.ends_with(self._ids[-1], spoken):
            spoken -= 1
        if reason is not None and self._detokenizer is None:
            self._written = decode_after(self._tokenizer, self._prompt_end(), self._ids[:spoken])
            return
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self._tokenizer, self._prompt_end())
        pieces = [self._detokenizer.push(token_id) for token_id in self._ids[seen:spoken]]
        if reason is not None:
            pieces.append(self._detokenizer.finish())
        self._written += "".join(pieces)

    def _prompt_end(self) -> list[int]:
        end = self._text.request.prompt_tokens
        ids: list[int] = self._text.tokens.ids(max(0, end - _CONTEXT_TOKENS), end).tolist()
        return ids

    def _named(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        """The sampled token first, then the likeliest."""
        sampled, step, row = entry
        top_ids, top_logprobs = list[int](), list[float]()
        if step.top is not None:
            count = self._text.params.logprobs
            top_ids = step.top.token_ids[row, :count].tolist()
            top_logprobs = step.top.logprobs[row, :count].tolist()
        ranks = {token_id: rank for rank, token_id in enumerate(top_ids, 1)}
        text, logprob = self._token_text(sampled), float(step.sampled[row])
        named = {sampled: Logprob(logprob, ranks.get(sampled), text)}
        for token_id, logprob in zip(top_ids, top_logprobs, strict=True):
            if token_id != sampled:
                text = self._token_text(token_id)
                named[token_id] = Logprob(logprob, ranks[token_id], text)
        return named

    def _token_text(self, token_id: int) -> str | None:
        if self._tokenizer is None:
            return None
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


def decode_after(tokenizer: Tokenizer, after: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text of tokens that follow others, as a `Detokenizer` would write it piece by piece."""
    before = tokenizer.decode(after)
    return tokenizer.decode([*after, *token_ids])[len(before.rstrip(_REPLACEMENT)) :]
