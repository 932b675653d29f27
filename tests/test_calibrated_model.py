"""The calibrated cost model: one set of integers from three methods, within limits."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated_models import MIXED, MODELS, gpu_ns, model_of, models, shapes_of, steps
from cost_model_laws import check_decode_run, check_empty_steps, check_growing
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_steps import (
    columns_of,
    decode,
    gpu_shapes,
    mixed,
    prefill,
    profile_of,
    random_features,
    samples_of,
)

from simulator.calibrated import TERMS, CalibratedCostModel
from simulator.cost_model import StepFeatures, StepShape
from simulator.mixed_costs import launch_kinds
from simulator.profile import DecodeTable, LaunchFit, MixedFit

# Three methods, one answer.


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_step_costs_what_its_row_costs(model):
    """step_cost equals the row of step_costs bit for bit, for 10,000 shapes of all kinds."""
    features = random_features(10_000)
    costs = model.step_costs(features)
    rows = zip(
        costs.gpu_ns.tolist(), costs.host_ns.tolist(), costs.extrapolated.tolist(), strict=True
    )
    assert [model.step_cost(shape) for shape in shapes_of(features)] == list(rows)
    assert 0 < costs.extrapolated.sum() < 10_000


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_step_is_a_few_plain_ints(model):
    """What a simulation adds up billions of times is int, int and bool, not numpy's."""
    for shape in (decode(4, 100, 4), decode(4, 100), prefill(100)):
        assert [type(value) for value in model.step_cost(shape)] == [int, int, bool]
    gpu, host, extrapolated = model.decode_run(decode(4, 100, 4), 3)
    assert [type(value) for value in (*gpu, host, extrapolated)] == [int] * 4 + [bool]


@settings(max_examples=300)
@given(
    models, st.integers(1, 300), st.integers(1, 20_000), st.integers(0, 300), st.integers(0, 400),
    st.integers(0, 30_000),
)  # fmt: skip
def test_a_decode_run_costs_what_its_steps_cost(
    model, requests, context, graph_batch, num_steps, shared
):
    """decode_run equals step_costs of the steps written out, bit for bit, across knots."""
    shape = decode(requests, context, graph_batch, shared=shared)
    check_decode_run(model, shape, num_steps)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_terms_are_parts_of_the_whole(model):
    """No term is negative, they sum to gpu_ns exactly, and gpu_ns and host_ns are positive."""
    costs = model.step_costs(random_features(10_000, seed=1))
    assert tuple(costs.terms) == TERMS
    assert all((ns >= 0).all() for ns in costs.terms.values())
    assert np.array_equal(sum(costs.terms.values()), costs.gpu_ns)
    assert (costs.gpu_ns > 0).all()
    assert (costs.host_ns > 0).all()
    columns = (costs.gpu_ns, costs.host_ns, *costs.terms.values())
    assert {ns.dtype for ns in columns} == {np.dtype(np.int64)}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_costs_do_not_depend_on_what_was_asked_before(model):
    """A graph batch between the tables costs the same whenever it is asked for."""
    shapes = [decode(batch, 700, batch) for batch in (3, 100, 3, 257, 100)]
    first = [model.step_cost(shape) for shape in shapes]
    assert [model.step_cost(shape) for shape in reversed(shapes)] == first[::-1]


def launch_kind_of(model: CalibratedCostModel, shape: StepShape) -> int:
    kinds = launch_kinds(StepFeatures.from_shapes([shape]), model._graph_tokens)
    return int(kinds[0])


EAGER_PREFILLS = tuple(
    LaunchFit.__struct_fields__.index(f"eager_{kind}_ns") for kind in ("prefill", "mixed")
)
_NOT_GROWING = ("graph_batch", "active_experts", "shared_context")
GROWING = tuple(name for name in StepShape._fields if name not in _NOT_GROWING)


@settings(max_examples=500)
@given(models, steps(), st.sampled_from(GROWING), st.integers(1, 5000))
def test_more_of_anything_never_costs_less(model, shape, feature, more):
    """Both costs are monotone in every feature, as long as the step stays of its kind.

    More chunks than a graph has room for are not padded any more; more tokens may make room for
    them, and then the host launches one graph and not every kernel.
    """
    if feature == "prefill_tokens" and not shape.prefill_tokens:
        return
    if feature == "decode_requests":  # the same shared by more is a shorter text, read more cheaply
        shape = shape._replace(shared_context=0)
    larger = shape._replace(**{feature: getattr(shape, feature) + more})
    kind, later = (launch_kind_of(model, each) for each in (shape, larger))
    if feature == "prefill_requests" and later != kind:
        return
    becomes_graph = kind in EAGER_PREFILLS and later not in EAGER_PREFILLS
    check_growing(model, shape, feature, more, of_host=not becomes_graph)


