"""What a step takes by class where nobody measured it, by the analytic cost model's rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.core.hardware_spec import HardwareSpec
from workbench.profile.counted_work import ELEMENTWISE, Work

_MOVERS: Final = (ELEMENTWISE, "sampling")
_ATTENTION: Final = ("attention_prefill", "attention_decode")


def predicted_times(
    work: Mapping[str, Work], gpu: HardwareSpec, weight_dtype: str
) -> dict[str, float]:
    """Class -> us of a step, without gaps between kernels.

    Args:
        work: class -> what it has to do.
        gpu: on what.
        weight_dtype: in which products compute.
    """
    return {kind: _time_us(kind, one, gpu, weight_dtype) for kind, one in work.items()}


def _time_us(kind: str, work: Work, gpu: HardwareSpec, weight_dtype: str) -> float:
    if kind in _MOVERS:
        return work.num_bytes / gpu.copy_bandwidth * 1e6
    if kind in _ATTENTION:
        moved_s, done_s = work.num_bytes / gpu.copy_bandwidth, work.flops / gpu.attention_flops
    else:
        moved_s = work.num_bytes / gpu.weight_bandwidth
        done_s = work.flops / gpu.gemm_flops(weight_dtype)
    return max(moved_s, done_s) * 1e6
