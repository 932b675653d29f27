"""What steps right after prompts tell of lower clocks: whom they slow, and how much.

Each step ran after light ones, too, when clocks were high. What single prompts and few decoding
requests tell is fitted to; all other steps say how well the fit does.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulator.fitting.base import Float64
from simulator.mixed_costs import padded_tokens
from simulator.power_state import (
    FEW,
    REST_NS,
    Load,
    PowerFit,
    after,
    few_share,
    follows,
    heat_of,
    longer,
)
from simulator.samples import HotSamples, PowerSamples

_TURNS: Final = 3  # of cool and hot steps; the second is as good as the hundredth
_SHORT_STEPS: Final = 12  # of one kind, one after the other
_FASTEST: Final = 0.05  # share of prompts that had cool clocks, at least
_TELLING: Final = 0.05  # slower by that much: then a step tells how much it follows the clocks
_LEAST_SLOWER: Final = 0.01  # by so much more after prompts
_FASTER: Final = 0.9  # times what it took after light steps
_TIMES: Final = (0.25, 2.0)  # as many times as much as the law says, at least and at most
_ROUNDS: Final = 6  # in turn for tokens and attention

Rows = NDArray[np.bool_]


def hot_errors(
    fit: PowerFit | None, samples: PowerSamples | None, hot: HotSamples | None
) -> Float64:
    """Percent by which a fit misses steps right after prompts: float64[n].

    It knows what they take after light ones.

    Args:
        fit: of the same GPU and model; None: no step gets longer.
        samples: that it was made of; without any, nobody knows what the prompts were.
        hot: the n steps.
    """
    if samples is None or hot is None or not len(samples) or not len(hot):
        return np.zeros(0)
    cool_ns, hot_ns = np.array(hot.cool_ns, np.float64), np.array(hot.hot_ns, np.float64)
    if fit is None:
        return 100 * (cool_ns / hot_ns - 1)
    share, slow_cool, slow_hot = _clocks(fit, samples, hot)
    predicted = cool_ns * (1.0 + share * slow_hot) / (1.0 + share * slow_cool)
    return 100 * (predicted / hot_ns - 1)


def unseen_hot_errors(
    fit: PowerFit | None, samples: PowerSamples | None, hot: HotSamples | None
) -> Float64:
    """`hot_errors` of those steps to which nothing is fitted."""
    errors = hot_errors(fit, samples, hot)
    if hot is None or not len(errors):
        return errors
    fitted = whole_prompts(hot) | prompts_after_prefix(hot) | few_decodes(hot)
    return errors[~(fitted | waited_for_host(hot))]


def whole_prompts(hot: HotSamples) -> Rows:
    """Steps of one whole prompt, alone or beside decoding requests: bool[n]."""
    f = hot.features()
    whole: Rows = f.prefill_requests == 1
    whole &= f.prefill_context == 0
    return whole


def prompts_after_prefix(hot: HotSamples) -> Rows:
    """Steps of prompts after a prefix: bool[n]."""
    after_prefix: Rows = hot.features().prefill_context > 0
    return after_prefix


def few_decodes(hot: HotSamples) -> Rows:
    """Steps of few decoding requests and nothing else: bool[n]."""
    f = hot.features()
    few: Rows = f.decode_requests <= FEW
    few &= f.prefill_tokens == 0
    return few


def waited_for_host(hot: HotSamples) -> Rows:
    """Steps that took clearly longer after light steps: no clocks do that, launches do: bool[n]."""
    cool_ns, hot_ns = np.array(hot.cool_ns, np.float64), np.array(hot.hot_ns, np.float64)
    waited: Rows = hot_ns < _FASTER * cool_ns
    return waited


def with_kernels(fit: PowerFit, samples: PowerSamples, hot: HotSamples) -> PowerFit:
    """A fit with what the steps tell of kernels.

    Whole prompts tell by tokens, the same for all of a graph, and with prompts after a prefix what
    attention does; few decoding requests tell of their like.

    Args:
        fit: without.
        samples: that it was made of.
        hot: the steps.
    """
    times, telling = _times(fit, samples, hot)
    whole = whole_prompts(hot) & telling
    if not whole.any():
        return fit
    f = hot.features()
    own = whole & (f.prefill_tokens == max(samples.tokens)) & (f.decode_tokens == 0)
    # The fit is right for the prompts that heated: others follow the clocks more or less than they.
    # By noise they may have been hardly slower: divided by that, others would be anything.
    times /= max(_TIMES[0], float(np.mean(times[own]))) if own.any() else 1.0
    pairs = f.prefill_pairs * fit.pair_ns
    attending = np.minimum(1.0, pairs / np.array(hot.cool_ns, np.float64))
    ran, after_prefix = padded_tokens(f, fit.graph_tokens), prompts_after_prefix(hot) & telling
    sizes, pair_times = np.unique(ran[whole]), 0.0
    for _ in range(_ROUNDS):
        of_tokens = np.clip(times / (1.0 + pair_times * attending), *_TIMES)
        means = np.array([float(np.mean(of_tokens[whole & (ran == size)])) for size in sizes])
        more = times[after_prefix] / np.interp(ran[after_prefix], sizes, means) - 1.0
        pair_times = _slope(attending[after_prefix], more)
    few = few_decodes(hot) & telling
    fewness = np.array([few_share(count) for count in f.decode_requests[few].tolist()])
    return msgspec.structs.replace(
        fit,
        prompt_tokens=tuple(sizes.tolist()),
        prompt_times=tuple(means.tolist()),
        pair_times=min(_TIMES[1], pair_times),
        few_times=min(_TIMES[1], 1.0 + _slope(fewness, times[few] - 1.0)),
    )


def _times(fit: PowerFit, samples: PowerSamples, hot: HotSamples) -> tuple[Float64, Rows]:
    """(how many times as much as the law says steps follow the clocks, which can tell)."""
    of_law, slow_cool, slow_hot = _clocks(fit, samples, hot)
    ratio = np.array(hot.hot_ns, np.float64) / np.array(hot.cool_ns, np.float64)
    # Which share gives that ratio, of what is slow after prompts to what is after light steps?
    share = (ratio - 1.0) / np.maximum(slow_hot - ratio * slow_cool, _LEAST_SLOWER)
    telling: Rows = slow_hot >= _TELLING
    telling &= ~waited_for_host(hot)
    return share / of_law, telling


def _slope(places: Float64, values: Float64) -> float:
    """Of the line from 0 that is nearest to values, not below 0; 0 without any."""
    squares = float(places @ places)
    return max(0.0, float(places @ values) / squares) if squares > 0.0 else 0.0


def _clocks(
    fit: PowerFit, samples: PowerSamples, hot: HotSamples
) -> tuple[Float64, Float64, Float64]:
    """(share that follows the clocks, slowdowns after light steps and after prompts) of each."""
    f, cool_ns = hot.features(), np.array(hot.cool_ns, np.float64)
    tokens, ns = np.array(samples.tokens), np.array(samples.gpu_ns, np.float64)
    prompts = ns[tokens == tokens.max()]
    prompt_heat = min(1.0, tokens.max() * fit.token_ns / float(np.quantile(prompts, _FASTEST)))
    share, slow = np.empty(len(hot)), np.empty((2, len(hot)))
    tokens_of = (f.prefill_tokens + f.decode_tokens).tolist()
    steps = zip(
        cool_ns.tolist(), tokens_of, f.decode_tokens.tolist(), f.prefill_pairs.tolist(), strict=True
    )
    for at, (step_ns, count, decodes, pairs) in enumerate(steps):
        heat = heat_of(fit, step_ns, count, decodes, pairs)
        share[at] = follows(fit, step_ns, count, decodes, pairs)
        heats = (heat, hot.hot_ns[at]), (prompt_heat, hot.heat_ns[at])
        for row, load in zip(slow, _loads(fit, step_ns, *heats), strict=True):
            row[at] = longer(fit, step_ns, 1.0, heat, load) - 1.0
    return share, slow[0], slow[1]


def _loads(
    fit: PowerFit, cool_ns: float, step: tuple[float, float], prompts: tuple[float, float]
) -> tuple[Load, Load]:
    """Loads at the begin of a step after light ones and after prompts, which take turns.

    Light steps leave some of the prompts' load: the step after them is not as cool as they are.

    Args:
        fit: of the GPU.
        cool_ns: of the step after light ones.
        step: its heat, and ns that it takes after prompts.
        prompts: theirs, and ns that they run.
    """
    cool = hot = load = Load(fit.light_busy, fit.light_busy)
    for _ in range(_TURNS):
        cool = _after_many(load, fit.light_busy, REST_NS)
        hot = _after_many(after(cool, step[0], cool_ns), *prompts)
        load = after(hot, *step)
    return cool, hot


def _after_many(load: Load, heat: float, ns: float) -> Load:
    """The load after short steps: `after` is the less an exponential, the longer the step."""
    for _ in range(_SHORT_STEPS):
        load = after(load, heat, ns / _SHORT_STEPS)
    return load