@settings(max_examples=300)
@given(models, steps(), st.integers(1, 5_000_000))
def test_more_of_it_shared_never_costs_more(model, shape, more):
    """The same context costs no less if more of it is each request's own."""
    shared = shape._replace(shared_context=shape.shared_context + more)
    assert gpu_ns(model, shared) <= gpu_ns(model, shape)


# Limits and errors.


def test_a_step_beyond_what_was_measured_is_extrapolated():
    """A feature at its limit is in range, one above is not; those without limit do not matter."""
    model = model_of()
    inside = [
        prefill(1024),
        decode(4, 500, 4),
        prefill(10, context=100_000, sampled=0)._replace(prefill_pairs=10**9),
    ]
    outside = [prefill(1025), decode(4, 501, 4), decode(1, 501, 4)]
    for shapes, expected in ((inside, False), (outside, True)):
        assert {model.step_cost(shape)[2] for shape in shapes} == {expected}
        assert set(model.step_costs(columns_of(*shapes)).extrapolated.tolist()) == {expected}
    for requests in (1, 4):  # beyond the longest context, beyond that and the sum
        assert model.decode_run(decode(requests, 498, 4), 3)[2] is False
        assert model.decode_run(decode(requests, 498, 4), 4)[2] is True


def test_a_kind_of_step_that_was_never_measured_is_extrapolated():
    """However small it is: nothing is known of how long its kernels take to launch."""
    graphs_only = [shape for shape in gpu_shapes() if shape.prefill_tokens or shape.graph_batch]
    model = CalibratedCostModel(profile_of(samples_of(graphs_only)))
    shapes = [decode(4, 100), decode(4, 100, 4), prefill(100), mixed(prefill(100), decode(4, 100))]
    for shape, unknown in zip(shapes, (True, False, False, False), strict=True):
        assert model.step_cost(shape)[2] is unknown
    assert model.step_costs(columns_of(*shapes)).extrapolated.tolist() == [True] + [False] * 3
    assert model.decode_run(decode(4, 100), 3)[2] is True
    assert model.decode_run(decode(4, 100, 4), 3)[2] is False
    alone = [shape for shape in gpu_shapes() if not shape.decode_tokens]
    model = CalibratedCostModel(profile_of(samples_of(alone)))
    assert model.step_cost(mixed(prefill(100), decode(1, 10)))[2] is True


def test_known_experts_are_not_extrapolated():
    """The fit does not depend on the experts visited, so a run that counts them stays in range."""
    shape = decode(4, 100, 4)._replace(active_experts=300)
    assert MODELS["gpu"].step_cost(shape) == MODELS["gpu"].step_cost(decode(4, 100, 4))
    assert not MODELS["gpu"].step_cost(shape)[2]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_empty_step_is_an_error(model):
    """No method invents the cost of a step without tokens, or of a run that does not decode."""
    check_empty_steps(model)


@pytest.mark.parametrize(
    "model", [*MODELS.values(), model_of(mixed=None)], ids=[*MODELS, "decode graphs alone"]
)
def test_no_steps_cost_nothing(model):
    """Empty columns give empty costs, and a run of no steps no times."""
    costs = model.step_costs(columns_of())
    assert len(costs.gpu_ns) == len(costs.host_ns) == len(costs.extrapolated) == 0
    assert tuple(costs.terms) == TERMS
    for shape in (decode(4, 100, 4), decode(4, 1 << 40, 900)):
        gpu, host, extrapolated = model.decode_run(shape, 0)
        assert (gpu, extrapolated) == ([], False)
        assert host == model.step_cost(shape)[1]


def test_every_result_names_its_profile():
    """The model's name is the profile's."""
    assert model_of().name == "by hand"


def test_a_fit_of_zeros_still_takes_time():
    """gpu_ns is at least 1 in all forms."""
    none = MixedFit(
        **dict.fromkeys(MIXED.__struct_fields__, 0.0)
        | {"tokens": (1, 2), "ns": (0.0, 0.0), "launches": LaunchFit()}
        | {"decode_context": (0, 1), "decode_context_ns": (0.0, 0.0)}
    )
    model = model_of((DecodeTable(graph_batch=4, context=(1, 2), ns=(0.0, 0.0)),), none)
    for shape in (decode(4, 9, 4), decode(4, 9), prefill(9)):
        assert gpu_ns(model, shape) == 1
        assert model.step_costs(columns_of(shape)).gpu_ns.tolist() == [1]
    for shape in (decode(4, 9, 4), decode(4, 9)):
        assert model.decode_run(shape, 2)[0] == [1, 1]
