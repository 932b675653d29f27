"""The calibrated cost model: one set of integers from three methods, and what tables mean."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cost_model_laws import check_decode_run, check_empty_steps, check_growing
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_steps import (
    CPU_ENGINE,
    GPU_ENGINE,
    GRAPH_BATCHES,
    columns_of,
    cpu_shapes,
    decode,
    gpu_shapes,
    mixed,
    prefill,
    profile_of,
    random_features,
    samples_of,
)

from simulator.calibrated import TERMS, CalibratedCostModel
from simulator.cost_model import CostModel, StepFeatures, StepShape
from simulator.mixed_costs import launch_kinds, padded_tokens
from simulator.profile import (
    DecodeTable,
    Fit,
    HostFit,
    LaunchFit,
    MixedFit,
    ProfileError,
    SharedFit,
)

GPU = profile_of(samples_of(gpu_shapes()))
MODELS: dict[str, CostModel] = {
    "gpu": CalibratedCostModel(GPU),
    "cpu": CalibratedCostModel(profile_of(samples_of(cpu_shapes(), CPU_ENGINE), CPU_ENGINE)),
}
models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)

MIXED = MixedFit(
    tokens=(64, 128, 1024),
    ns=(1000.0, 1640.0, 10_600.0),
    pair_ns=0.25,
    context_ns=0.5,
    max_context_ns=3.0,
    decode_context=(0, 4000, 90_000),
    decode_context_ns=(0.0, 8000.0, 94_000.0),
    prefill_request_ns=30.0,
    decode_request_ns=7.0,
    logits_ns=500.0,
    logit_row_ns=11.0,
    launches=LaunchFit(
        graph_prefill_ns=1500.4, graph_mixed_ns=2000.0, eager_mixed_ns=1900.0,
        eager_decode_ns=1700.0,
    ),
)  # fmt: skip
TABLES = (
    DecodeTable(graph_batch=4, context=(100, 400, 1000), ns=(5000.0, 5300.0, 7100.0)),
    DecodeTable(graph_batch=8, context=(200, 800, 2000), ns=(6000.0, 6600.0, 10_200.0)),
)
NOTHING_SHARED = SharedFit()
LIMITS = {"prefill_tokens": 1024, "decode_context": 2000, "decode_max_context": 500}


def model_of(
    decode: tuple[DecodeTable, ...] = TABLES,
    mixed: MixedFit | None = MIXED,
    graph_tokens: tuple[int, ...] = (),
    shared: SharedFit = NOTHING_SHARED,
) -> CalibratedCostModel:
    """A model with costs that a person can add up."""
    fit = Fit(
        decode=decode,
        mixed=mixed,
        host=HostFit(
            step_ns=1000.4, request_ns=10.0, prefill_request_ns=100.0, prefill_token_ns=0.5
        ),
        limits=LIMITS,
        residuals=(),
        shared=shared,
    )
    engine = msgspec.structs.replace(GPU_ENGINE, graph_tokens=graph_tokens)
    return CalibratedCostModel(msgspec.structs.replace(GPU, name="by hand", fit=fit, engine=engine))


def gpu_ns(model: CostModel, shape: StepShape) -> int:
    """GPU time of one step."""
    return model.step_cost(shape)[0]


def shapes_of(features: StepFeatures) -> list[StepShape]:
    """Columns as shapes of Python ints."""
    columns = [getattr(features, name).tolist() for name in StepShape._fields]
    return [StepShape(*row) for row in zip(*columns, strict=True)]


@st.composite
def steps(draw) -> StepShape:
    """Steps of all kinds, one of many random ones."""
    return shapes_of(random_features(1, draw(st.integers(0, 1 << 32))))[0]


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


_NOT_GROWING = ("graph_batch", "active_experts", "shared_context")
GROWING = tuple(name for name in StepShape._fields if name not in _NOT_GROWING)


@settings(max_examples=500)
@given(models, steps(), st.sampled_from(GROWING), st.integers(1, 5000))
def test_more_of_anything_never_costs_less(model, shape, feature, more):
    """Both costs are monotone in every feature, as long as the step stays of its kind.

    More chunks than a graph has room for are not padded any more.
    """
    if feature == "prefill_tokens" and not shape.prefill_tokens:
        return
    if feature == "decode_requests":  # the same shared by more is a shorter text, read more cheaply
        shape = shape._replace(shared_context=0)
    larger = shape._replace(**{feature: getattr(shape, feature) + more})
    if feature == "prefill_requests" and launch_kind_of(model, larger) != launch_kind_of(
        model, shape
    ):
        return
    check_growing(model, shape, feature, more)


@settings(max_examples=300)
@given(models, steps(), st.integers(1, 5_000_000))
def test_more_of_it_shared_never_costs_more(model, shape, more):
    """The same context costs no less if more of it is each request's own."""
    shared = shape._replace(shared_context=shape.shared_context + more)
    assert gpu_ns(model, shared) <= gpu_ns(model, shape)


