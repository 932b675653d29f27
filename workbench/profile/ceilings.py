"""What a GPU reaches at best, and what bounds a kernel that is below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.core.hardware_spec import HardwareSpec
from workbench.profile.counted_work import Work
from workbench.profile.wrong_file import checked

MEMORY, COMPUTE, LATENCY = "memory", "compute", "latency"
LINK: Final = "link"
"""What bounds an exchange between GPUs; it is under no roof of a GPU."""
_LATENCY_BELOW: Final = 0.35  # of the ceiling: neither bytes nor FLOPs explain the time
NEVER_QUANTIZED: Final = ("attention_prefill", "attention_decode", "router", "lm_head")
"""Classes that compute in the model's own dtype, whatever its other weights are stored in."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The two limits of a roofline.

    Attributes:
        tb_s: 1e12 bytes a second, read and written, of a large copy.
        tflop_s: of a large product of matrices.
        source: where these figures come from, in words.
        plain_tflop_s: the same in the dtype of `NEVER_QUANTIZED`; None: it is the same.
    """

    tb_s: float
    tflop_s: float
    source: str
    plain_tflop_s: float | None = None

    def of(self, kind: str) -> Ceilings:
        """The two limits of a class of kernels."""
        plain = self.plain
        return self if plain is None or kind not in NEVER_QUANTIZED else plain

    @property
    def plain(self) -> Ceilings | None:
        """The limits of `NEVER_QUANTIZED`, where they are others."""
        if self.plain_tflop_s is None:
            return None
        return Ceilings(self.tb_s, self.plain_tflop_s, self.source)

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on arithmetic takes longer than memory."""
        return self.tflop_s / self.tb_s

    def attainable_tflop_s(self, intensity: float) -> float:
        """The height of the roof."""
        return min(self.tflop_s, self.tb_s * intensity)

    def floor_us(self, work: Work) -> float:
        """The least time for some work."""
        return max(work.num_bytes / self.tb_s, work.flops / self.tflop_s) / 1e6


def measured_ceilings(values: Mapping[str, Any] | None) -> Ceilings | None:
    """Ceilings as `engine.runtime.ceilings.measure_ceilings` tells them; None: it measured none.

    Raises:
        KeyError, TypeError, ValueError: it tells them otherwise.
    """
    if not values:
        return None
    copy, product = (
        checked(name, values[name], positive=True) for name in ("copy_tb_s", "product_tflop_s")
    )
    return Ceilings(copy, product, "measured beside the engine")


def assumed_ceilings(
    gpu: HardwareSpec, weight_dtype: str, plain_dtype: str | None = None
) -> Ceilings:
    """Ceilings of a GPU by its entry, which says whether they were measured.

    Args:
        gpu: the GPU.
        weight_dtype: in which products compute.
        plain_dtype: in which `NEVER_QUANTIZED` do; None: the same.

    Raises:
        UnsupportedGpuDtypeError: it does not compute in one of them.
    """
    plain = None
    if plain_dtype not in (None, weight_dtype):
        plain = gpu.gemm_flops(plain_dtype) / 1e12
    products = gpu.gemm_flops(weight_dtype) / 1e12
    return Ceilings(gpu.copy_bandwidth / 1e12, products, gpu.achievable.source, plain)


@dataclass(frozen=True, slots=True)
class Reached:
    """What some work reached in a time.

    Attributes:
        tb_s, tflop_s: as it went.
        fraction: of the time, the least that it takes; above 1 data came from the cache.
        bound: MEMORY, COMPUTE or LATENCY.
    """

    tb_s: float
    tflop_s: float
    fraction: float
    bound: str


def reached(work: Work, time_us: float, ceilings: Ceilings) -> Reached:
    """How near to its ceiling some work came.

    Args:
        work: what was done.
        time_us: how long it took, above 0.
        ceilings: of the device.
    """
    fraction = ceilings.floor_us(work) / time_us
    limit = COMPUTE if work.intensity > ceilings.ridge else MEMORY
    bound = limit if fraction >= _LATENCY_BELOW else LATENCY
    return Reached(work.num_bytes / time_us / 1e6, work.flops / time_us / 1e6, fraction, bound)


def in_words(kind: str, work: Work, time_us: float, found: Reached) -> str:
    """A sentence on what bounds a class of kernels.

    Args:
        kind: the class.
        work: what it did.
        time_us: how long it took.
        found: what it reached.
    """
    if found.bound == MEMORY:
        how = f"moves {_bytes(work.num_bytes)} at {found.tb_s:.2f} TB/s"
        return f"{kind} is memory-bound: it {how}, {found.fraction:.0%} of a copy's rate"
    if found.bound == COMPUTE:
        how = f"does {work.flops / 1e9:,.1f} GFLOP at {found.tflop_s:,.0f} TFLOP/s"
        return f"{kind} is compute-bound: it {how}, {found.fraction:.0%} of a large product's rate"
    least = found.fraction * time_us
    return (
        f"{kind} is bound by latency: {time_us:,.1f} us for {_bytes(work.num_bytes)}, which need "
        f"{least:,.1f} us"
    )


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} bytes"
