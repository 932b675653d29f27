"""Times the rungs of a ladder on a GPU, and checks each result that it has timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from engine.kernels.lab.case import Lab
from engine.kernels.lab.results import RungResult, SizeResult

FLUSHED_BYTES = 256 << 20  # several times the L2 cache, written before each call
MOST_CALLS, FEWEST_CALLS = 50, 5
CALLS_MS = 60.0  # of all timed calls of a rung together, about
HOST_MARGIN, MOST_FLUSHES = (
    2.0,
    100,
)  # over the slowest queueing seen; a call that waits for the GPU


def measure_size(
    lab: Lab,
    size: Mapping[str, int],
    device: torch.device,
    names: Sequence[str] | None = None,
) -> SizeResult:
    """Time all rungs, or those named, at one size, on the same random inputs.

    A rung that cannot run here (another GPU, not enough memory) has a note instead of a time.

    Args:
        lab: the op.
        size: as `lab.make` takes it.
        device: a GPU, or a CPU for the rungs that run there.
        names: of the rungs.
    """
    case = lab.make(device, **size)
    least = lab.work(case)
    rungs = tuple(
        _measure_rung(name, run, lab, case, device)
        for name, run in lab.rungs.items()
        if names is None or name in names
    )
    return SizeResult(dict(size), least.moved_bytes, least.flops, rungs)


def _measure_rung(
    name: str,
    run: Callable[[Any], torch.Tensor],
    lab: Lab,
    case: Any,
    device: torch.device,
) -> RungResult:
    try:
        relative_error = lab.error(case, run(case))
        times_us = time_calls(lambda: run(case), device)
    except (RuntimeError, ValueError) as error:  # torch's and NVRTC's are RuntimeErrors
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises if the device itself is lost
        return RungResult(name, note=(str(error).strip().splitlines() or ["failed"])[0][:200])
    return RungResult(
        name, statistics.median(times_us), relative_error, min(times_us), len(times_us)
    )


def time_calls(work: Callable[[], object], device: torch.device) -> list[float]:
    """Time in us of single calls that find nothing of their inputs in the L2 cache.

    The flushes before each call also keep the GPU busy while the host queues the call, so what is
    timed is the GPU's work; a call that takes the host long has more of them before it.
    """
    if device.type != "cuda":
        return _time_on_host(work)
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)
    first_ms = _call_ms(work, flushed, 1)
    calls = max(FEWEST_CALLS, min(MOST_CALLS, int(CALLS_MS / max(first_ms, 1e-3))))
    flushes = _flushes_for(work, flushed)
    return [1e3 * _call_ms(work, flushed, flushes) for _ in range(calls)]


def _flushes_for(work: Callable[[], object], flushed: torch.Tensor) -> int:
    """How many flushes keep the GPU busy for longer than the host takes to queue a call."""
    queueing_ms = 0.0
    for _ in range(FEWEST_CALLS):
        torch.cuda.synchronize(flushed.device)
        begin = time.perf_counter()
        work()
        queueing_ms = max(queueing_ms, 1e3 * (time.perf_counter() - begin))
    flush_ms = min(_call_ms(flushed.zero_, flushed, 1) for _ in range(FEWEST_CALLS))
    return 1 + min(MOST_FLUSHES, int(HOST_MARGIN * queueing_ms / flush_ms))


def _call_ms(work: Callable[[], object], flushed: torch.Tensor, flushes: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(flushes):
        flushed.zero_()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _time_on_host(work: Callable[[], object]) -> list[float]:
    times_us = []
    for _ in range(FEWEST_CALLS):
        begin = time.perf_counter()
        work()
        times_us.append(1e6 * (time.perf_counter() - begin))
    return times_us
