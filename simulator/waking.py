"""What the first step after an idle time takes longer.

While steps follow each other the host launches one as the GPU works on another. To a GPU that
waits, every launch is time that passes, and a host that slept is slower than one that did not. Of
Qwen3-0.6B on an H200 a prompt of 64 tokens takes 1.2 ms from its plan to its token if the GPU was
idle for an instant, and 2.3 ms if it was for 0.2 s.

A step is the first after an idle time if the GPU had nothing to do for LEAST_IDLE_NS or longer when
the step was planned. It begins `min(host_ns, most_host_ns) + lead_ns(idle)` after that, and takes
`gpu_ns(idle)` more than its like among others. What the host takes beyond `most_host_ns`, as to
launch the kernels of a long prompt one by one, it takes beside the GPU.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulator.power_state import Cost

LEAST_IDLE_NS: Final = 200_000

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
    """

    idle_ns: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 53)], ...]
    gpu_ns: tuple[Cost, ...]
    lead_ns: tuple[Annotated[float, msgspec.Meta(ge=-(1 << 53), le=1 << 53)], ...]
    most_host_ns: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None = None


class Waking:
    """A fit, to be looked up.

    Args:
        fit: None: nothing is known of idle times, no step takes longer.
    """

    __slots__ = ("_gpu_ns", "_idle_ns", "_lead_ns", "_most_host_ns")

    def __init__(self, fit: WakeFit | None) -> None:
        self._idle_ns = [] if fit is None else list(fit.idle_ns)
        self._gpu_ns = [] if fit is None else list(fit.gpu_ns)
        self._lead_ns = [] if fit is None else list(fit.lead_ns)
        self._most_host_ns = None if fit is None else fit.most_host_ns

    def wakes(self, idle_ns: int) -> bool:
        """Whether a step that is planned after so much idle time is the first after it."""
        return idle_ns >= LEAST_IDLE_NS and bool(self._idle_ns)

    def longer_ns(self, idle_ns: int) -> int:
        """What such a step takes longer on the GPU."""
        return int(np.interp(idle_ns, self._idle_ns, self._gpu_ns) + 0.5)

    def until_begin_ns(self, idle_ns: int, host_ns: int) -> int:
        """From the plan of such a step to the GPU's first work for it.

        Args:
            idle_ns: before it.
            host_ns: of the step.
        """
        lead_ns = float(np.interp(idle_ns, self._idle_ns, self._lead_ns))
        if self._most_host_ns is not None and host_ns > self._most_host_ns:
            host_ns = self._most_host_ns
        return max(0, int(host_ns + lead_ns + 0.5))


def longer_after_idling(fit: WakeFit | None, idle_ns: Int64) -> Int64:
    """What many steps take longer: int64[n].

    Args:
        fit: None: nothing.
        idle_ns: int64[n], of the GPU when each was planned; below 0 where it was busy.
    """
    waking = Waking(fit)
    longer = np.zeros(len(idle_ns), np.int64)
    for at in np.flatnonzero(idle_ns >= LEAST_IDLE_NS).tolist():
        if waking.wakes(int(idle_ns[at])):
            longer[at] = waking.longer_ns(int(idle_ns[at]))
    return longer
