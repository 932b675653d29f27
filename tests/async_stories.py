"""Stories in an event loop about streams of an `AsyncLLM`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from engine import AsyncLLM, SamplingParams
from engine.runtime.local_engine import LocalEngine
from engine.runtime.outputs import RequestOutput
from engine.runtime.serving_loop import Turn

PATIENCE_S = 60


def play(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story in an event loop; one that hangs fails."""
    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))


def asks(**changes: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 20} | changes)


async def collect(llm: AsyncLLM, *args: object, **kwargs: object) -> list[RequestOutput]:
    return [output async for output in llm.generate(*args, **kwargs)]


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the engine's thread sets no event
        await asyncio.sleep(0.001)


class Held:
    """An engine that comes to the middle of its texts and waits there, listening, for `go`.

    So what a story does in the middle of a text is in the middle of it on any machine, however long
    the story's thread is kept waiting.

    Args:
        engine: nothing drives it yet, or it is idle.
        turns: in which it does something, before it waits.

    Attributes:
        go: set to let it go on.
    """

    def __init__(self, engine: LocalEngine, turns: int) -> None:
        self.go = threading.Event()
        self._engine, self._turn, self._left = engine, engine.turn, turns
        engine.turn = self  # type: ignore[method-assign, assignment]

    def __call__(self) -> Turn:
        if self.waits:
            time.sleep(0.001)
            return Turn.AGAIN
        turn = self._turn()
        self._left -= turn is Turn.AGAIN
        return turn

    def go_on(self, turns: int) -> None:
        """Let it take so many turns more."""
        self._left = turns

    @property
    def waits(self) -> bool:
        """Whether it has come to where it waits, has not been let go, and has texts to end."""
        return self._left <= 0 and not self.go.is_set() and self._engine.live > 0