def test_shared_context_saves_what_its_table_says():
    """Tables are read at what is left of the context, of graphs and of steps with prefill."""
    model = model_of(shared=SharedFit(shared=(0, 60, 100), saved=(0.0, 60.0, 75.0)))
    # 75 tokens each: 60 and three eighths of the next 15
    assert gpu_ns(model, decode(4, 200, 4, shared=100)) == gpu_ns(model, decode(3, 179, 4)) == 5711
    beside = StepShape(prefill_tokens=1, prefill_requests=1, decode_requests=4, decode_tokens=4)
    alone = gpu_ns(model, beside._replace(decode_context=537))
    shared = gpu_ns(model, beside._replace(decode_context=800, shared_context=300))
    assert shared == alone < gpu_ns(model, beside._replace(decode_context=800))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=2, max_size=6),
    st.floats(0, 2),
)
def test_a_table_never_falls_from_one_whole_place_to_the_next(steps, first):
    """Not even by what rounding does, with knots one apart and rises that are hardly any."""
    context = np.cumsum([step for step, _ in steps]).tolist()
    ns = (first + np.cumsum([rise / 3 for _, rise in steps])).tolist()
    model = model_of((DecodeTable(graph_batch=4, context=tuple(context), ns=tuple(ns)),))
    run, _, _ = model.decode_run(decode(1, 1, 4), context[-1] + 10)
    assert run == sorted(run)
    assert min(run) >= 1


# What the tables of decode graphs mean.


def test_a_decode_table_is_linear_between_its_knots():
    """Flat before the first knot, linear in between, and on with the last slope."""
    model = model_of()
    costs = {context: gpu_ns(model, decode(1, context, 4)) for context in (1, 100, 250, 400, 700)}
    assert costs == {1: 5000, 100: 5000, 250: 5150, 400: 5300, 700: 6200}
    assert gpu_ns(model, decode(1, 1500, 4)) == 7100 + 500 * 3
    terms = model.step_costs(columns_of(decode(1, 250, 4))).terms
    assert {name: ns.tolist() for name, ns in terms.items() if ns.any()} == {
        "tokens": [5000],
        "attention_decode": [150],
    }


def test_a_batch_between_two_tables_reads_both_at_its_context_per_row():
    """Batch 6 lies halfway between 4 and 8; 75 tokens a row are 300 and 600 tokens there."""
    model = model_of()
    assert gpu_ns(model, decode(6, 75, 6)) == (5200 + 6400) / 2
    assert gpu_ns(model, decode(5, 75, 5)) == 5200 * 3 / 4 + 6400 / 4
    # Beyond the last knots of both, too.
    assert gpu_ns(model, decode(6, 300, 6)) == ((7100 + 200 * 3) + (10_200 + 400 * 3)) / 2


def test_a_batch_beyond_all_tables_reads_the_nearest_and_extrapolates():
    """Batches 2 and 9 are read from those of 4 and 8 at their own context."""
    model = model_of()
    assert model.step_cost(decode(1, 250, 2)) == (5150, 1010, True)
    assert model.step_cost(decode(1, 260, 9)) == (6060, 1010, True)
    costs = model.step_costs(columns_of(*(decode(1, 250, batch) for batch in (2, 4, 6, 8, 9))))
    assert costs.extrapolated.tolist() == [True, False, False, False, True]


def test_a_graph_that_holds_fewer_requests_costs_what_it_costs():
    """Requests and sampled rows do not matter in a decode graph: it runs all its rows."""
    model = MODELS["gpu"]
    full = decode(128, 100, 128)
    part = full._replace(decode_requests=70, decode_tokens=70, sampled_tokens=70)
    assert gpu_ns(model, part) == gpu_ns(model, full)


def test_batches_between_tables_lie_between_them():
    """At the same context per row no batch costs less than a smaller one."""
    run = [gpu_ns(MODELS["gpu"], decode(batch, 3000, batch)) for batch in range(1, 257)]
    measured = [run[batch - 1] for batch in GRAPH_BATCHES]
    assert measured == sorted(measured), "the samples are in order, or else this tests nothing"
    assert run == sorted(run)


# What the fit of other steps means.


