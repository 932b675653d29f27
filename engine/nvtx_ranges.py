"""NVTX ranges around the parts of a step: off by default, and then free.

The environment variable WORKBENCH_NVTX=1 turns them on. Ranges around kernels that a CUDA Graph
captured appear while it is captured, not when it is replayed.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_OFF: AbstractContextManager[Any] = nullcontext()
ENABLED = os.environ.get("WORKBENCH_NVTX") == "1"

if ENABLED:
    import nvtx

    _DOMAIN = nvtx.get_domain("workbench")

    class _Range:
        """One range, reusable and nestable."""

        __slots__ = ("_attributes",)

        def __init__(self, name: str) -> None:
            self._attributes = _DOMAIN.get_event_attributes(message=name)

        def __enter__(self) -> None:
            _DOMAIN.push_range(self._attributes)

        def __exit__(self, *_: object) -> None:
            _DOMAIN.pop_range()

    _RANGES: dict[str, AbstractContextManager[Any]] = {}


def annotate(name: str) -> AbstractContextManager[Any]:
    """A range called `name`, if the environment variable WORKBENCH_NVTX is 1; else nothing."""
    if not ENABLED:
        return _OFF
    found = _RANGES.get(name)
    if found is None:
        found = _RANGES[name] = _Range(name)
    return found
