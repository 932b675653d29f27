"""What a GPU's power limit does to steps: the clocks of one that computes a lot are lower.

A GPU at its power limit lowers its clocks, and the same step takes longer than on one that was busy
reading memory, or idle, a moment ago: of Llama-3.1-8B on an H200 a prompt's step up to 20 %, a
decode step up to 10 %. What counts is the load: the share of recent time in which arithmetic kept
the GPU busy. Clocks follow it late: prompts from rest run for 30 to 50 ms before they fall.

The law is simple on purpose. Let a step take `gpu_ns` where it was calibrated, and let

    busy     min(1, (tokens * token_ns + pairs * pair_ns) / gpu_ns), its share of arithmetic; tokens
             that only fill a graph are among them
    heat     the same without those, and with DECODING tokens for each that is decoded
    mean     of recent heat, with a time constant of TAU_NS
    load     of recent means, with the same time constant: what clocks follow
    slow     the mean of slowdown(load) over three places that stand for all of the step
    follows  memory_share + (1 - memory_share) * busy; of a step with prompts that times
             times(tokens), as kernels differ, and more by pair_times the more of it is attention;
             FEW requests that decode cannot keep the memory busy, so what they take longer than a
             light step counts as arithmetic there, of more the less so, up to twice FEW; of a
             single one all of that times few_times, of more likewise
    longer   1 + slow * follows

Then with what it meets, the step takes gpu_ns * longer / (longer where it was calibrated). While
the GPU idles, there is no heat. A token that is decoded heats more than one of a prompt, as few of
them fill a tile and each reads a context of its own.

Where a step was calibrated, light steps ran for REST_NS before each of its repetitions; of two that
followed each other so, the mean is what it took.

The exponentials are (1 + x / 16) ** -16, nearly, by operations that are the same everywhere:
results are the same integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulator.interpolation import interpolated

# Steps right after prompts are missed least with 18 ms on an H200; what an older engine served on
# another is explained best by 24, by little.
TAU_NS: Final = 18_000_000.0
REST_NS: Final = 50_000_000  # of light steps before each that is calibrated
DECODING: Final = 2.5  # of 1 to 4, what explains most of nine loads on another H200
FEW: Final = 4  # of eight, attention to 4,096 tokens each was seen not to follow the clocks
# Places of a step and their weights, for a mean (Gauss).
_PLACES: Final = ((0.1127016653792583, 5 / 18), (0.5, 8 / 18), (0.8872983346207417, 5 / 18))


Cost = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]  # whole ns of a sum fit in int64
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Int64 = NDArray[np.int64]


class Load(NamedTuple):
    """Of a GPU at one time, as shares: the mean of recent heat, and the load, that of the means."""

    mean: float
    load: float


COLD: Final = Load(0.0, 0.0)


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
        light_ns: time of such a step; 0: it is not known.
        graph_tokens: ascending numbers of tokens to which steps with prompts are padded: the GPU
            computes so many.
        prompt_tokens: ascending tokens that steps with prompts compute.
        prompt_times: how many times as much as the law says a step of so many follows the clocks;
            linear in between, constant outside. Without any: once.
        pair_times: how many times more, if all of it is attention of prompts.
        few_times: how many times as much a single token that is decoded does; less and less of
            more, and once from twice FEW on.
    """

    token_ns: Cost
    pair_ns: Cost = 0.0
    load: tuple[Share, ...]
    slowdown: tuple[Cost, ...]
    memory_share: Share
    light_busy: Share
    light_ns: Cost = 0.0
    graph_tokens: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 53)], ...] = ()
    prompt_tokens: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 53)], ...] = ()
    prompt_times: tuple[Cost, ...] = ()
    pair_times: Cost = 0.0
    few_times: Cost = 1.0


class PowerState:
    """The load of one GPU while steps run on it, one after the other.

    Args:
        fit: of the GPU and model; None: nothing is known, no step gets longer.

    Attributes:
        load: at the end of the last step.
    """

    __slots__ = ("_cool", "_fit", "_until_ns", "load")

    def __init__(self, fit: PowerFit | None) -> None:
        self._fit = fit
        self._cool = 0.0 if fit is None else _coolest(fit)
        self._until_ns = 0
        self.load = COLD

    def lengthen(
        self, gpu_ns: int, tokens: int, start_ns: int, decodes: int, pairs: int = 0
    ) -> int:
        """What a step takes that took `gpu_ns` when it was calibrated; it becomes the last one.

        Args:
            gpu_ns: of the step, at least 1.
            tokens: of its requests.
            start_ns: when it starts; not before the last one's end.
            decodes: of these tokens, those that are decoded.
            pairs: of a query and a key, of its prompts.
        """
        if (fit := self._fit) is None:
            return gpu_ns
        load = self.load_at(start_ns)
        heat = heat_of(fit, gpu_ns, tokens, decodes, pairs)
        if max(load.mean, load.load, heat) > self._cool:
            share = follows(fit, gpu_ns, tokens, decodes, pairs)
            now = longer(fit, gpu_ns, share, heat, load)
            gpu_ns = int(gpu_ns * now / calibrated_longer(fit, gpu_ns, share, heat) + 0.5)
        self.passed(gpu_ns, heat, load, start_ns)
        return gpu_ns

    def load_at(self, time_ns: int) -> Load:
        """The load after idling since the last step."""
        idle_ns = time_ns - self._until_ns
        return after(self.load, 0.0, idle_ns) if idle_ns > 0 else self.load

    def passed(self, gpu_ns: int, heat: float, load: Load, start_ns: int) -> None:
        """A step ran from `start_ns` on for `gpu_ns`, when the load was `load`."""
        self.load = after(load, heat, gpu_ns)
        self._until_ns = start_ns + gpu_ns

    def snapshot(self) -> tuple[Load, int]:
        """To go back to, by `restore`."""
        return self.load, self._until_ns

    def restore(self, snapshot: tuple[Load, int]) -> None:
        """Forget the steps since the snapshot."""
        self.load, self._until_ns = snapshot


