"""Streams texts to many callers at once: the engine for servers.

A thread of its own drives the engine. Callers send it what they want through an inbox and read the
growing texts by themselves; all they are told is that there is something new. So a caller who is
slow finds more when he looks, and holds nobody up.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Any, Self

from engine.runtime.executor import EngineError
from engine.runtime.generation import Generation
from engine.runtime.llm import computing_on
from engine.runtime.local_engine import LocalEngine, open_engine
from engine.runtime.outputs import RequestOutput
from engine.runtime.prompts import Prompt, parse_prompt
from engine.runtime.serving_loop import Turn
from engine.sampling_params import SamplingParams

_LONG_TEXT = 4096  # characters; a longer prompt is encoded in a thread
_PAUSE_S = 60e-6  # per stream: about twice what a reader needs for one output


class AsyncLLM:
    """A model on one device, for callers in event loops.

        async with AsyncLLM("demo-moe") as llm:
            async for output in llm.generate("def mean(values):", SamplingParams(max_tokens=20)):
                print(output.outputs[0].text)

    Args:
        model, options: as of `engine.LLM`, which raises the same errors.
    """

    def __init__(self, model: str | PathLike[str] | LocalEngine, **options: Any) -> None:
        self._engine = open_engine(model, options)
        self._streams: dict[str, _Stream] = {}
        self._readers = _Readers()
        self._numbers = itertools.count()
        self._inbox: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._closing = self._over = False
        self._thread = threading.Thread(target=self._compute, name="engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def facts(self) -> dict[str, Any]:
        """Device, kernels, versions and memory of this engine."""
        return self._engine.facts

    @property
    def error(self) -> Exception | None:
        """Why the engine serves nobody any more, or None."""
        return self._engine.dead

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        delta: bool = False,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate from a prompt; each output says what there is so far.

        The request ends when its texts do, when the caller's task is cancelled, when the generator
        is closed (`contextlib.aclosing`), and by `abort`.

        Args:
            prompt: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}.
            sampling_params: None is `SamplingParams()`.
            request_id: for `abort`; None: one is made.
            delta: outputs hold only what is new since the one before.

        Raises:
            RequestRejectedError: the prompt can never fit.
            TypeError, ValueError: the prompt or the parameters cannot be served, or the id is in
                use.
            EngineError: the engine failed for good, or is closed.
        """
        stream = await self._start(prompt, sampling_params, request_id, delta)
        try:
            while True:
                await stream.news.wait()
                stream.news.clear()
                if self._engine.dead is not None and stream.generation.has_failed:
                    raise self._engine.dead
                if not stream.generation.has_news:
                    continue
                output = stream.generation.output()
                yield output
                if output.finished:
                    return
        finally:
            self._leave(stream)

    async def abort(self, request_id: str) -> bool:
        """End a request; its stream ends with what there is. False if it is not alive."""
        stream = self._streams.get(request_id)
        if stream is None:
            return False
        done: Future[bool] = Future()

        def message() -> None:
            waits = done.set_running_or_notify_cancel()  # the caller may have given up waiting
            try:
                aborted = self._engine.abort(stream.generation)
            except BaseException as error:
                if waits:
                    done.set_exception(error)
                raise
            if waits:
                done.set_result(aborted)

        self._send(message)
        if self._over and not done.done():  # nobody reads the inbox any more
            return False
        return await asyncio.wrap_future(done)

    async def close(self) -> None:
        """Abort all requests, whose streams then end, and let go of the device; idempotent."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    # ---- in the callers' event loops -------------------------------------------------------------

    async def _start(
        self, prompt: Any, params: SamplingParams | None, request_id: str | None, delta: bool
    ) -> _Stream:
        self._check_open()
        name = f"request-{next(self._numbers)}" if request_id is None else request_id
        text = parse_prompt(prompt).text
        arguments = (prompt, params, name, delta)
        if text is not None and len(text) > _LONG_TEXT:
            generation = await asyncio.to_thread(self._engine.prepare, *arguments)
            self._check_open()
        else:
            generation = self._engine.prepare(*arguments)
        if name in self._streams:
            raise ValueError(f"request id {name!r} is in use")
        stream = _Stream(generation)
        self._streams[name] = stream
        self._readers.add(stream)
        self._send(lambda: self._engine.submit(generation))
        if self._over and not generation.is_over:  # nobody reads the inbox any more
            self._leave(stream)
            self._check_open()
        return stream

    def _check_open(self) -> None:
        if self._engine.dead is not None:
            raise self._engine.dead
        if self._closing or self._over:
            raise EngineError("the engine is closed")

    def _leave(self, stream: _Stream) -> None:
        """The caller reads no more."""
        self._streams.pop(stream.generation.request_id, None)
        self._readers.remove(stream)
        if not stream.generation.is_over:
            self._send(lambda: self._engine.abort(stream.generation))

    def _send(self, message: Callable[[], object]) -> None:
        self._inbox.append(message)
        self._wake.set()

    # ---- in the engine's thread ------------------------------------------------------------------

    def _compute(self) -> None:
        with computing_on(self._engine.cpu_threads):
            self._drive()

    def _drive(self) -> None:
        try:
            while not self._closing:
                self._read_inbox()
                turn = self._engine.turn()
                if turn is Turn.AGAIN:
                    self._readers.tell()
                elif turn is Turn.WAIT:
                    while not (self._engine.step_is_done or self._inbox or self._closing):
                        time.sleep(0)
                else:
                    self._readers.tell(at_once=True)
                    self._sleep()
            self._read_inbox()  # requests whose readers have just left are among no streams
            self._abort_all()
            self._engine.drain()
        except Exception as error:  # noqa: BLE001 - every stream raises it
            self._engine.give_up(error)
        finally:
            self._over = True
            while self._inbox:
                with suppress(EngineError):  # a request that came too late; its stream tells
                    self._read_inbox()
            self._abort_all()
            try:
                self._engine.close()
            finally:
                self._readers.tell(at_once=True)

    def _abort_all(self) -> None:
        for stream in list(self._streams.values()):
            self._engine.abort(stream.generation)

    def _read_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _sleep(self) -> None:
        """Wait until there is something in the inbox."""
        self._wake.clear()
        if not (self._inbox or self._closing):
            self._wake.wait()


class _Stream:
    """One caller's stream.

    Attributes:
        generation: what it reads.
        news: set in `loop` when there may be something new.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()


