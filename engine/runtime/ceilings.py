"""What a GPU reaches at best, measured beside an engine; every step's floor follows from it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_COPIED_BYTES = 1 << 30
_SIDE = 8192  # of a product's matrices
_SECONDS = 0.5  # of products: a chip that starts cold is faster than one that serves


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """Bandwidth of a copy and rate of a large product.

    Args:
        device: a GPU with about 3 GB free.

    Returns:
        copy_tb_s: bytes read and written, 1e12 a second; product_tflop_s: bfloat16, sustained.
    """
    ceilings = {
        "copy_tb_s": 2 * _COPIED_BYTES / _copy_seconds(device) / 1e12,
        "product_tflop_s": 2 * _SIDE**3 / _product_seconds(device) / 1e12,
    }
    torch.cuda.empty_cache()
    return ceilings


def _copy_seconds(device: torch.device) -> float:
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return min(_seconds(lambda: target.copy_(source), 10) for _ in range(3))


def _product_seconds(device: torch.device) -> float:
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    first = _seconds(lambda: torch.mm(a, b, out=out), 3)
    return _seconds(lambda: torch.mm(a, b, out=out), max(3, int(_SECONDS / first)))


def _seconds(work: Callable[[], object], times: int) -> float:
    """Mean time of one of several in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times