def after(load: Load, heat: float, ns: float) -> Load:
    """The load after so many ns of heat."""
    x = ns / TAU_NS
    left = _left(x)
    mean, follows = load[0] - heat, load[1] - heat
    return Load(heat + mean * left, heat + (follows + mean * x) * left)


def _left(x: float) -> float:
    """How much is left of something after x times its time constant: exp(-x), nearly."""
    y = 1.0 + x * 0.0625
    y *= y
    y *= y
    y *= y
    return 1.0 / (y * y)


def heat_of(fit: PowerFit, gpu_ns: float, tokens: int, decodes: int, pairs: int) -> float:
    """A step's heat; arguments as of `PowerState.lengthen`."""
    weighted = tokens + (DECODING - 1.0) * decodes
    heat = (weighted * fit.token_ns + pairs * fit.pair_ns) / gpu_ns
    return heat if heat < 1.0 else 1.0


def usual_share(fit: PowerFit, busy: float) -> float:
    """The share that follows the clocks of a step with so much arithmetic, whatever its kernels."""
    return fit.memory_share + (1.0 - fit.memory_share) * busy


def follows(fit: PowerFit, gpu_ns: float, tokens: int, decodes: int, pairs: int) -> float:
    """The share of a step's time that follows the clocks; arguments as of `PowerState.lengthen`."""
    computed = computed_tokens(fit, tokens, decodes)
    busy = min(1.0, (computed * fit.token_ns + pairs * fit.pair_ns) / gpu_ns)
    if tokens > decodes:
        share = usual_share(fit, busy)
        if fit.prompt_tokens:
            share *= interpolated(computed, fit.prompt_tokens, fit.prompt_times)
        return share * (1.0 + fit.pair_times * min(1.0, pairs * fit.pair_ns / gpu_ns))
    if decodes >= 2 * FEW:
        return usual_share(fit, busy)
    if gpu_ns > fit.light_ns > 0.0:
        waits = min(1.0, (2 * FEW - decodes) / FEW)
        busy = max(busy, waits * (1.0 - fit.light_ns / gpu_ns))
    return usual_share(fit, busy) * (1.0 + (fit.few_times - 1.0) * few_share(decodes))


def few_share(decodes: int) -> float:
    """How few tokens are decoded: 1 of one, less and less of more, 0 of twice FEW."""
    return (2 * FEW - decodes) / (2 * FEW - 1)


def computed_tokens(fit: PowerFit, tokens: int, decodes: int) -> int:
    """Tokens that a step computes, those included that only fill its graph.

    These keep the GPU as busy as others, but all rows of them are alike: they heat it less, and
    count as if not at all.
    """
    sizes = fit.graph_tokens
    if tokens == decodes or not sizes or tokens > sizes[-1]:
        return tokens
    return sizes[bisect_left(sizes, tokens)]


def longer(fit: PowerFit, gpu_ns: float, share: float, heat: float, load: Load) -> float:
    """How many times as long a step takes as it would with clocks that are never lowered.

    Args:
        fit: of the GPU.
        gpu_ns: of the step, about.
        share: of its time, that follows the clocks.
        heat: of the step.
        load: at its begin.
    """
    mean, late = load[0] - heat, load[1] - heat
    slow, step = 0.0, gpu_ns / TAU_NS
    for place, weight in _PLACES:
        x = place * step
        at = heat + (late + mean * x) * _left(x)
        slow += weight * interpolated(at, fit.load, fit.slowdown)
    return 1.0 + slow * share


def calibrated_longer(fit: PowerFit, gpu_ns: float, share: float, heat: float) -> float:
    """The same of a step where it was calibrated."""
    light, times = fit.light_busy, 0.0
    load = Load(light, light)
    cool = fit.load[0] if fit.slowdown[0] == 0.0 and light <= fit.load[0] else -1.0
    for _ in range(2):
        load = after(after(load, heat, gpu_ns), light, REST_NS)
        # Unless it is hot already, the load is highest at the end: then nothing was slow.
        if load[1] <= cool and after(load, heat, gpu_ns)[1] <= cool:
            times += 1.0
        else:
            times += longer(fit, gpu_ns, share, heat, load)
    return times * 0.5


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
