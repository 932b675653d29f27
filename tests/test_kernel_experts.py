"""Which experts tokens are expected to choose, and what uneven choice makes of a mixture's time."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from made_kernels import H200, made_kernels
from measured_steps import decode

from engine.core.model_spec import load_model_spec
from engine.profiling.kernel_cases import Draw, draw_experts
from simulator.composition.composed import ComposedCostModel
from simulator.composition.kernel_experts import ExpertChoice, chances, expected_choice
from simulator.composition.kernel_file import KernelFile, Series

TABLES = made_kernels(("Qwen3-30B-A3B", "Mixtral-8x7B"))
MIXTURES = tuple(each for each in TABLES.series if each.op == "moe_mlp")
QWEN = (128, 8, 2048, 768)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 2), (128, 8), (256, 8), (4, 4)])
@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 3.0])
def test_a_token_chooses_so_many(experts: int, top_k: int, skew: float):
    """Chances are chances, descend, and sum up to the experts of a token."""
    found = chances(experts, top_k, skew)
    assert found.sum() == pytest.approx(top_k)
    assert np.all(np.diff(found) <= 1e-12)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("skew", [0, 50, 100])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (128, 8)])
def test_expectations_are_the_means_of_draws(experts: int, top_k: int, skew: int):
    """Experts that are chosen, and the longest queue, are those of draws of the measurement."""
    tokens = 64
    drawn = draw_experts(40 * tokens, experts, top_k, Draw(experts, skew))
    loads = np.array([np.bincount(part.ravel(), minlength=experts) for part in np.split(drawn, 40)])
    expected = expected_choice(experts, top_k, np.array([float(tokens)]), skew / 100)
    assert expected.active[0] == pytest.approx((loads > 0).sum(1).mean(), rel=0.02)
    assert expected.largest[0] == pytest.approx(loads.max(1).mean(), rel=0.1)


def test_even_choice_changes_nothing():
    """Without skew, and of tables that measured one choice only, the factor is 1."""
    tokens = np.array([1.0, 8.0, 100.0, 8192.0])
    assert ExpertChoice(MIXTURES).factor(QWEN, tokens, 0.0).tolist() == [1.0] * 4
    even = msgspec.structs.replace(
        MIXTURES[0], points=((1, 8, 1), (64, 128, 10)), ns=(1.0, 2.0), spread_ns=(0.0, 0.0),
        repeats=(1, 1),
    )  # fmt: skip
    assert ExpertChoice([even]).factor(QWEN, tokens, 1.0).tolist() == [1.0] * 4


def test_fewer_experts_take_less():
    """Where weights are read most of the time, skewed choice reads less of them."""
    choice = ExpertChoice(MIXTURES)
    tokens = np.array([16.0, 32.0])
    half, whole = (choice.factor(QWEN, tokens, skew) for skew in (0.5, 1.0))
    expected = [expected_choice(128, 8, tokens, skew).active for skew in (0.0, 0.5, 1.0)]
    assert np.all(whole < half)
    assert np.all(half < 1)
    # The made-up GPU reads weights: its time is that of the experts that are chosen.
    assert half == pytest.approx(expected[1] / expected[0], abs=0.02)
    assert whole == pytest.approx(expected[2] / expected[0], abs=0.05)


def test_points_are_met():
    """What was measured of a skewed choice comes out where it was measured."""
    series = next(each for each in MIXTURES if each.sizes == QWEN)
    tokens = 32
    own = {point[1:]: ns for point, ns in zip(series.points, series.ns, strict=True)
           if point[0] == tokens}  # fmt: skip
    even = max(own)
    for skew in (0.5, 1.0):
        drawn = draw_experts(tokens, 128, 8, Draw(128, round(100 * skew)))
        loads = np.bincount(drawn.ravel(), minlength=128)
        measured = own[int((loads > 0).sum()), int(loads.max())] / own[even]
        factor = ExpertChoice([series]).factor(QWEN, np.array([float(tokens)]), skew)[0]
        assert factor == pytest.approx(measured, rel=0.05)


def test_sizes_that_were_not_measured_are_like_the_most_similar():
    """A mixture of other sizes takes the effects of its nearest neighbour."""
    choice, tokens = ExpertChoice(MIXTURES), np.array([32.0])
    assert choice.factor((128, 8, 2048, 700), tokens, 1.0) == choice.factor(QWEN, tokens, 1.0)


def _skewed(tables: KernelFile, skew: float) -> ComposedCostModel:
    composition = msgspec.structs.replace(tables.composition, expert_skew=skew)
    spec = load_model_spec("Qwen3-30B-A3B")
    return ComposedCostModel(msgspec.structs.replace(tables, composition=composition), spec, H200)


def test_the_assumed_skew_reaches_steps():
    """A model composed with skewed experts decodes faster at 32 requests, and its name says so."""
    step = decode(32, 1000, 32)
    even, skewed = _skewed(TABLES, 0.0), _skewed(TABLES, 1.0)
    assert skewed.step_cost(step)[0] < 0.97 * even.step_cost(step)[0]
    assert skewed.name != even.name
    assert "expert skew 1 assumed" in skewed.name
    dense = load_model_spec("Llama-3.1-8B")
    assert "skew" not in ComposedCostModel(made_kernels(("Llama-3.1-8B",)), dense, H200).name


def test_series_of_one_choice_tell_nothing():
    """A point or two are no fit."""
    one = Series(op="moe_mlp", sizes=QWEN, points=((8, 53, 2), (8, 41, 4)), ns=(2.0, 1.0),
                 spread_ns=(0.0, 0.0), repeats=(1, 1))  # fmt: skip
    assert ExpertChoice([one]).factor(QWEN, np.array([8.0]), 1.0) == 1.0
