"""Measures what single kernels take: tables from which models that never ran are composed.

Cases come in no order, so that products of many rows, which heat the GPU, lie among those of few,
which let it cool: most of the time it reads memory or captures graphs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.profiling.kernel_cases import KernelCase, KernelLimits

PASSES: Final = 2  # over all cases, in another order each


class KernelMeter(Protocol):
    """A device whose kernels can be measured; `engine.profiling.kernel_device` has one."""

    @property
    def name(self) -> str:
        """As the driver names it, or "cpu"."""
        ...

    @property
    def number_format(self) -> str:
        """Short name of the dtype of weights, activations and KV."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens of a KV page."""
        ...

    @property
    def limits(self) -> KernelLimits:
        """What there is room for."""
        ...

    @property
    def bus_id(self) -> str | None:
        """Of a GPU, as `nvidia-smi` names it."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what compiles and runs kernels."""
        ...

    @property
    def implementations(self) -> Mapping[str, str]:
        """Op -> whose kernels run it."""
        ...

    def compile(self, cases: Sequence[KernelCase]) -> None:
        """Compile what cases need."""
        ...

    def times(self, case: KernelCase) -> list[float]:
        """ns of one launch of a case, measured several times."""
        ...


@dataclass(slots=True)
class KernelTimes:
    """Times in ns of one launch; what is here need not be measured again.

    Attributes:
        times: case -> one time a repetition.
        passes: case -> how often it was measured.
    """

    times: dict[KernelCase, list[float]] = field(default_factory=dict)
    passes: dict[KernelCase, int] = field(default_factory=dict)

    def add(self, case: KernelCase, times: Iterable[float]) -> None:
        """One more pass over a case."""
        self.times.setdefault(case, []).extend(times)
        self.passes[case] = self.passes.get(case, 0) + 1


def measure_kernels(
    meter: KernelMeter,
    cases: Sequence[KernelCase],
    done: KernelTimes,
    *,
    deadline_s: float,
    measured: Callable[[KernelCase, list[float], float], object],
) -> bool:
    """Measure all cases in several passes, as far as time allows.

    Args:
        meter: of the device.
        cases: what to measure.
        done: what there is already; grows.
        deadline_s: on `time.monotonic`.
        measured: told (case, times in ns, share of all passes that are done) after each.

    Returns:
        Whether all passes were made.
    """
    order, total, at = list(cases), PASSES * len(cases), 0
    shuffle = random.Random(1)  # noqa: S311 - an order, no secret
    for number in range(PASSES):
        shuffle.shuffle(order)
        for case in order:
            at += 1
            if done.passes.get(case, 0) > number:
                continue
            if time.monotonic() >= deadline_s:
                return False
            times = meter.times(case)
            done.add(case, times)
            measured(case, times, at / total)
    return True
