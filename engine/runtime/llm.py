"""Generates texts for a list of prompts: the engine for scripts and notebooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from types import TracebackType
from typing import Any, Self

from engine.runtime.executor import EngineError
from engine.runtime.generation import Generation
from engine.runtime.held_interrupt import held_interrupt
from engine.runtime.local_engine import LocalEngine, RequestRejectedError, open_engine
from engine.runtime.outputs import RequestOutput
from engine.runtime.prompts import Prompt, prompt_list
from engine.runtime.serving_loop import Turn
from engine.sampling_params import SamplingParams


class LLM:
    """A model on one device.

        with LLM("demo-dense") as llm:
            outputs = llm.generate(["def mean(values):"], SamplingParams(max_tokens=20))
            print(outputs[0].outputs[0].text)

    Args:
        model: the folder of a checkpoint, a demo model ("demo-dense"), or `org/name` in the local
            Hugging Face cache; nothing is downloaded, and `engine.models.model_folder.find_model`
            says which it is. Or an engine that is there already; it closes with this.
        options: how to run it, each with a default that suits most: device="cpu", dtype="bf16",
            max_model_len=4096, load_format="dummy" (random weights, for which the name of a model
            card will do), cpu_threads=4 (on which torch computes; else a small model on a CPU
            takes one, anything else as many as torch is set to) and others.
            `engine.runtime.engine_options.EngineOptions` says where each is explained;
            docs/python_api.md has them in one table.

    Raises:
        TypeError: an option does not exist.
        ValueError: options do not fit together, or no such model.
        EngineError: it cannot be loaded, or does not fit into memory.
    """

    def __init__(self, model: str | PathLike[str] | LocalEngine, **options: Any) -> None:
        self._engine = open_engine(model, options)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def facts(self) -> dict[str, Any]:
        """Device, kernels, versions and memory of this engine."""
        return self._engine.facts

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Generate from all prompts together and return when all have ended.

        Args:
            prompts: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; or a list.
            sampling_params: for all prompts, or one for each; None is `SamplingParams()`.

        Returns:
            one output per prompt, in their order.

        Raises:
            TypeError, ValueError: a prompt or its parameters cannot be served; the message names
                it, and nothing was started.
            EngineError: the engine failed for good, or is closed.
        """
        with (
            self._lock,
            computing_on(self._engine.cpu_threads),
            held_interrupt() as let_interrupt_through,
        ):
            if self._engine.dead is not None:
                raise self._engine.dead
            generations = self._prepare(prompts, sampling_params)
            try:
                for generation in generations:
                    self._engine.submit(generation)
                self._run(let_interrupt_through)
            except BaseException:
                self._clear(generations)
                raise
            return [generation.output() for generation in generations]

    def close(self) -> None:
        """Let go of the device; idempotent."""
        with self._lock:
            self._engine.close()

    def _prepare(
        self, prompts: Any, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Generation]:
        each = prompt_list(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(each)
        if not isinstance(params, Sequence):
            raise TypeError(f"sampling parameters must be SamplingParams, got {type(params)}")
        if len(params) != len(each):
            raise ValueError(f"{len(each)} prompts, but {len(params)} sampling parameters")
        generations = []
        for at, (prompt, asked) in enumerate(zip(each, params, strict=True)):
            try:
                generations.append(self._engine.prepare(prompt, asked))
            except (TypeError, ValueError) as error:
                known = (TypeError, RequestRejectedError)
                kind = next((k for k in known if isinstance(error, k)), ValueError)
                raise kind(f"prompt {at}: {error}") from error
        return generations

    def _run(self, between_turns: Callable[[], None]) -> None:
        """Drive the engine until nothing is left to do."""
        engine = self._engine
        while engine.is_busy:
            between_turns()
            turn = engine.turn()
            if turn is Turn.WAIT:
                engine.wait()
            elif turn is Turn.IDLE and engine.is_busy:
                raise EngineError(f"nothing can run although {engine.live} texts have not ended")

    def _clear(self, generations: Sequence[Generation]) -> None:
        """Leave nothing behind of a call that failed or was interrupted."""
        if self._engine.dead is not None:
            return
        for generation in generations:
            self._engine.abort(generation)
        with suppress(EngineError):  # it is remembered, and the caller has a reason of his own
            self._engine.drain()


@contextmanager
def computing_on(threads: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads in this thread, and as before afterwards.

    Args:
        threads: None: nothing changes.
    """
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