class _Readers:
    """All streams by event loop, so that a step wakes each loop once at most.

    A loop that has not got round to looking since it was told is not told again. The more streams
    there are, the more rarely they are told: readers and engine share one interpreter, and if the
    readers took all of it the device would wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[asyncio.AbstractEventLoop, dict[_Stream, None]] = {}
        self._told: set[asyncio.AbstractEventLoop] = set()
        self._not_before_s = 0.0

    def add(self, stream: _Stream) -> None:
        with self._lock:
            self._streams.setdefault(stream.loop, {})[stream] = None

    def remove(self, stream: _Stream) -> None:
        with self._lock:
            streams = self._streams.get(stream.loop, {})
            streams.pop(stream, None)
            if not streams:
                self._streams.pop(stream.loop, None)

    def tell(self, at_once: bool = False) -> None:
        """There may be something new; called in the engine's thread.

        Args:
            at_once: nobody will be told again soon.
        """
        now_s = time.perf_counter()
        if now_s < self._not_before_s and not at_once:
            return
        with self._lock:
            self._not_before_s = now_s + _PAUSE_S * sum(map(len, self._streams.values()))
            untold = [loop for loop in self._streams if loop not in self._told]
            self._told.update(untold)
        for loop in untold:
            try:
                loop.call_soon_threadsafe(self._look, loop)
            except RuntimeError:  # it is closed, and so are its streams
                with self._lock:
                    self._streams.pop(loop, None)
                    self._told.discard(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the streams of a loop that have something new; called in that loop."""
        with self._lock:
            self._told.discard(loop)
            streams = list(self._streams.get(loop, ()))
        for stream in streams:
            if stream.generation.has_news:
                stream.news.set()
