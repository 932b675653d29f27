"""What a GPU's power limit does to steps: the clocks of one that computes a lot are lower.

A GPU at its power limit lowers its clocks, and the same step takes longer than on one that was busy
reading memory, or idle, a moment ago: of Llama-3.1-8B on an H200 a prompt's step up to 18 %, a
decode step up to 5 %. What counts is the load: the share of the last tenth of a second in which
arithmetic kept the GPU busy, recent times counting more.

The law is simple on purpose. Let a step take `gpu_ns` where it was calibrated, after light steps
that ran for REST_NS, and let

    busy     min(1, (tokens * token_ns + pairs * pair_ns) / gpu_ns), its share of arithmetic
    heat     the same, with DECODING tokens for each that is decoded
    x        ns / TAU_NS
    left     1 / (1 + x + x^2 / 2), how much of the load before is left after so many ns of it
    at(ns)   heat + (load - heat) * left(ns), the load then
    slow     the mean of slowdown(at(ns)) at the two places that stand for all of the step
    longer   1 + slow * (memory_share + (1 - memory_share) * busy)

Then with the load that it meets, the step takes gpu_ns * longer(load) / longer(load where it was
calibrated), and the load after it is at(the time it takes). While the GPU idles, the load goes down
as during a step without arithmetic. A token that is decoded heats more than one of a prompt, as few
of them fill a tile and each reads a context of its own. `left` is the exponential that belongs to
it, nearly, by operations that are the same everywhere: results are the same integers.

The load where a step was calibrated is that of light steps and of the step itself taking turns:
light + (after - light) * left(REST_NS), where `after` is the load that the step leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

TAU_NS: Final = 100_000_000.0  # of all tried from 10 ms to 10 s, what explains most on an H200
REST_NS: Final = 50_000_000  # of light steps before each that is calibrated
DECODING: Final = 2.5  # of 1 to 4, what explains most of nine loads on another H200
_PLACES: Final = (0.21132486540518713, 0.7886751345948129)  # of a step, for a mean (Gauss)


Cost = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]  # whole ns of a sum fit in int64
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Int64 = NDArray[np.int64]


class PowerFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much longer steps take on a GPU that lowers its clocks.

    Attributes:
        token_ns: arithmetic of a token.
        pair_ns: of a (query, key) pair of a prompt.
        load: ascending loads.
        slowdown: share of its time that a step of nothing but arithmetic takes longer at each, not
            descending; linear in between, constant outside.
        memory_share: as much of it concerns a step without arithmetic.
        light_busy: heat of the light steps before each calibrated one.
    """

    token_ns: Cost
    pair_ns: Cost = 0.0
    load: tuple[Share, ...]
    slowdown: tuple[Cost, ...]
    memory_share: Share
    light_busy: Share


class PowerState:
    """The load of one GPU while steps run on it, one after the other.

    Args:
        fit: of the GPU and model; None: nothing is known, no step gets longer.

    Attributes:
        load: mean heat of recent time, 0 to 1, at the end of the last step.
    """

    __slots__ = ("_cool", "_fit", "_until_ns", "load")

    def __init__(self, fit: PowerFit | None) -> None:
        self._fit = fit
        self._cool = 0.0 if fit is None else _coolest(fit)
        self._until_ns = 0
        self.load = 0.0

    def lengthen(
        self, gpu_ns: int, tokens: int, start_ns: int, decodes: int, pairs: int = 0
    ) -> int:
        """What a step takes that took `gpu_ns` when it was calibrated; it becomes the last one.

        Args:
            gpu_ns: of the step, at least 1.
            tokens: that it computes.
            start_ns: when it starts; not before the last one's end.
            decodes: of these tokens, those that are decoded.
            pairs: of a query and a key, of its prompts.
        """
        if (fit := self._fit) is None:
            return gpu_ns
        load = self.load_at(start_ns)
        busy = (tokens * fit.token_ns + pairs * fit.pair_ns) / gpu_ns
        heat = busy + (DECODING - 1.0) * decodes * fit.token_ns / gpu_ns
        if busy > 1.0:
            busy = 1.0
        if heat > 1.0:
            heat = 1.0
        if load > self._cool or heat > self._cool:
            gpu_ns = _longer_ns(fit, gpu_ns, busy, heat, load)
        self.passed(gpu_ns, heat, load, start_ns)
        return gpu_ns

    def load_at(self, time_ns: int) -> float:
        """The load after idling since the last step."""
        idle_ns = time_ns - self._until_ns
        return self.load * left(idle_ns) if idle_ns > 0 else self.load

    def passed(self, gpu_ns: int, heat: float, load: float, start_ns: int) -> None:
        """A step ran from `start_ns` on for `gpu_ns`, when the load was `load`."""
        self.load = heat + (load - heat) * left(gpu_ns)
        self._until_ns = start_ns + gpu_ns

    def snapshot(self) -> tuple[float, int]:
        """To go back to, by `restore`."""
        return self.load, self._until_ns

    def restore(self, snapshot: tuple[float, int]) -> None:
        """Forget the steps since the snapshot."""
        self.load, self._until_ns = snapshot


