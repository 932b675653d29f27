"""When a GPU begins a step and a host knows its end, and what a step after an idle time takes more.

A GPU that is busy begins the next step as soon as it has done the one before (7 us later, as
measured), if the host is that far. The host need not have launched all of a step by then: a decode
step is one launch, and of a long prompt's kernels, launched one by one, the first run while the
last are still being launched. So a GPU never waits for more of the host's time than `most_host_ns`,
and what the host takes beyond, it takes beside the GPU.

To a GPU that waits, every launch is time that passes, and a host that slept is slower than one that
did not. Of Qwen3-0.6B on an H200 a prompt of 64 tokens takes 1.2 ms from its plan to its token if
the GPU was idle for an instant, and 2.3 ms if it was for 0.2 s. With

    idle     how long the GPU had nothing to do when the step was planned
    part     min(1, idle / SOON_NS), 0 if the GPU was busy

a step can begin `min(host_ns, most_host_ns) + part * lead_ns(idle)` after its plan, and takes
`part * gpu_ns(idle)` more than its like among others. When it is done, its tokens are on their way
to the host, which knows them `result_ns` later; the GPU does not wait for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulator.power_state import Cost

SOON_NS: Final = 200_000  # idle times below are measured by nobody: from there to none it is linear

Int64 = NDArray[np.int64]


class WakeFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tables over idle times, linear in between and constant outside.

    Attributes:
        idle_ns: ascending.
        gpu_ns: that a step takes longer after so much idle time, not descending.
        lead_ns: what is added to the host's time for the step, until the GPU begins; below 0 where
            the host does a part of its work beside the GPU.
        most_host_ns: host's time of the longest step that tells; None: it is not known, and a GPU
            waits for all of it.
        result_ns: from the end of a step until the host knows of it.
    """

    idle_ns: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 53)], ...]
    gpu_ns: tuple[Cost, ...]
    lead_ns: tuple[Annotated[float, msgspec.Meta(ge=-(1 << 53), le=1 << 53)], ...]
    most_host_ns: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None = None
    result_ns: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class Waking:
    """A fit, to be looked up.

    Args:
        fit: None: nothing is known of idle times, no step takes longer.

    Attributes:
        result_ns: from the end of a step until the host knows of it.
    """

    __slots__ = ("_gpu_ns", "_idle_ns", "_lead_ns", "_most_host_ns", "result_ns")

    def __init__(self, fit: WakeFit | None) -> None:
        self.result_ns = 0 if fit is None else fit.result_ns
        self._idle_ns = [] if fit is None else list(fit.idle_ns)
        self._gpu_ns = [] if fit is None else list(fit.gpu_ns)
        self._lead_ns = [] if fit is None else list(fit.lead_ns)
        self._most_host_ns = None if fit is None else fit.most_host_ns

    def wakes(self, idle_ns: int) -> bool:
        """Whether a step that is planned after so much idle time is the first after it."""
        return idle_ns > 0 and bool(self._idle_ns)

    def longer_ns(self, idle_ns: int) -> int:
        """What a step takes longer on the GPU; `idle_ns` is below 0 where that was busy."""
        return int(self._at(idle_ns, self._gpu_ns) + 0.5) if self.wakes(idle_ns) else 0

    def until_begin_ns(self, idle_ns: int, host_ns: int) -> int:
        """From the plan of a step to the GPU's first work for it, if the GPU is free by then.

        Args:
            idle_ns: before the plan; below 0 where the GPU was busy.
            host_ns: of the step.
        """
        if self._most_host_ns is not None and host_ns > self._most_host_ns:
            host_ns = self._most_host_ns
        if not self.wakes(idle_ns):
            return host_ns
        return max(0, int(host_ns + self._at(idle_ns, self._lead_ns) + 0.5))

    def _at(self, idle_ns: int, table: Sequence[float]) -> float:
        return min(1.0, idle_ns / SOON_NS) * float(np.interp(idle_ns, self._idle_ns, table))


def longer_after_idling(fit: WakeFit | None, idle_ns: Int64) -> Int64:
    """What many steps take longer: int64[n].

    Args:
        fit: None: nothing.
        idle_ns: int64[n], of the GPU when each was planned; below 0 where it was busy.
    """
    waking = Waking(fit)
    longer = np.zeros(len(idle_ns), np.int64)
    for at in np.flatnonzero(idle_ns > 0).tolist():
        longer[at] = waking.longer_ns(int(idle_ns[at]))
    return longer
