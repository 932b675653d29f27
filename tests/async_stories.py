"""Stories in an event loop about streams of an `AsyncLLM`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine import AsyncLLM, SamplingParams
from engine.runtime.outputs import RequestOutput

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
