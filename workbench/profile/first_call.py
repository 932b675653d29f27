"""What a first call took, by cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.profiling.op_classes import CAPTURE
from workbench.profile.trace import Trace

ALLOCATOR: Final = "memory allocation (cudaMalloc)"
GPU: Final = "the work itself, on the GPU"
OTHER: Final = "libraries, lazy loading, Python"
_ALLOCATIONS: Final = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaHostRegister", "cuMem")


@dataclass(frozen=True, slots=True)
class FirstCall:
    """A first call.

    Attributes:
        wall_ms: all of it.
        causes: (cause, ms, how often; 0: not counted), which sum to `wall_ms`.
    """

    wall_ms: float
    causes: tuple[tuple[str, float, int], ...]


def first_call(
    wall_ms: float, causes_ms: Mapping[str, float], counts: Mapping[str, int], trace: Trace
) -> FirstCall:
    """Divide a first call among its causes.

    Compiling, loading, tuning and capturing were timed where they happen; allocation is what the
    calls of CUDA's allocator took outside of captures. The GPU's own time counts as far as nothing
    else explains it, and the rest is the libraries'.

    Args:
        wall_ms: of the call.
        causes_ms: cause -> ms, as `engine.profiling.first_costs` has them.
        counts: cause -> how often.
        trace: of the call.
    """
    captures = trace.ranges(CAPTURE)
    allocations = [
        work.duration_us
        for work in trace.host
        if work.kind.startswith("cuda") and work.name.startswith(_ALLOCATIONS)
        and not any(c.start_us <= work.start_us <= c.end_us for c in captures)
    ]  # fmt: skip
    found = [(cause, ms, counts.get(cause, 0)) for cause, ms in causes_ms.items()]
    found.append((ALLOCATOR, sum(allocations) / 1e3, len(allocations)))
    left = max(0.0, wall_ms - sum(ms for _, ms, _ in found))
    gpu_ms = min(left, sum(work.duration_us for work in trace.device) / 1e3)
    found += [(GPU, gpu_ms, 0), (OTHER, left - gpu_ms, 0)]
    return FirstCall(wall_ms, tuple(found))
