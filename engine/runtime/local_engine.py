"""An engine in this process: takes prompts in, makes their texts, knows no thread.

`LLM` and `AsyncLLM` drive it. `prepare` may be called in any thread; everything else belongs to the
one that drives. Texts may be read in any thread while they grow.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any, Final, Protocol, Self

from engine.core.config import SchedulerConfig
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.native.cache_choice import inject
from engine.runtime.engine_options import EngineOptions
from engine.runtime.executor import EngineError, Executor
from engine.runtime.generation import Generation
from engine.runtime.growing_text import GrowingText
from engine.runtime.prompts import parse_prompt
from engine.runtime.runner_config import SMALL_MODEL, RunnerConfig
from engine.runtime.serving_loop import LoopEvents, ServingLoop, Turn
from engine.runtime.text_book import TextBook
from engine.runtime.tokenizer import Tokenizer, TokenizerError
from engine.sampling_params import SamplingParams

_ROOM_AT_FIRST = 1024  # output tokens that a buffer holds before it grows
THREADS: Final = "cpu_threads"


class RequestRejectedError(ValueError):
    """This prompt can never be served as asked; the message says why."""


class Runner(Executor, Protocol):
    """An executor that samples by the parameters of each request."""

    def register(self, request_id: int, params: SamplingParams) -> None:
        """Tell how a request samples, before it is planned; one that is not told of is greedy."""
        ...

    def forget(self, request_id: int) -> None:
        """A registered request has ended."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


