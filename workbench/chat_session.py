"""A growing text that a person and a model write in turns.

The model sees all of it each time, as far as it can. What it has seen is in the prefix cache, so
that a turn computes only what is new. A text that grows too long loses its older half at once: were
it cut a little each turn, it would begin elsewhere each time, and nothing of it would be a hit.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from engine.core.config import SchedulerConfig
from engine.models.model_folder import find_model_folder
from engine.runtime.executor import EngineError
from engine.runtime.outputs import RequestOutput
from engine.runtime.tokenizer import FILE_NAME, Tokenizer, TokenizerError
from engine.sampling_params import SamplingParams
from workbench.running.engine_packages import import_engine, use_one_thread
from workbench.running.engine_setup import checkpoint_of

_TEXTS_IN_CACHE: Final = 4  # of the longest kind


class TextTooLongError(EngineError):
    """One text alone is more than the model sees."""


class Engine(Protocol):
    """An engine that is ready; `engine.runtime.local_engine.LocalEngine` is one."""

    config: SchedulerConfig
    tokenizer: Tokenizer | None

    @property
    def facts(self) -> dict[str, Any]:
        """JSON data; `device` is the device's own name."""
        ...


class Streams(Protocol):
    """What answers; `engine.AsyncLLM` is one."""

    def generate(
        self, prompt: list[int], sampling_params: SamplingParams, *, delta: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        """What is new of a text, as it comes."""
        ...

    async def close(self) -> None:
        """Let go of the device."""
        ...


@dataclass(frozen=True, slots=True)
class TurnFigures:
    """What a turn took.

    Attributes:
        prompt_tokens: that the model saw.
        cached_tokens: of them, that were in the prefix cache.
        output_tokens: that it wrote.
        first_token_s: from the question to the first token; None: there was none.
        tokens_per_s: after the first one; None with fewer than two.
        finish_reason: "stop", "length", or "abort" if it was interrupted.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_token_s: float | None
    tokens_per_s: float | None
    finish_reason: str

    def line(self) -> str:
        """All of it on one line."""
        parts = [f"{self.output_tokens} tokens"]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s * 1e3:,.0f} ms")
        share = 100 * self.cached_tokens / self.prompt_tokens
        parts.append(f"prefix hit {self.cached_tokens} of {self.prompt_tokens} ({share:.0f} %)")
        endings = {"stop": "ended", "length": "cut", "abort": "interrupted"}
        return f"[{' · '.join((*parts, endings.get(self.finish_reason, self.finish_reason)))}]"


class ChatSession:
    """One conversation.

    Args:
        engine: that writes; it closes with this.
        params: how it writes; an answer has fewer than `max_tokens` where the model sees no more.
        tell: what the user should know: that the model forgets, or has less room than asked for.

    Attributes:
        last: what the last turn took.

    Raises:
        EngineError: the model has no tokenizer.
    """

    def __init__(
        self, engine: Engine, params: SamplingParams, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.last: TurnFigures | None = None
        if engine.tokenizer is None:
            raise EngineError("the model has no tokenizer.json: it cannot read a text")
        self._sees = engine.config.max_model_len
        self._longest_prompt = self._sees - min(params.max_tokens, self._sees // 2)
        self._llm: Streams = import_engine("engine.runtime.async_llm").AsyncLLM(engine)
        self._tokenizer = engine.tokenizer
        self._params = params
        self._ids: list[int] = []
        self._tell = tell
        self._told_of_room = False

    async def close(self) -> None:
        """Let go of the device; idempotent."""
        await self._llm.close()

    def forget(self) -> None:
        """Begin a new text."""
        self._ids = []

    async def turn(self, text: str) -> AsyncGenerator[str, None]:
        """Add a text and give the model's continuation in pieces, as they come.

        When it is closed or cancelled before its end, what was written until then stays.
        `last` has the figures afterwards.

        Raises:
            TextTooLongError: the model does not see so much at once; the text is as before.
            EngineError: the engine failed.
        """
        self._add(text)
        params = replace(self._params, max_tokens=self._room())
        meter = _Meter(len(self._ids))
        stream = self._llm.generate(list(self._ids), params, delta=True)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    meter.cached_tokens = output.num_cached_tokens
                    for piece in output.outputs:
                        self._ids += piece.token_ids
                        meter.count(len(piece.token_ids), piece.finish_reason)
                        if piece.text:
                            yield piece.text
        finally:
            self.last = meter.figures()

    def _add(self, text: str) -> None:
        if self._ids and self.last is not None and self.last.finish_reason != "stop":
            text = f"\n{text}"
        new = self._tokenizer.encode(text, add_special_tokens=not self._ids)
        if len(new) >= self._sees:
            raise TextTooLongError(
                f"this text has {len(new):,} tokens, and the model sees {self._sees:,} at most, its"
                " answer included: give a shorter one"
            )
        ids = self._ids + new
        kept = max(self._longest_prompt // 2, len(new))
        if self._longest_prompt < len(ids) > kept:
            self._tell(
                f"the model sees {self._sees:,} tokens, its answer included, and the text has"
                f" {len(ids):,}: the oldest {len(ids) - kept:,} are forgotten"
            )
            ids = ids[-kept:]
        self._ids = ids

    def _room(self) -> int:
        """Tokens that the next answer may have."""
        asked, left = self._params.max_tokens, self._sees - len(self._ids)
        if left < asked and not self._told_of_room:
            self._told_of_room = True
            self._tell(
                f"the model sees {self._sees:,} tokens and the text has {len(self._ids):,}: the"
                f" answer has {left:,} at most, not {asked:,}"
            )
        return min(asked, left)


def open_session(
    model: str,
    params: SamplingParams,
    *,
    device: str | None = None,
    dtype: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> ChatSession:
    """Load a model and begin a conversation with it.

    Args:
        model: a demo model, a folder, or org/name in the local Hugging Face cache.
        params: how it writes.
        device: "cuda", "cuda:1", "cpu"; None: a GPU if there is one.
        dtype: None: the model's own, fp32 on a CPU.
        tell: see `ChatSession`.

    Raises:
        EngineError: a package is missing, the model does not fit, or it cannot read a text.
        ValueError: no such model on this machine.
    """
    import_engine("engine.runtime.build")
    open_engine = import_engine("engine.runtime.local_engine").open_engine
    options = {"device": device, "dtype": dtype, "max_running_requests": _TEXTS_IN_CACHE}
    checkpoint = checkpoint_of(model)
    _check_tokenizer(find_model_folder(checkpoint))
    engine: Engine = open_engine(checkpoint, options)
    if checkpoint != model and engine.facts["device"] == "cpu":
        use_one_thread()
    return ChatSession(engine, params, tell)


def _check_tokenizer(folder: Path) -> None:
    """Find out before the weights are read, which may take minutes."""
    try:
        Tokenizer.from_folder(folder)
    except TokenizerError as error:
        if not (folder / FILE_NAME).is_file():
            raise EngineError(f"{folder} has no {FILE_NAME}: it cannot read a text") from None
        if isinstance(error.__cause__, ImportError):
            raise
        raise EngineError(f"{error}\nthe file is damaged: copy the model here again") from None


class _Meter:
    """Times the tokens of one turn."""

    def __init__(self, prompt_tokens: int) -> None:
        self.cached_tokens = 0
        self._prompt_tokens = prompt_tokens
        self._tokens = self._first_batch = 0
        self._reason = "abort"
        self._start = self._last = time.perf_counter()
        self._first: float | None = None

    def count(self, tokens: int, finish_reason: str | None) -> None:
        """So many tokens have come."""
        self._tokens += tokens
        self._last = time.perf_counter()
        if self._first is None and tokens:
            self._first, self._first_batch = self._last, tokens
        self._reason = finish_reason or self._reason

    def figures(self) -> TurnFigures:
        """What was seen so far."""
        rate = None
        later = self._tokens - self._first_batch
        if self._first is not None and later and self._last > self._first:
            rate = later / (self._last - self._first)
        first_s = None if self._first is None else self._first - self._start
        return TurnFigures(
            self._prompt_tokens, self.cached_tokens, self._tokens, first_s, rate, self._reason
        )