def left(ns: float) -> float:
    """How much of a load is left after so many ns."""
    x = ns / TAU_NS
    return 1.0 / (1.0 + x + x * x / 2.0)


def calibrated_load(fit: PowerFit, gpu_ns: float, heat: float) -> float:
    """The load before a step where it was calibrated."""
    of_rest, of_step = left(REST_NS), left(gpu_ns)
    after = (heat * (1.0 - of_step) + fit.light_busy * (1.0 - of_rest) * of_step) / (
        1.0 - of_rest * of_step
    )
    return fit.light_busy + (after - fit.light_busy) * of_rest


def longer(fit: PowerFit, gpu_ns: float, busy: float, heat: float, load: float) -> float:
    """How many times as long a step takes as it would with clocks that are never lowered."""
    share = 0.5 * (fit.memory_share + (1.0 - fit.memory_share) * busy)
    early, late = (slowdown(fit, heat + (load - heat) * left(at * gpu_ns)) for at in _PLACES)
    return 1.0 + (early + late) * share


def _longer_ns(fit: PowerFit, gpu_ns: int, busy: float, heat: float, load: float) -> int:
    before = calibrated_load(fit, gpu_ns, heat)
    now, then = (longer(fit, gpu_ns, busy, heat, each) for each in (load, before))
    return int(gpu_ns * now / then + 0.5)


def slowdown(fit: PowerFit, load: float) -> float:
    """What a step of nothing but arithmetic takes longer at a load, as a share of its time."""
    at, values = fit.load, fit.slowdown
    if load <= at[0]:
        return values[0]
    for index in range(1, len(at)):
        if load < at[index]:
            share = (load - at[index - 1]) / (at[index] - at[index - 1])
            return values[index - 1] + (values[index] - values[index - 1]) * share
    return values[-1]


def lengthened(
    fit: PowerFit | None,
    gpu_ns: Int64,
    tokens: Int64,
    decodes: Int64,
    starts_ns: Int64 | None = None,
    pairs: Int64 | None = None,
) -> Int64:
    """`PowerState.lengthen` of many steps that ran on one GPU, from a cool one on.

    Args:
        fit: None: they stay as they are.
        gpu_ns: int64[n], as calibrated, in the order in which they ran.
        tokens: int64[n], that they computed.
        decodes: int64[n], of these, those that were decoded.
        starts_ns: int64[n], when they started; None: each when the last ended.
        pairs: int64[n], of a query and a key of their prompts; None: none.

    Returns:
        int64[n].
    """
    if fit is None:
        return gpu_ns
    state, out = PowerState(fit), []
    starts: Iterable[int | None] = [None] * len(gpu_ns) if starts_ns is None else starts_ns.tolist()
    attended = [0] * len(gpu_ns) if pairs is None else pairs.tolist()
    end = 0
    rows = zip(gpu_ns.tolist(), tokens.tolist(), decodes.tolist(), starts, attended, strict=True)
    for ns, count, decoded, start, pair in rows:
        begin = end if start is None else start
        out.append(state.lengthen(ns, count, begin, decoded, pair))
        end = begin + out[-1]
    return np.array(out, np.int64)


def _coolest(fit: PowerFit) -> float:
    """Up to this load no step gets longer, if it was calibrated at such a load, too."""
    cool = [load for load, value in zip(fit.load, fit.slowdown, strict=True) if value == 0.0]
    return cool[-1] if cool and fit.light_busy <= cool[-1] else -1.0
