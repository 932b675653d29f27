"""Programmatic dependent launch: a kernel may start while the one before it still runs.

A kernel launched so must call `wait` before it reads anything that an earlier kernel wrote and
before it writes anything at all; what no kernel ever writes (weights) it may read at once. Anything
else that is read before the wait may be stale: it may only serve as a hint, such as an address to
prefetch, clamped into range.

`wait` returns when every earlier kernel is done and its writes are visible, because each of them
waited in the same way. `launch_dependents` lets the next kernel start; it makes no promise about
data, so the earlier it is called the better.

Hopper and later have it (CUDA C++ Programming Guide, "Programmatic Dependent Launch"). The
interpreter and older GPUs do not: the constexpr `PDL` of each kernel is False there.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def wait(PDL: tl.constexpr) -> None:
    """Wait until every earlier kernel is done."""
    if PDL:
        gdc_wait()


@triton.jit
def launch_dependents(PDL: tl.constexpr) -> None:
    """Let the next kernel start."""
    if PDL:
        gdc_launch_dependents()


@cache
def _has_pdl(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index)[0] >= 9


def launch_options(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a kernel launch on `device`: the constexpr PDL, and the launch flag."""
    if INTERPRETED or device.type != "cuda":
        return {"PDL": False}
    if _has_pdl(device.index if device.index is not None else torch.cuda.current_device()):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}
