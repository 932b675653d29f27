"""What the tables of a calibrated cost model mean, with costs that a person can add up."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from calibrated_models import MIXED, MODELS, gpu_ns, model_of
from cost_model_laws import check_decode_run, check_growing
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_steps import GRAPH_BATCHES, columns_of, decode, mixed, prefill

from simulator.cost_model import StepShape
from simulator.curves import SharedContext
from simulator.mixed_costs import padded_tokens
from simulator.profile import DecodeTable, LaunchFit, ProfileError, SharedFit

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
    more = 7 + 11  # a request and its logits; before 64 tokens the table of tokens is flat
    assert model.step_cost(decode(1, 260, 9)) == (6060 + more, 1010, True)


def test_rows_beyond_all_tables_compute_what_tokens_of_prompts_do():
    """More requests than were ever measured are not free, and take no less than beside a prompt."""
    model = model_of()
    more = 1016 * (7 + 11) + 10_600 - 1000
    assert gpu_ns(model, decode(1024, 1, 1024)) - gpu_ns(model, decode(1, 1024, 8)) == more
    run, _, extrapolated = model.decode_run(decode(1024, 1, 1024), 2)
    assert (run[0], extrapolated) == (gpu_ns(model, decode(1024, 1, 1024)), True)
    unknown = model_of(mixed=None)
    assert gpu_ns(unknown, decode(1, 1024, 1024)) == gpu_ns(unknown, decode(1, 1024, 8))
    costs = model.step_costs(columns_of(*(decode(1, 250, batch) for batch in (2, 4, 6, 8, 9))))
    assert costs.extrapolated.tolist() == [True, False, False, False, True]


def test_a_graph_that_holds_fewer_requests_costs_what_it_costs():
    """Requests and sampled rows do not matter in a decode graph: it runs all its rows."""
    model = MODELS["gpu"]
    full = decode(128, 100, 128)
    part = full._replace(decode_requests=70, decode_tokens=70, sampled_tokens=70)
    assert gpu_ns(model, part) == gpu_ns(model, full)


def test_rows_without_a_request_take_off_what_experts_they_do_not_read():
    """Where tokens choose experts, each but the first, as those without a request are alike.

    Never all of a step, and one by one as in columns and runs.
    """
    tables = (
        DecodeTable(graph_batch=4, context=(100, 400), ns=(5000.0, 5300.0), idle_row_ns=100.0),
        DecodeTable(graph_batch=8, context=(200, 800), ns=(6000.0, 6600.0), idle_row_ns=200.4),
        DecodeTable(graph_batch=9, context=(9, 90), ns=(900.0, 990.0), idle_row_ns=100.0),
    )
    model = model_of(tables)

    def step(requests: int, graph_batch: int) -> StepShape:
        return decode(graph_batch, 300 // graph_batch, graph_batch)._replace(
            decode_requests=requests, decode_tokens=requests, decode_context=300
        )

    shapes = [
        step(4, 4), step(3, 4), step(1, 4), step(5, 8), step(5, 6), step(4, 6), step(1, 9),
    ]  # fmt: skip
    assert [gpu_ns(model, shape) for shape in shapes] == [
        5200, 5200, 5000, 6100 - 401, (5100 + 6200) / 2, (5100 + 6200) / 2 - 150, 1223 - 700,
    ]  # fmt: skip
    assert model.step_costs(columns_of(*shapes)).gpu_ns.tolist() == [
        gpu_ns(model, shape) for shape in shapes
    ]
    for shape in shapes:
        run, _, _ = model.decode_run(shape, 5)
        contexts = range(300, 300 + 5 * shape.decode_tokens, shape.decode_tokens)
        assert run == [gpu_ns(model, shape._replace(decode_context=at)) for at in contexts]


def test_rows_that_a_table_does_not_have_are_not_idle():
    """A graph beyond all tables is read as the largest, of whose rows those requests take some."""
    table = DecodeTable(graph_batch=8, context=(200, 800), ns=(6000.0, 6600.0), idle_row_ns=100.0)
    model = model_of((msgspec.structs.replace(table, graph_batch=4), table))
    times = [gpu_ns(model, decode(count, 1, 16)) for count in (3, 7, 8, 12, 16)]
    more = 8 * (7 + 11)  # what eight rows more compute
    assert times == [6000 + more - 4 * 100, *[6000 + more] * 4]
    columns = columns_of(*(decode(count, 1, 16) for count in (3, 7, 8, 12, 16)))
    assert model.step_costs(columns).gpu_ns.tolist() == times


@st.composite
def any_tables(draw):
    """Decode tables as a profile may have them, with rows that take off up to all of a step."""
    tables = []
    for graph_batch in sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4))):
        steps = st.tuples(st.integers(1, 500), st.floats(0, 900))
        knots = draw(st.lists(steps, min_size=2, max_size=5))
        ns = np.cumsum([rise for _, rise in knots]).tolist()
        share = draw(st.floats(0, 1))
        tables.append(
            DecodeTable(
                graph_batch=graph_batch,
                context=tuple(np.cumsum([step for step, _ in knots]).tolist()),
                ns=tuple(ns),
                idle_row_ns=share * ns[0] / graph_batch,
            )
        )
    return tuple(tables)


@settings(max_examples=300)
@given(any_tables(), st.integers(1, 50), st.integers(1, 50), st.integers(1, 3), st.integers(0, 900))
def test_any_idle_rows_leave_the_laws_of_steps(tables, graph_batch, requests, each, context):
    """One by one, in columns and in runs alike; at least 1 ns; more never costs less."""
    model = model_of(tables)
    shape = decode(1, 1, graph_batch)._replace(
        decode_requests=requests, decode_tokens=each * requests, decode_context=context
    )
    check_decode_run(model, shape, 30)
    run, _, _ = model.decode_run(shape, 30)
    contexts = range(context, context + 30 * shape.decode_tokens, shape.decode_tokens)
    assert run == [gpu_ns(model, shape._replace(decode_context=at)) for at in contexts]
    assert run == sorted(run)
    assert run[0] >= 1
    check_growing(model, shape, "decode_requests", 1)


def test_batches_between_tables_lie_between_them():
    """At the same context per row no batch costs less than a smaller one."""
    run = [gpu_ns(MODELS["gpu"], decode(batch, 3000, batch)) for batch in range(1, 257)]
    measured = [run[batch - 1] for batch in GRAPH_BATCHES]
    assert measured == sorted(measured), "the samples are in order, or else this tests nothing"
    assert run == sorted(run)


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
    own = model_of(mixed=msgspec.structs.replace(free, own_tokens=64), graph_tokens=(64, 128, 512))
    sizes = (3, 1), (64, 1), (65, 1), (90, 1), (60, 6)  # six chunks take a graph of 128
    small = [StepShape(prefill_tokens=tokens, prefill_requests=many) for tokens, many in sizes]
    for step, paid in zip(small, (3, 64, 128, 128, 128), strict=True):
        assert gpu_ns(own, step) == gpu_ns(plain, step._replace(prefill_tokens=paid))
    costs = own.step_costs(columns_of(*small))
    assert costs.gpu_ns.tolist() == [gpu_ns(own, step) for step in small]
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


def test_shared_context_saves_what_its_table_says():
    """Tables are read at what is left of the context, of graphs and of steps with prefill."""
    model = model_of(shared=SharedFit(shared=(0, 60, 100), saved=(0.0, 60.0, 75.0)))
    # 75 tokens each: 60 and three eighths of the next 15
    assert gpu_ns(model, decode(4, 200, 4, shared=100)) == gpu_ns(model, decode(3, 179, 4)) == 5711
    beside = StepShape(prefill_tokens=1, prefill_requests=1, decode_requests=4, decode_tokens=4)
    alone = gpu_ns(model, beside._replace(decode_context=537))
    shared = gpu_ns(model, beside._replace(decode_context=800, shared_context=300))
    assert shared == alone < gpu_ns(model, beside._replace(decode_context=800))


def test_how_many_share_decides_what_each_saves():
    """Between the numbers that the table has, linearly; the same one by one and in columns."""
    fit = SharedFit(shared=(0, 100), saved=(0.0, 50.0), requests=(8, 32, 40), times=(1.2, 0.6, 1.0))
    context = SharedContext(fit)
    saved = [context.saved(100 * requests, requests) for requests in (1, 8, 20, 32, 36, 40, 256)]
    assert saved == [60, 8 * 60, 20 * 45, 32 * 30, 36 * 40, 40 * 50, 256 * 50]
    shapes = [
        decode(requests, 1000 * requests, 512, shared=shared * requests)
        for requests in range(1, 300)
        for shared in (1, 99, 777)
    ]
    one_by_one = [s.decode_context - context.saved(s.shared_context, s.decode_requests)
                  for s in shapes]  # fmt: skip
    assert context.attended(columns_of(*shapes)).tolist() == one_by_one
