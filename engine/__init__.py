"""The engine: real serving on GPUs, and `engine.core`, the scheduler it shares with the simulator.

Importing this package never imports torch; `LLM` and `AsyncLLM` do when they are made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.compiled import activate

if TYPE_CHECKING:
    from engine.runtime.async_llm import AsyncLLM
    from engine.runtime.executor import EngineError, ExecutorDiedError
    from engine.runtime.llm import LLM
    from engine.runtime.local_engine import RequestRejectedError
    from engine.sampling_params import SamplingParams

activate()

__all__ = [
    "LLM",
    "AsyncLLM",
    "EngineError",
    "ExecutorDiedError",
    "RequestRejectedError",
    "SamplingParams",
]

_HOMES = {
    "LLM": "engine.runtime.llm",
    "AsyncLLM": "engine.runtime.async_llm",
    "EngineError": "engine.runtime.executor",
    "ExecutorDiedError": "engine.runtime.executor",
    "RequestRejectedError": "engine.runtime.local_engine",
    "SamplingParams": "engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    """The public classes, imported when somebody asks for them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
