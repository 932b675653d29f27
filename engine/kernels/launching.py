"""Kernels as the engine launches them, and a way to compile them without launching.

    @kernel()
    def _double_kernel(x, n, BLOCK: tl.constexpr): ...

    _double_kernel[grid](x, n, BLOCK=128)

Compiling one kernel takes about a second, most of it outside of Python. Inside `compile_only` a
launch just orders the compilation of its variant, on a pool of threads, so that a whole model's
kernels compile side by side while a dry run of the model walks through them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import triton
from triton.runtime._async_compile import AsyncCompileMode

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


class Kernel:
    """A Triton kernel; `jit` is Triton's own object."""

    def __init__(self, jit: Any) -> None:
        self.jit = jit

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        """What launches the kernel over a grid."""
        if _compiling.get():
            return lambda *args, **options: self.jit.warmup(*args, grid=grid, **options)
        return self.jit[grid]


def kernel(
    *, do_not_specialize: Sequence[str] = (), jit: Callable[..., Any] = triton.jit
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a Triton function one that can be launched.

    Args:
        do_not_specialize: integer arguments that vary from step to step: one variant serves 1,
            multiples of 16, and all else.
        jit: of the language that the function is written in, Triton or Gluon.
    """
    return lambda function: Kernel(jit(function, do_not_specialize=do_not_specialize))


@contextmanager
def compile_only(threads: int | None = None) -> Iterator[None]:
    """Launches inside compile, in parallel, and run nothing; at the end everything is compiled.

    Args:
        threads: that compile; None: one per processor.
    """
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool, AsyncCompileMode(pool):
        token = _compiling.set(True)
        try:
            yield
        finally:
            _compiling.reset(token)