def test_a_mixed_step_is_the_sum_of_its_parts():
    """Each rate is multiplied by its feature and lands in its term."""
    shape = StepShape(
        prefill_tokens=90,
        prefill_requests=2,
        prefill_context=31,
        prefill_pairs=1001,
        prefill_max_context=70,
        decode_requests=3,
        decode_tokens=6,
        decode_context=400,
        decode_max_context=200,
        sampled_tokens=5,
    )
    costs = model_of().step_costs(columns_of(shape))
    assert {name: int(ns[0]) for name, ns in costs.terms.items()} == {
        "tokens": 1000 + 32 * 10,
        "attention_prefill": 266,  # 250.25 + 15.5, rounded
        "attention_decode": 800,
        "requests": 60 + 21,
        "logits": 500 + 55,
        "launches": 0,
    }
    assert costs.host_ns.tolist() == [1000 + 50 + 200 + 45]


def test_a_step_without_logits_does_not_pay_for_them():
    """A chunk that does not end its prompt costs no logits."""
    shape = prefill(64, sampled=0)
    assert gpu_ns(model_of(), shape._replace(sampled_tokens=1)) - gpu_ns(model_of(), shape) == 511


def test_attention_to_prompts_lasts_as_long_as_the_longest():
    """All of its work, or the keys of the longest prompt one after the other, whichever is more."""
    short = prefill(64, context=400)._replace(prefill_max_context=100)
    for longest, ns in ((100, 7120), (2373, 7120), (2374, 7122), (9000, 27_000)):
        shape = short._replace(prefill_max_context=longest)
        terms = model_of().step_costs(columns_of(shape)).terms
        assert terms["attention_prefill"].tolist() == [ns]
        assert gpu_ns(model_of(), shape) == 1000 + ns + 30 + 511


def test_no_step_is_shorter_than_its_launches():
    """By what it runs: prompts as graphs or not, alone or beside decode items, or only those."""
    model = model_of(graph_tokens=(16,))
    one = StepShape(prefill_tokens=1, prefill_requests=1)
    many = StepShape(prefill_tokens=20, prefill_requests=1)
    beside = StepShape(decode_requests=1, decode_tokens=1)
    shapes = [one, mixed(one, beside), many, mixed(many, beside), beside]
    assert [gpu_ns(model, shape) for shape in shapes] == [1500, 2000, 1030, 1900, 1700]
    costs = model.step_costs(columns_of(*shapes))
    assert costs.terms["launches"].tolist() == [1500 - 1030, 2000 - 1037, 0, 1900 - 1037, 693]
    run, _, _ = model.decode_run(beside._replace(decode_context=340), 9)
    assert run == [1700] * 7 + [1701, 1703]


def test_steps_with_prefill_pay_for_their_padding():
    """They cost what the next captured token count costs, beyond the last what they are."""
    free = msgspec.structs.replace(MIXED, launches=LaunchFit())
    model = model_of(mixed=free, graph_tokens=(64, 128))
    plain = model_of(mixed=free)
    for shape, paid in ((90, 128), (128, 128), (129, 129), (3, 64)):
        step = StepShape(prefill_tokens=shape, prefill_requests=1)
        assert gpu_ns(model, step) == gpu_ns(plain, step._replace(prefill_tokens=paid))
    both = mixed(prefill(60), decode(5, 10))
    paid = both._replace(prefill_tokens=128 - 5)
    assert gpu_ns(model, both) == gpu_ns(plain, paid)
    eager = decode(90, 10)
    assert gpu_ns(model, eager) == gpu_ns(plain, eager), "nothing pads a step without prefill"


def test_padding_of_columns():
    """padded_tokens takes the next size where a step prefills and there is one."""
    shapes = [prefill(1), prefill(16), prefill(17), prefill(33), decode(5, 9), StepShape()]
    assert padded_tokens(columns_of(*shapes), (16, 32)).tolist() == [16, 16, 32, 33, 5, 0]
    assert padded_tokens(columns_of(*shapes), ()).tolist() == [1, 16, 17, 33, 5, 0]


def test_without_decode_tables_decode_steps_are_like_others():
    """A CPU has no graphs; a step that names one all the same is a step of its tokens."""
    model = MODELS["cpu"]
    assert gpu_ns(model, decode(8, 200, 8)) == gpu_ns(model, decode(8, 200))
    assert model.step_cost(decode(8, 200, 8))[2], "no graph was measured"


def test_without_a_fit_of_other_steps_they_are_an_error():
    """A profile of decode graphs alone predicts those, and says what it lacks for others."""
    model = model_of(mixed=None)
    assert gpu_ns(model, decode(1, 100, 4)) == 5000
    assert model.decode_run(decode(1, 100, 4), 1) == ([5000], 1010, False)
    assert model.step_costs(columns_of(decode(1, 100, 4))).gpu_ns.tolist() == [5000]
    for ask in (
        lambda: model.step_cost(prefill(8)),
        lambda: model.decode_run(decode(1, 8), 2),
        lambda: model.step_costs(columns_of(decode(1, 100, 4), prefill(8))),
    ):
        with pytest.raises(ProfileError, match="by hand has only decode steps.*calibrate"):
            ask()


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
