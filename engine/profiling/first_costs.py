"""What a first call takes besides its work: compiling, loading and capturing. Needs torch, Triton.

Hooks of Triton tell when it compiled a kernel and loaded its binary; NVRTC and the capture of a
CUDA Graph are timed by standing in for the functions that do it. What the CUDA allocator takes is
in a trace (`workbench.profile.first_call`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch.profiler import record_function
from triton.backends.nvidia import driver
from triton.runtime.autotuner import Autotuner

from engine.kernels import nvrtc
from engine.profiling.op_classes import CAPTURE, RANGE

COMPILE, LOAD, CUDA_CPP = (
    "kernel compilation (Triton)",
    "kernel loading",
    "kernel compilation (NVRTC)",
)
LAUNCHERS = "kernel launchers (C compiler)"
AUTOTUNE, CAPTURED = "autotune", "graph capture"


_BUILD = "compile_module_from_src"


class FirstCosts:
    """Adds up what calls inside of `watching` spend, by cause.

    Attributes:
        ms: cause -> ms; causes that did not come up are there with 0.
        counts: cause -> how often.
    """

    def __init__(self) -> None:
        causes = (COMPILE, LAUNCHERS, CUDA_CPP, LOAD, AUTOTUNE, CAPTURED)
        self.ms: dict[str, float] = dict.fromkeys(causes, 0.0)
        self.counts: dict[str, int] = dict.fromkeys(causes, 0)
        self._loading_since = self._capturing_since = 0.0
        self._capture_range: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what happens in the block."""
        capture = torch.cuda.CUDAGraph
        # (object, attribute, what stands in for it)
        patches: list[tuple[Any, str, Any]] = [
            (triton.knobs.compilation, "listener", self._compiled),
            (triton.knobs.runtime, "kernel_load_start_hook", self._load_begins),
            (triton.knobs.runtime, "kernel_load_end_hook", self._load_ends),
            (nvrtc, "compile_source", self._timed(nvrtc.compile_source, CUDA_CPP)),
            (Autotuner, "run", self._tuning(Autotuner.run)),
            (capture, "capture_begin", self._capture_begins(capture.capture_begin)),
            (capture, "capture_end", self._capture_ends(capture.capture_end)),
        ]
        if (build := getattr(driver, _BUILD, None)) is not None:  # not in every version of Triton
            patches.append((driver, _BUILD, self._timed(build, LAUNCHERS)))
        before = [getattr(owner, name) for owner, name, _ in patches]
        for owner, name, value in patches:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for (owner, name, _), value in zip(patches, before, strict=True):
                setattr(owner, name, value)

    def _add(self, cause: str, ms: float) -> None:
        self.ms[cause] += ms
        self.counts[cause] += 1

    def _compiled(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            self._add(COMPILE, times.total / 1e3)

    def _load_begins(self, *_: Any) -> None:
        self._loading_since = time.perf_counter()

    def _load_ends(self, *_: Any) -> None:
        self._add(LOAD, 1e3 * (time.perf_counter() - self._loading_since))

    def _timed(self, work: Callable[..., Any], cause: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                self._add(cause, 1e3 * (time.perf_counter() - begin))

        return timed

    def _tuning(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Runs of an autotuner that time candidates, without what they compile meanwhile."""

        def tuned(tuner: Any, *arguments: Any, **options: Any) -> Any:
            known, compiled = len(tuner.cache), self.ms[COMPILE] + self.ms[LOAD]
            begin = time.perf_counter()
            try:
                return run(tuner, *arguments, **options)
            finally:
                if len(tuner.cache) > known:
                    inside = self.ms[COMPILE] + self.ms[LOAD] - compiled
                    self._add(AUTOTUNE, 1e3 * (time.perf_counter() - begin) - inside)

        return tuned

    def _capture_begins(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def begins(graph: Any, *arguments: Any, **options: Any) -> Any:
            self._capturing_since = time.perf_counter()
            self._capture_range = record_function(RANGE + CAPTURE)
            self._capture_range.__enter__()
            return begin(graph, *arguments, **options)

        return begins

    def _capture_ends(self, end: Callable[..., Any]) -> Callable[..., Any]:
        def ends(graph: Any) -> Any:
            try:
                return end(graph)
            finally:
                self._capture_range.__exit__(None, None, None)
                self._add(CAPTURED, 1e3 * (time.perf_counter() - self._capturing_since))

        return ends