class LocalEngine:
    """Scheduler, runner and texts.

    Args:
        runner: carries out the plans.
        config: of the scheduler.
        vocab_size: token ids are below it.
        eos_token_ids: each of them ends a text.
        tokenizer: None: prompts must be token ids, and texts stay empty.
        clock: ns since the engine's start, never going back.
        no_text: why there is no tokenizer, for error messages.

    Attributes:
        config: as above.
        tokenizer: as above.
        cpu_threads: on which torch is to compute while this is driven; None: as it is set.
        dead: why nothing can be generated any more, or None.
    """

    def __init__(
        self,
        runner: Runner,
        config: SchedulerConfig,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        tokenizer: Tokenizer | None,
        clock: Callable[[], int] | None = None,
        no_text: str = "the model has no tokenizer",
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.cpu_threads: int | None = None
        self.dead: Exception | None = None
        self._runner: Runner | None = runner
        self._vocab_size, self._eos = vocab_size, tuple(eos_token_ids)
        self._clock = clock or clock_from_now()
        self._no_text = no_text
        self._book = TextBook(vocab_size)
        scheduler = Scheduler(config)
        inject(scheduler, "engine")
        self._loop = ServingLoop(
            scheduler,
            runner,
            self._clock,
            self._book,
            events=LoopEvents(on_end=self._ended, on_failure=self._failed),
        )
        self._ids = itertools.count()
        self._seeds = random.SystemRandom()
        self._failure: Exception | None = None
        self._registered: set[int] = set()
        self._waiting: list[Generation] = []  # their later texts wait for the first one's prompt

    @classmethod
    def build(cls, options: EngineOptions, cpu_threads: int | None = None) -> Self:
        """Load a model and make an engine of it; on a CPU a small one computes on one thread.

        Raises:
            ValueError: no such model.
            EngineError: it cannot be loaded, or does not fit into memory.
        """
        from engine.runtime.build import build_runner

        clock = clock_from_now()
        tokenizer, no_text = _find_tokenizer(options.runner)
        runner = build_runner(options.runner, clock)
        config = options.scheduler_for(
            runner.num_pages, runner.max_model_len, runner.config.cuda_graph_batch_sizes
        )
        engine = cls(
            runner, config, runner.spec.vocab_size, runner.eos_token_ids, tokenizer, clock, no_text
        )
        alone = runner.facts()["device"] == "cpu" and runner.spec.num_parameters < SMALL_MODEL
        engine.cpu_threads = cpu_threads or (1 if alone else None)
        return engine

    @property
    def live(self) -> int:
        """Texts that have been submitted and have not ended."""
        waiting = (t for g in self._waiting for t in g.texts[1:] if t.finish_reason is None)
        return len(self._book) + sum(1 for _ in waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a request is alive or a step is running."""
        return self._loop.has_work or bool(self._waiting)

    @property
    def step_is_done(self) -> bool:
        """Whether `turn` would commit a step at once."""
        return self._loop.step_is_done

    @property
    def facts(self) -> dict[str, Any]:
        """What the runner says of itself: device, kernels, versions, memory."""
        facts = getattr(self._runner, "facts", None)
        return dict(facts()) if facts is not None else {}

    def prepare(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        delta: bool = False,
    ) -> Generation:
        """Check a prompt and make ready what it takes to generate from it; nothing starts yet.

        Args:
            prompt: see `engine.runtime.prompts.Prompt`.
            params: None is `SamplingParams()`.
            request_id: None: a number.
            delta: whether each output holds only what is new.

        Raises:
            TypeError, ValueError: the prompt has no known form, is empty, has ids outside the
                vocabulary, or is text and there is no tokenizer; or `params` do not fit the model.
            RequestRejectedError: it can never fit.
        """
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling parameters must be SamplingParams, got {type(params)}")
        text, ids = parse_prompt(prompt)
        if text is not None:
            ids = tuple(self._need_tokenizer("a prompt that is text").encode(text))
        if params.stop:
            self._need_tokenizer("a stop string")
        if not ids:
            raise ValueError("the prompt is empty: it has no tokens")
        for what, values in (("prompt_token_ids", ids), ("stop_token_ids", params.stop_token_ids)):
            for value in (min(values, default=0), max(values, default=0)):
                if not 0 <= value < self._vocab_size:
                    raise ValueError(f"{what} must be in [0, {self._vocab_size}), got {value}")
        most = self._max_tokens(len(ids), params.max_tokens)
        texts = [self._text(index, ids, most, params) for index in range(params.n)]
        if request_id is None:
            request_id = str(texts[0].request.request_id)
        return Generation(request_id, text, ids, texts, self.tokenizer, delta, self._clock())

    def submit(self, generation: Generation) -> None:
        """Start generating.

        If the prompt is worth sharing, only its first text starts; the others follow when the KV of
        the prompt is in the prefix cache.

        Raises:
            ExecutorDiedError, EngineError: nothing can be generated any more; its texts have ended.
        """
        if self.dead is not None:
            for text in generation.texts:
                text.finish("error", str(self.dead))
            raise self.dead
        first, *others = generation.texts
        self._begin(first)
        sharable = (len(generation.prompt_token_ids) - 1) // self.config.page_size > 0
        if others and self.config.prefix_cache and sharable:
            self._waiting.append(generation)
            return
        for text in others:
            self._begin(text)

    def abort(self, generation: Generation) -> bool:
        """Nobody waits for this any more; False if it has ended already."""
        alive = [text for text in generation.texts if text.finish_reason is None]
        if generation in self._waiting:
            self._waiting.remove(generation)
            for text in generation.texts[1:]:
                text.finish("abort")
        for text in alive:
            if text.finish_reason is None:
                self._loop.abort(text.request.request_id)
        return bool(alive)

    def turn(self) -> Turn:
        """Take in what is done and start what can be started; see `ServingLoop.turn`.

        Raises:
            ExecutorDiedError: the device is lost; all texts have ended.
            EngineError: something went wrong that nobody expected; the same holds.
        """
        self._check_alive()
        with self._watch():
            turn = self._loop.turn()
            return Turn.AGAIN if self._release() else turn

    def wait(self) -> None:
        """Wait for the oldest step in flight and take it in.

        Raises:
            ExecutorDiedError, EngineError: as `turn`.
        """
        self._check_alive()
        with self._watch():
            self._loop.commit_oldest()
            self._release()

    def drain(self) -> None:
        """Wait for every step in flight, when no request is alive."""
        while self.dead is None and self._loop.has_work:
            if self.turn() is not Turn.AGAIN:
                self.wait()

    def give_up(self, error: Exception) -> Exception:
        """Nothing can be trusted any more: end every text; returns what to raise from now on."""
        if self.dead is None and not isinstance(error, EngineError):
            self.dead = EngineError(f"the engine failed: {error!r}")
        self.dead = self.dead or error
        self._book.abandon(str(self.dead))
        for generation in self._waiting:
            for text in generation.texts:
                if text.finish_reason is None:
                    text.finish("error", str(self.dead))
        self._waiting.clear()
        return self.dead

    def close(self) -> None:
        """Let go of the device; idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self.dead = self.dead or EngineError("the engine is closed")
            runner.close()

    def _text(
        self, index: int, ids: tuple[int, ...], max_tokens: int, params: SamplingParams
    ) -> GrowingText:
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        own = params
        if not params.is_greedy:
            own = replace(params, seed=(seed + index + 2**63) % 2**64 - 2**63)
        buffer = TokenBuffer(list(ids), len(ids) + min(max_tokens, _ROOM_AT_FIRST))
        request = Request(next(self._ids), len(ids), max_tokens, tokens=buffer)
        return GrowingText(index, request, own, self._eos, self.tokenizer)

    def _max_tokens(self, prompt_tokens: int, asked: int) -> int:
        """What fits of the tokens asked for: a text ends where the context does."""
        longest, slots = self.config.max_model_len, self.config.num_pages * self.config.page_size
        most = min(asked, longest - prompt_tokens)
        if most < 1:
            raise RequestRejectedError(
                f"the prompt has {prompt_tokens:,} tokens; with at least one token of output at "
                f"most {longest:,} fit (max_model_len)"
            )
        if prompt_tokens + most - 1 > slots:
            raise RequestRejectedError(
                f"the prompt has {prompt_tokens:,} tokens and max_tokens is {most:,}; together "
                f"they may be {slots + 1:,} at most, because the KV cache holds {slots:,} tokens"
            )
        if not self.config.chunked_prefill and prompt_tokens > self.config.prefill_budget:
            raise RequestRejectedError(
                f"the prompt has {prompt_tokens:,} tokens; without chunked_prefill a step computes "
                f"{self.config.prefill_budget:,} at most"
            )
        return most

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{what} needs a tokenizer, but {self._no_text}")
        return self.tokenizer

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise self.dead

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """An error in here is the engine's end."""
        try:
            yield
        except Exception as error:
            failure = self.give_up(error)
            if failure is error:
                raise
            raise failure from error

    def _begin(self, text: GrowingText) -> None:
        request, runner = text.request, self._runner
        if runner is not None and not (text.params.is_greedy and text.params.logprobs is None):
            runner.register(request.request_id, text.params)
            self._registered.add(request.request_id)
        self._book.add(text)
        self._loop.add(request)

    def _release(self) -> bool:
        """Start the texts whose prompt has been computed; True if there were any."""
        ready = [g for g in self._waiting if g.first_text_has_begun]
        for generation in ready:
            self._waiting.remove(generation)
            for text in generation.texts[1:]:
                self._begin(text)
        return bool(ready)

    def _ended(self, request: Request, _now: int) -> None:
        self.dead = self.dead or self._loop.dead  # before its text says that it has failed
        if request.request_id in self._registered and self._runner is not None:
            self._registered.discard(request.request_id)
            self._runner.forget(request.request_id)
        self._book.end(request, str(self._failure) if self._failure else "its steps failed")

    def _failed(self, error: Exception) -> None:
        self._failure = error


def open_engine(
    model: str | PathLike[str] | LocalEngine, options: Mapping[str, Any]
) -> LocalEngine:
    """An engine for a model, or the one that is given.

    Raises:
        TypeError: an option does not exist, or an engine is given and options too.
        ValueError: options do not fit together, or no such model.
        EngineError: it cannot be loaded, or does not fit into memory.
    """
    if isinstance(model, LocalEngine):
        if options:
            raise TypeError(f"an engine has its options already, got {sorted(options)}")
        return model
    threads = options.get(THREADS)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"{THREADS} must be a whole number, at least 1, or None, got {threads!r}")
    others = {name: value for name, value in options.items() if name != THREADS}
    return LocalEngine.build(EngineOptions.parse(model, others), threads)


def clock_from_now() -> Callable[[], int]:
    """ns since this call."""
    start, now = time.perf_counter_ns(), time.perf_counter_ns
    return lambda: now() - start


def _find_tokenizer(config: RunnerConfig) -> tuple[Tokenizer | None, str]:
    """The model's tokenizer, or None and why there is none."""
    from engine.models.model_folder import find_model

    folder = find_model(config.model, config.load_format).folder
    if folder is None:
        return None, f"there is none: {config.model} is only the shape of a model"
    try:
        return Tokenizer.from_folder(folder), ""
    except TokenizerError as error:
        return None, f"there is none: {error}"
