"""The fit of what a power limit does, to samples that tell little, nothing, or noise."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from measured_steps import columns_of, decode, mixed, prefill

from simulator.cost_model import StepShape
from simulator.fitting.base import Steps
from simulator.fitting.hot import hot_errors, unseen_hot_errors, with_kernels
from simulator.fitting.power import fit_power
from simulator.power_state import PowerFit, PowerState
from simulator.profile_file import power_problem
from simulator.samples import HotSamples, PowerSamples

COOL = Steps(columns_of(prefill(512), prefill(2048)), np.array([12e6, 42e6]), np.array([5, 5]))
PROMPT_NS, DECODE_NS = 12e6, 4.5e6


def samples_of(computes: np.ndarray, longer: np.ndarray) -> PowerSamples:
    """Prompts of 512 tokens and decode steps of 16, and how many times as long each took."""
    ns = np.where(computes, PROMPT_NS, DECODE_NS) * longer
    return PowerSamples(
        tokens=tuple(np.where(computes, 512, 16).tolist()),
        gpu_ns=tuple(np.maximum(ns, 1).astype(int).tolist()),
    )


def check(fit: PowerFit | None, samples: PowerSamples) -> None:
    """It can be kept, and no load makes a step that computes slower than any of them was."""
    if fit is None:
        return
    assert power_problem(fit) is None
    assert np.isfinite([*fit.load, *fit.slowdown]).all()
    ns = np.array(samples.gpu_ns)[np.array(samples.tokens) == 512]
    busy = min(1.0, 512 * fit.token_ns / ns.max())
    longest = fit.slowdown[-1] * (fit.memory_share + (1 - fit.memory_share) * busy)
    assert longest <= ns.max() / ns.min() - 1 + 1e-9


@settings(max_examples=200)
@given(
    st.integers(0, 10_000), st.integers(0, 400), st.floats(0, 1), st.floats(0, 0.5),
    st.floats(0, 0.5),
)  # fmt: skip
@example(0, 0, 0.5, 0.0, 0.0)
@example(0, 12, 0.5, 0.1, 0.1)
def test_noise_is_no_nonsense(seed, count, share, of_prompts, of_decodes):
    """However few the steps are, whatever their order, and whichever kind is noisy."""
    random = np.random.default_rng(seed)
    computes = random.random(count) < share
    noise = random.standard_normal(count) * np.where(computes, of_prompts, of_decodes)
    samples = samples_of(computes, np.exp(noise))
    check(fit_power(COOL, samples, 0.9), samples)


def test_steps_that_are_hardly_slower_tell_of_no_load_alone():
    """Of loads at which nothing computed, a noise that is divided by next to nothing."""
    told = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        count = int(random.integers(60, 400))
        computes = random.random(count) < random.random()
        slow = 0.1 * computes * (np.arange(count) > count / 2)
        samples = samples_of(computes, 1 + slow + 1e-3 * ~computes * random.random(count))
        fit = fit_power(COOL, samples, 0.9)
        told += fit is not None
        check(fit, samples)
    assert told > 10, "or else this tests nothing"


LAW = PowerFit(
    token_ns=20_000.0, load=(0.25, 0.65), slowdown=(0.0, 0.15), memory_share=0.3, light_busy=0.18
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.floats(0.5, 1.5), st.integers(0, 300_000_000)),
        max_size=6,
    ),
    st.sampled_from([(), (16, 512), tuple(range(64, 1025, 64))]),
)
@example([(512, 1.0, 150_000_000), (64, 1.1, 150_000_000)], ())
@example([(512, 0.9, 150_000_000), (64, 1.1, 150_000_000)], (64, 512))
def test_any_steps_after_prompts_leave_a_fit_that_can_be_kept(steps, graph_tokens):
    """Faster after prompts than after light steps, or just as fast: noise does all of that."""
    cool = [max(4_000_000, 24_000 * tokens) for tokens, _, _ in steps]
    hot = HotSamples(
        shapes=tuple(tuple(prefill(tokens)) for tokens, _, _ in steps),
        cool_ns=tuple(cool),
        hot_ns=tuple(round(ns * times) for ns, (_, times, _) in zip(cool, steps, strict=True)),
        heat_ns=tuple(ran for _, _, ran in steps),
    )
    samples = samples_of(np.array([True] * 9 + [False]), np.ones(10))
    fit = with_kernels(msgspec.structs.replace(LAW, graph_tokens=graph_tokens), samples, hot)
    assert power_problem(fit) is None
    assert np.isfinite(fit.prompt_times).all()
    assert min(fit.prompt_times, default=0.25) >= 0.25
    assert max(fit.prompt_times, default=2.0) <= 2.0
    assert np.isfinite(hot_errors(fit, samples, hot)).all()


HEATING = samples_of(np.array([True] * 9 + [False]), np.ones(10))


def measured_hot(law: PowerFit, shapes: list[StepShape]) -> HotSamples:
    """Measured in turns on a GPU that obeys a law: light steps, the step, prompts, the step."""
    prompt, light = (int(PROMPT_NS), 512), (int(DECODE_NS), 16)
    cool_ns, hot_ns, heat_ns = [], [], []
    for shape in shapes:
        state, now, tokens = PowerState(law), 0, shape.prefill_tokens + shape.decode_tokens
        computes_ns = 24_000 * tokens + int(law.pair_ns * shape.prefill_pairs)
        step = (max(4_000_000, computes_ns), tokens, shape.decode_tokens, shape.prefill_pairs)
        ran: list[int] = []
        for ns, count, decodes, pairs in (
            [(*light, 16, 0)] * 12 + [step] + [(*prompt, 0, 0)] * 13 + [step]
        ) * 3:
            ran.append(state.lengthen(ns, count, now, decodes, pairs))
            now += ran[-1]
        cool_ns.append(ran[-15])
        hot_ns.append(ran[-1])
        heat_ns.append(sum(ran[-14:-1]))
    return HotSamples(
        shapes=tuple(map(tuple, shapes)), cool_ns=tuple(cool_ns), hot_ns=tuple(hot_ns),
        heat_ns=tuple(heat_ns),
    )  # fmt: skip


def test_the_true_law_misses_no_step_after_prompts():
    """Of prompts, of requests that decode, and of both."""
    shapes = [prefill(700), prefill(64), prefill(8000), decode(16, 500, 16), decode(128, 500, 128)]
    shapes.append(mixed(prefill(400), decode(128, 900)))
    hot = measured_hot(LAW, shapes)
    assert max(one / other for one, other in zip(hot.hot_ns, hot.cool_ns, strict=True)) > 1.06
    errors = hot_errors(LAW, HEATING, hot)
    assert np.max(np.abs(errors)) < 1.6  # light steps are whole ones, and rest a bit longer


def test_attention_and_few_requests_may_follow_the_clocks_more():
    """As steps after prompts tell, whatever the tokens; and then the fit misses none of them."""
    prefixes = [(256, 4096), (256, 16384), (1024, 16384)]
    shapes = [
        *(prefill(tokens) for tokens in (64, 256, 512, 1024)),
        *(prefill(tokens, context=context) for tokens, context in prefixes),
        decode(1, 500, 1), decode(4, 500, 4), decode(64, 500, 64),
    ]  # fmt: skip
    plain = msgspec.structs.replace(LAW, pair_ns=0.8)
    for pair_times, few_times in ((0.0, 1.0), (0.6, 1.0), (0.0, 1.7), (0.6, 1.7)):
        law = msgspec.structs.replace(plain, pair_times=pair_times, few_times=few_times)
        hot = measured_hot(law, shapes)
        fit = with_kernels(plain, HEATING, hot)
        assert fit.pair_times == pytest.approx(pair_times, abs=0.2)
        assert fit.few_times == pytest.approx(few_times, rel=0.15)
        assert np.max(np.abs(hot_errors(fit, HEATING, hot))) < 1.6
        assert len(unseen_hot_errors(fit, HEATING, hot)) == 1, "of 64 requests"


def test_a_step_that_waited_for_the_host_tells_nothing_of_clocks():
    """It took longer after light steps, which no clocks explain: nor is the fit blamed for it."""
    shapes = [prefill(512), prefill(64), prefill(512, requests=16), decode(64, 500, 64)]
    hot = measured_hot(LAW, shapes)
    cool_ns = list(hot.cool_ns)
    cool_ns[1], cool_ns[2] = 2 * hot.hot_ns[1], 2 * hot.hot_ns[2]
    waited = msgspec.structs.replace(hot, cool_ns=tuple(cool_ns))
    fit = with_kernels(LAW, HEATING, waited)
    assert fit.prompt_tokens == (512,)
    assert np.max(np.abs(unseen_hot_errors(fit, HEATING, waited))) < 1.6
    assert len(unseen_hot_errors(fit, HEATING, waited)) == 1
