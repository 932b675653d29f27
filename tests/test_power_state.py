"""What a GPU's power limit does to steps: who gets longer, when, and by how much."""

from __future__ import annotations

import bisect
import itertools
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_steps import decode

import simulator
from engine.core.graph_sizes import default_graph_batch_sizes
from simulator.calibrated import CalibratedCostModel
from simulator.interpolation import interpolated
from simulator.power_state import (
    DECODING,
    REST_NS,
    TAU_NS,
    Load,
    PowerFit,
    PowerState,
    after,
    lengthened,
)
from simulator.profile_file import read_profile

SHIPPED = Path(simulator.__file__).with_name("profiles") / "nvidia-h200-llama-3.1-8b-bf16-tp1.json"
FIT = PowerFit(
    token_ns=20_000.0, load=(0.2, 0.6), slowdown=(0.0, 0.14), memory_share=0.25, light_busy=0.07
)
PROMPT = (12_000_000, 512)  # ns and tokens of a step that computes
DECODE = (4_500_000, 16)
steps = st.lists(
    st.tuples(st.integers(1, 50_000_000), st.integers(1, 4096), st.integers(0, 300_000_000)),
    max_size=30,
)


def decoded(step: tuple[int, int]) -> int:
    """Tokens of a step that are decoded: of DECODE all, of others none."""
    return step[1] if step == DECODE else 0


def run(
    state: PowerState, step: tuple[int, int], count: int, now: int = 0
) -> tuple[list[int], int]:
    """Times of a step that runs again and again, and when the last ends."""
    times = []
    for _ in range(count):
        times.append(state.lengthen(*step, now, decoded(step)))
        now += times[-1]
    return times, now


def test_prompts_one_after_another_get_longer_and_decodes_cool_down() -> None:
    """By what the table says, for steps of either kind, within the time that the load takes."""
    state = PowerState(FIT)
    prompts, now = run(state, PROMPT, 40)
    assert prompts[0] == pytest.approx(PROMPT[0], rel=0.01)
    assert prompts == sorted(prompts)
    busy = 512 * 20_000 / 12_000_000
    assert prompts[-1] / PROMPT[0] == pytest.approx(1 + 0.14 * (0.25 + 0.75 * busy), rel=0.01)
    decodes, _ = run(state, DECODE, 150, now)
    busy = 16 * 20_000 / 4_500_000
    assert decodes[0] / DECODE[0] == pytest.approx(1 + 0.14 * (0.25 + 0.75 * busy), rel=0.01)
    assert decodes == sorted(decodes, reverse=True)
    assert decodes[-1] == DECODE[0]


