"""The packages that only the engine needs, and what to say where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

from engine.runtime.executor import EngineError

_PACKAGES: Final = ("torch", "triton", "tokenizers", "nvtx")


def import_engine(module: str) -> ModuleType:
    """A module of the engine that needs torch, by name: mypy has no types of torch here.

    Raises:
        EngineError: a package of the engine is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise EngineError(
            f"the engine needs {error.name}, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None


def use_one_thread() -> None:
    """Let torch compute on one CPU thread, in a process that is ours.

    Threads that wait for each other cost a small model more than they save, and many times more
    while others use the processor.
    """
    import_engine("torch").set_num_threads(1)
