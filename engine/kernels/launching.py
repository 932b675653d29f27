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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import triton
from triton.runtime._async_compile import AsyncCompileMode, FutureKernel


@dataclass(frozen=True, slots=True)
class _Orders:
    """What launches inside `compile_only` have ordered.

    Attributes:
        pool: threads that compile.
        device: where the kernels are going to run.
        triton: kernels, or futures of them.
        others: what makes another kernel ready -> its future.
    """

    pool: ThreadPoolExecutor
    device: torch.device
    triton: list[Any] = field(default_factory=list)
    others: dict[Callable[[torch.device], object], Future[object]] = field(default_factory=dict)


_orders: ContextVar[_Orders | None] = ContextVar("orders", default=None)


def order(prepare: Callable[[torch.device], object]) -> bool:
    """Inside `compile_only`, run `prepare(device)` on one of its threads, once.

    For kernels that are not Triton's, before each launch.

    Returns:
        Whether it was ordered, and nothing is to be launched.
    """
    orders = _orders.get()
    if orders is not None and prepare not in orders.others:
        orders.others[prepare] = orders.pool.submit(prepare, orders.device)
    return orders is not None


class Kernel:
    """A Triton kernel; `jit` is Triton's own object."""

    def __init__(self, jit: Any) -> None:
        self.jit = jit

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        """What launches the kernel over a grid."""
        orders = _orders.get()
        if orders is None:
            return self.jit[grid]
        made = orders.triton
        return lambda *args, **options: made.append(self.jit.warmup(*args, grid=grid, **options))


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
def compile_only(device: torch.device) -> Iterator[None]:
    """Launches inside compile, in parallel, and run nothing; at the end all can be launched.

    Args:
        device: a GPU, on which the kernels are going to run.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        orders = _Orders(pool, device)
        token = _orders.set(orders)
        try:
            with AsyncCompileMode(pool):
                yield
        finally:
            _orders.reset(token)
        done = (each.result() if isinstance(each, FutureKernel) else each for each in orders.triton)
        made = {id(each): each for each in done}
        list(pool.map(partial(_load, device=device), made.values()))
        for other in orders.others.values():
            other.result()


def _load(compiled: Any, device: torch.device) -> None:
    """Load a kernel, and build the function that launches it, which takes a C compiler's time."""
    if compiled is not None:
        torch.cuda.set_device(device)  # each thread has a device of its own
        _ = compiled.run