def test_a_step_takes_what_it_took_where_it_was_calibrated() -> None:
    """After light steps, in turn with itself: whatever it is, and however long."""
    light = (4_500_000, 16)
    for step in (PROMPT, DECODE, (200_000_000, 8192), (30_000_000, 700)):
        fit = msgspec.structs.replace(FIT, light_busy=DECODING * 16 * 20_000 / 4_500_000)
        state, now = PowerState(fit), 0
        for _ in range(20):
            for ns, tokens in [*[light] * (REST_NS // light[0]), (REST_NS % light[0], 0)]:
                if ns:
                    state.passed(
                        ns, min(1.0, DECODING * tokens * fit.token_ns / ns), state.load_at(now), now
                    )
                    now += ns
            took = state.lengthen(*step, now, decoded(step))
            now += took
        assert took == pytest.approx(step[0], rel=0.01)


def test_a_long_step_heats_the_gpu_by_itself() -> None:
    """What was before it counts less, the longer it is."""
    ratios = []
    for ms in (5, 20, 80, 320):
        state, now = PowerState(FIT), 0
        _, now = run(state, PROMPT, 40)
        gpu_ns = ms * 1_000_000
        ratios.append(state.lengthen(gpu_ns, gpu_ns // 20_000, now, 0) / gpu_ns)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1.12
    assert ratios[-1] < 1.04


def test_tokens_that_are_decoded_heat_more() -> None:
    """As DECODING (2.5) tokens of a prompt do; how much longer the step itself gets is the same."""
    states = PowerState(FIT), PowerState(FIT)
    longest = [
        [state.lengthen(9_000_000, tokens, at * 10_000_000, decodes) for at in range(60)]
        for state, tokens, decodes in ((states[0], 130, 130), (states[1], 325, 0))
    ]
    assert states[0].load == pytest.approx(states[1].load, rel=0.05)
    busy = 130 * 20_000 / 9_000_000
    slow = interpolated(states[0].load.load, FIT.load, FIT.slowdown)
    assert slow > 0.02
    assert longest[0][-1] / 9_000_000 == pytest.approx(1 + slow * (0.25 + 0.75 * busy), rel=0.003)


def test_kernels_differ_in_how_they_follow_the_clocks() -> None:
    """By the tokens of steps with prompts, as the table says; steps that decode are as ever."""
    fit = msgspec.structs.replace(FIT, prompt_tokens=(500, 600), prompt_times=(1.0, 2.0))
    for tokens, decodes, times in ((400, 0, 1.0), (550, 40, 1.5), (900, 0, 2.0), (550, 550, 1.0)):
        longest = [run_hot(PowerState(each), tokens, decodes) for each in (FIT, fit)]
        plain, other = (ns / 12_000_000 - 1 for ns in longest)
        assert plain > 0.1
        assert other == pytest.approx(times * plain, rel=0.02)


def test_attention_and_few_requests_may_follow_the_clocks_more() -> None:
    """By as much as they take of a step's time; who decodes in numbers is as ever."""
    fit = msgspec.structs.replace(FIT, pair_ns=1.0, pair_times=0.5, few_times=1.5)
    plain = msgspec.structs.replace(FIT, pair_ns=1.0)
    for tokens, decodes, pairs, times in (
        (400, 0, 0, 1.0), (300, 0, 6_000_000, 1.25), (400, 50, 3_000_000, 1.125),
        (550, 550, 0, 1.0), (1, 1, 0, 1.5), (4, 4, 0, 1 + 2 / 7), (8, 8, 0, 1.0),
    ):  # fmt: skip
        after_prompts = []
        for each in (plain, fit):
            state = PowerState(each)
            _, now = run(state, PROMPT, 20)
            after_prompts.append(state.lengthen(12_000_000, tokens, now, decodes, pairs))
        usual, more = (ns / 12_000_000 - 1 for ns in after_prompts)
        assert usual > 0.01
        assert more == pytest.approx(times * usual, rel=0.03)


def test_one_request_more_changes_little() -> None:
    """Between few requests that follow the clocks and many that do not there is no step."""
    fit = msgspec.structs.replace(FIT, light_ns=4_000_000.0, few_times=1.4)
    taken = []
    for decodes in range(1, 10):
        state = PowerState(fit)
        _, now = run(state, PROMPT, 20)
        taken.append(state.lengthen(12_000_000, decodes, now, decodes))
    assert taken[0] > 1.05 * taken[-1]
    assert taken[4] > taken[7]
    for more, fewer in itertools.pairwise(taken):
        assert abs(1 - fewer / more) < 0.03


@pytest.mark.parametrize("path", sorted(SHIPPED.parent.glob("nvidia-*.json")), ids=lambda p: p.stem)
def test_no_shipped_fit_has_a_step_at_few_requests(path: Path) -> None:
    """Right after prompts, with any context: the next request changes a step by 4 % at most."""
    model, sizes = CalibratedCostModel(read_profile(path)), default_graph_batch_sizes(256)
    for context in (1024, 16_384, 65_536):
        taken = []
        for decodes in range(1, 10):
            state = PowerState(model.power)
            _, now = run(state, (12_000_000, 512), 20)
            graph = sizes[bisect.bisect_left(sizes, decodes)]
            cool, _, _ = model.step_cost(decode(decodes, context, graph))
            taken.append(state.lengthen(cool, decodes, now, decodes) / cool)
        for fewer, more in itertools.pairwise(taken):
            assert abs(more / fewer - 1) < 0.04


def test_rows_that_fill_a_graph_compute_but_hardly_heat() -> None:
    """A prompt of 400 tokens in a graph of 512 is as busy as one of 512, and heats as 400 do."""
    fit = msgspec.structs.replace(FIT, graph_tokens=(256, 512), memory_share=0.0)
    plain = msgspec.structs.replace(fit, graph_tokens=())
    _, now = run(hot := PowerState(fit), PROMPT, 20)
    hot_plain = PowerState(plain)
    run(hot_plain, PROMPT, 20)
    step = 12_000_000
    padded, bare = (each.lengthen(step, 400, now, 0) for each in (hot, hot_plain))
    assert padded / step - 1 == pytest.approx((bare / step - 1) * 512 / 400, rel=0.03)
    assert hot.load.mean == pytest.approx(hot_plain.load.mean, rel=0.01)
    for tokens, decodes in ((600, 0), (100, 100), (512, 0)):
        one, other = (PowerState(each) for each in (fit, plain))
        assert run_hot(one, tokens, decodes) == run_hot(other, tokens, decodes)


def run_hot(state: PowerState, tokens: int, decodes: int) -> int:
    """What a step of 12 ms takes at last when it runs again and again."""
    now = 0
    for _ in range(40):
        now += (taken := state.lengthen(12_000_000, tokens, now, decodes))
    return taken


def test_clocks_follow_late() -> None:
    """After rest a GPU computes for a while before it slows down, and is slow for a while after."""
    prompts, now = run(PowerState(FIT), PROMPT, 12)
    assert prompts[1] < 1.01 * PROMPT[0]
    assert prompts[-1] > 1.1 * PROMPT[0]
    assert prompts[2] - prompts[1] > prompts[1] - prompts[0]
    state = PowerState(FIT)
    _, now = run(state, PROMPT, 40)
    decodes, _ = run(state, DECODE, 4, now)
    assert decodes[3] == decodes[0] > 1.03 * DECODE[0]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 500_000_000))
def test_loads_are_lags_of_heat(mean: float, load: float, heat: float, ns: int) -> None:
    """Two lags with one time constant, to a few percent of what exponentials say; shares stay.

    (1 + x / 16) ** -16 is at most 0.0166 more than exp(-x), and 1 + x times that at most 0.0569.
    """
    found, x = after(Load(mean, load), heat, ns), ns / TAU_NS
    assert found.mean == pytest.approx(heat + (mean - heat) * math.exp(-x), abs=0.0166)
    follows = (load - heat + (mean - heat) * x) * math.exp(-x)
    assert found.load == pytest.approx(heat + follows, abs=0.0569)
    assert -1e-12 <= min(found) <= max(found) <= 1 + 1e-12


def test_idling_cools() -> None:
    """After eight times the time constant, next to nothing is left of the load."""
    state = PowerState(FIT)
    _, now = run(state, PROMPT, 40)
    hot = state.load
    one, eight = (state.load_at(now + round(times * TAU_NS)) for times in (1, 8))
    assert one.mean == pytest.approx(hot.mean * math.exp(-1), rel=0.04)
    assert one.load == pytest.approx(2 * hot.load * math.exp(-1), rel=0.04)
    assert max(eight) < 0.02
    cooled = state.lengthen(*PROMPT, now + 8 * round(TAU_NS), 0)
    assert cooled == pytest.approx(PROMPT[0], rel=0.01)


@given(steps)
def test_times_stay_within_what_the_table_says(work: list[tuple[int, int, int]]) -> None:
    """Either way, and loads are shares."""
    state, now = PowerState(FIT), 0
    for gpu_ns, tokens, idle_ns in work:
        now += idle_ns
        longer = state.lengthen(gpu_ns, tokens, now, tokens // 3)
        assert gpu_ns / 1.14 - 1 <= longer <= 1.14 * gpu_ns + 1
        assert 0 <= min(state.load) <= max(state.load) <= 1 + 1e-12
        now += longer


@given(steps)
def test_many_at_once_are_the_same_as_one_by_one(work: list[tuple[int, int, int]]) -> None:
    """To the last ns, with pauses and without; a snapshot forgets what came after it."""
    for paused in (True, False):
        state, now = PowerState(FIT), 0
        starts, times = [], []
        for gpu_ns, tokens, idle_ns in work:
            now += idle_ns * paused
            starts.append(now)
            before = state.snapshot()
            first = state.lengthen(gpu_ns, tokens, now, tokens // 3)
            state.restore(before)
            times.append(state.lengthen(gpu_ns, tokens, now, tokens // 3))
            assert times[-1] == first
            now += times[-1]
        gpu_ns, tokens = (np.array([row[at] for row in work], np.int64) for at in (0, 1))
        given_starts = np.array(starts, np.int64) if paused else None
        assert lengthened(FIT, gpu_ns, tokens, tokens // 3, given_starts).tolist() == times


def test_without_a_fit_nothing_changes() -> None:
    """Of the analytic model, and of a profile of a CPU."""
    assert PowerState(None).lengthen(5, 10_000, 0, 0) == 5
    assert lengthened(None, np.array([5, 6]), np.array([9, 9]), np.array([0, 9])).tolist() == [5, 6]


def test_the_table_is_read_in_between_and_constant_outside() -> None:
    """Loads before the first knot and beyond the last have its value."""
    assert [
        interpolated(load, FIT.load, FIT.slowdown) for load in (0.0, 0.2, 0.3, 0.4, 0.6, 1.0)
    ] == pytest.approx([0, 0, 0.035, 0.07, 0.14, 0.14])


def test_the_shipped_fit_tells_again_what_it_was_fitted_to() -> None:
    """Steps of a GPU that gets hotter, in each tenth of the time, though its clocks swing."""
    shipped = read_profile(SHIPPED)
    samples = shipped.power_samples
    assert samples is not None
    assert shipped.fit.power is not None
    tokens, ns = np.array(samples.tokens), np.array(samples.gpu_ns)
    prompt = int(tokens.max())
    cool = np.where(tokens == prompt, _first(ns[tokens == prompt]), _first(ns[tokens != prompt]))
    told = lengthened(shipped.fit.power, cool, tokens, np.where(tokens == prompt, 0, tokens))
    tenth = np.minimum(10 * np.cumsum(ns) // ns.sum(), 9)
    hottest, off = 0.0, []
    for at in range(10):
        for kind in (tokens == prompt, tokens != prompt):
            rows = kind & (tenth == at)
            if rows.sum() > 3:
                off.append(abs(np.median(told[rows]) / np.median(ns[rows]) - 1))
                hottest = max(hottest, float(np.median(told[rows] / cool[rows])))
    assert max(off) < 0.015
    assert np.mean(off) < 0.005
    assert hottest > 1.1, "and it was no test of cool steps alone"


def _first(ns: np.ndarray) -> int:
    """What steps took before it got hot: the fastest twentieth's upper end is not yet slowed."""
    return int(np.quantile(ns, 0.05))
