"""Steps of models that never ran: laws of the model, and how near the truth of a made-up GPU."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cost_model_laws import check_decode_run, check_empty_steps, check_growing
from hypothesis import given, settings
from hypothesis import strategies as st
from made_kernels import CARDS, H200, TRUE, made_kernels, measured_whole, with_correction
from measured_steps import decode, mixed, prefill, random_features

from engine.core.model_spec import load_model_spec
from simulator.composition.composed import ComposedCostModel, expected_error
from simulator.composition.composing import mixed_small
from simulator.composition.kernel_file import Correction
from simulator.composition.kernel_parts import KernelParts
from simulator.composition.kernel_tables import KernelTables
from simulator.cost_model import CostModel, StepFeatures, StepShape
from simulator.fitting.composition import Measured, fit_composition
from simulator.fitting.profile_fit import DECODE, MIXED, PREFILL, PREFIX, SHARED
from simulator.power_state import PowerFit
from simulator.profile import ProfileError, SharedFit
from simulator.waking import WakeFit

BARE = made_kernels()
TABLES = fit_composition(BARE, [measured_whole(BARE, card) for card in CARDS], H200)
MODELS: dict[str, CostModel] = {
    "measured sizes": ComposedCostModel(TABLES, load_model_spec("Llama-3.1-8B"), H200),
    "mixture": ComposedCostModel(TABLES, load_model_spec("Qwen3-30B-A3B"), H200),
    "two GPUs": ComposedCostModel(
        TABLES, load_model_spec("Qwen3-0.6B"), H200, tensor_parallel_size=2
    ),
    "other sizes": ComposedCostModel(TABLES, load_model_spec("Qwen3-8B"), H200),
    "no lenders": ComposedCostModel(BARE, load_model_spec("Llama-3.1-8B"), H200),
    "corrected downwards": ComposedCostModel(
        with_correction(TABLES, Correction(decode_layer_ns=-1e6, layer_ns=-1e6)),
        load_model_spec("Qwen3-0.6B"),
        H200,
    ),
}
models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
FEATURES = random_features(400, seed=3)
SHAPES = [
    StepShape(*row)
    for row in zip(*(getattr(FEATURES, name).tolist() for name in StepShape._fields), strict=True)
]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_one_step_costs_what_it_costs_among_many(name):
    """step_cost and step_costs agree bit for bit, of steps that no engine would run as well."""
    model = MODELS[name]
    costs = model.step_costs(FEATURES)
    for index, shape in enumerate(SHAPES):
        one = model.step_cost(shape)
        assert one == (costs.gpu_ns[index], costs.host_ns[index], costs.extrapolated[index])
    assert sum(costs.terms.values()).tolist() == costs.gpu_ns.tolist()
    assert costs.gpu_ns.min() >= 1
    assert costs.host_ns.min() >= 0


@given(models, st.sampled_from([1, 2, 7, 64, 256, 300]), st.integers(1, 30_000), st.integers(1, 40))
@settings(max_examples=80)
def test_a_run_of_decode_steps_is_its_steps(model, batch, context, steps):
    """decode_run equals the steps written out."""
    check_decode_run(model, decode(batch, context, batch if batch <= 256 else 0), steps)


@given(
    models,
    st.sampled_from(range(len(SHAPES))).map(SHAPES.__getitem__),
    st.sampled_from(
        ["prefill_context", "prefill_pairs", "prefill_max_context", "decode_context"]
    ),
    st.integers(1, 100_000),
)  # fmt: skip
@settings(max_examples=200)
def test_more_work_never_takes_less(model, shape, feature, more):
    """A step with more of something takes no less."""
    check_growing(model, shape, feature, more)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_more_tokens_never_take_less(name):
    """A longer prompt, and a larger graph at the same context, take no less."""
    model = MODELS[name]
    prompts = [prefill(tokens) for tokens in range(1, 9000, 13)]
    batches = [decode(batch, 100, batch)._replace(decode_context=51_200) for batch in range(1, 257)]
    for shapes in (prompts, batches):
        assert np.all(np.diff(model.step_costs(StepFeatures.from_shapes(shapes)).gpu_ns) >= 0)


def test_steps_without_tokens_are_refused():
    """No method invents the cost of an empty step."""
    check_empty_steps(MODELS["measured sizes"])


@pytest.mark.parametrize("card", CARDS)
def test_a_model_is_predicted_without_its_own_steps(card):
    """Leaving a model out, its steps are predicted by kernels and the other models' steps."""
    errors = {e.composed.region: e for e in TABLES.composition.errors if e.model == card}
    assert set(errors) == {DECODE, PREFILL, PREFIX, MIXED, SHARED}
    # The smallest model shows most of what belongs to no kernel, and others cannot know of it.
    # And of the other two only one teaches what prompts take.
    most = 4.0 if card == "Qwen3-0.6B" else 1.5
    assert all(e.composed.median_percent < most for e in errors.values())
    assert all(e.composed.median_percent < e.analytic.median_percent for e in errors.values())


def test_corrections_are_learnt():
    """What steps differ by from the sum of their kernels is known better than without lenders.

    Factors are held near 1, which is what they are without any.
    """
    found = TABLES.composition.correction
    for name in ("decode_products", "decode_attention", "products", "attention"):
        true = getattr(TRUE, name)
        assert abs(getattr(found, name) - true) < 0.8 * abs(1 - true)
    assert 0.5 < found.decode_layer_ns / TRUE.decode_layer_ns < 1.5


def test_a_model_is_judged_with_the_padding_that_it_had():
    """An engine of today that pads otherwise does not make older steps harder to predict."""
    spec = load_model_spec("Llama-3.1-8B")
    padded = ComposedCostModel(TABLES, spec, H200, graph_tokens=(8192,))
    short, long = (padded.step_costs(StepFeatures.from_shapes([prefill(tokens)])).terms["tokens"]
                   for tokens in (100, 8192))  # fmt: skip
    assert short == long
    measured = measured_whole(BARE, "Llama-3.1-8B")
    shapes = measured.profile.samples.features()
    costs = padded.step_costs(shapes).gpu_ns
    profile = msgspec.structs.replace(
        measured.profile,
        engine=msgspec.structs.replace(measured.profile.engine, graph_tokens=(8192,)),
        samples=msgspec.structs.replace(measured.profile.samples, gpu_ns=tuple(costs.tolist())),
    )
    errors = fit_composition(BARE, [Measured(profile, spec)], H200).composition.errors
    of_prompts = next(e.composed for e in errors if e.composed.region == PREFILL)
    assert of_prompts.median_percent < 4


def test_prompts_of_a_mixture_teach_nothing():
    """With random weights they choose nobody knows which experts; its decode steps do teach."""
    moe = measured_whole(BARE, "Qwen3-30B-A3B")
    alone = fit_composition(BARE, [moe], H200).composition.correction
    untaught = Correction()
    for name in ("products", "attention", "layer_ns", "step_ns", "chunk_ns"):
        assert getattr(alone, name) == pytest.approx(getattr(untaught, name))
    assert alone.decode_layer_ns > 0.3 * TRUE.decode_layer_ns


def test_graphs_with_idle_rows_teach_what_full_ones_teach():
    """A mixture's steps are shorter by what experts nobody reads; its kernels are no faster."""
    full, idle = (
        fit_composition(BARE, [measured_whole(BARE, "Qwen3-30B-A3B", rows_taken=share)], H200)
        for share in (1.0, 0.6)
    )
    for name in ("decode_products", "decode_attention"):
        found, true = (getattr(each.composition.correction, name) for each in (idle, full))
        assert found == pytest.approx(true, abs=0.002)


@pytest.mark.parametrize(("card", "lends"), [("Llama-3.1-8B", True), ("Qwen3-30B-A3B", False)])
def test_a_mixture_lends_no_savings_of_shared_context(card: str, lends: bool):
    """Its requests that share a text share experts as well, which others do not have."""
    measured = measured_whole(BARE, card)
    samples = measured.profile.samples
    sharing = [(*shape[:9], shape[7] // 2, *shape[10:]) for shape in samples.shapes]
    saved = SharedFit(shared=(0, 1024), saved=(0.0, 900.0))
    profile = msgspec.structs.replace(
        measured.profile,
        samples=msgspec.structs.replace(samples, shapes=tuple(sharing)),
        fit=msgspec.structs.replace(measured.profile.fit, shared=saved),
    )
    (lender,) = fit_composition(BARE, [Measured(profile, measured.model)], H200).composition.lenders
    assert lender.shared == (saved if lends else None)


def test_rows_without_a_request_read_no_experts():
    """But one of them does: they are alike. A dense model computes all rows in any case."""
    for name, saves in (("mixture", True), ("measured sizes", False)):
        full = decode(16, 500, 16)
        times = [
            MODELS[name].step_cost(full._replace(decode_requests=count, decode_tokens=count))[0]
            for count in (9, 12, 15, 16)
        ]
        assert times == sorted(times)
        assert times[2] == times[3]
        assert (times[0] < times[1] < times[2]) == saves, name


def test_graphs_launch_attention_of_items_that_are_not_there():
    """A step with prompts that runs as a graph pays for idle attention of decode items, one not."""
    parts = KernelParts(KernelTables(BARE), load_model_spec("Llama-3.1-8B"), H200, 1)
    tokens = np.array([64.0, 704.0, 768.0])
    idle = mixed_small(parts, tokens, (64, 704)) - mixed_small(parts, tokens, ())
    least = parts.decode_attention(1, np.array([1.0]))[0]
    assert idle == pytest.approx([least, least, 0.0])


def test_parts_of_layers_say_what_their_kernels_take():
    """Tables without parts in one piece give the same, where kernels do not overlap."""
    chains = ("projections", "mlp", "moe_layer")
    single = msgspec.structs.replace(
        BARE, series=tuple(each for each in BARE.series if each.op not in chains)
    )
    f = StepFeatures.from_shapes([decode(8, 500, 8), prefill(64), prefill(4096)])
    for card in CARDS:
        spec = load_model_spec(card)
        one, other = (ComposedCostModel(each, spec, H200) for each in (BARE, single))
        ratio = one.step_costs(f).gpu_ns / other.step_costs(f).gpu_ns
        assert ratio == pytest.approx(1, abs=0.01)


def test_sizes_between_measured_ones_are_read_off():
    """A model whose sizes were left out of the tables is predicted by the sizes around them."""
    spec = load_model_spec("Qwen3-8B")
    known = ComposedCostModel(made_kernels((*CARDS, "Qwen3-8B")), spec, H200)
    guessed = ComposedCostModel(BARE, spec, H200)
    shapes = [decode(batch, 1000, batch) for batch in (1, 8, 32, 128, 256)]
    shapes += [prefill(tokens) for tokens in (64, 512, 2048, 8192)]
    f = StepFeatures.from_shapes(shapes)
    errors = guessed.step_costs(f).gpu_ns / known.step_costs(f).gpu_ns - 1
    assert np.abs(errors).max() < 0.05


def test_what_was_not_measured_counts_as_extrapolated():
    """Beyond the tables, with sizes far from theirs, and on several GPUs, steps say so."""
    near, far = decode(8, 500, 8), decode(8, 500, 8)._replace(decode_context=600_000)
    whole = MODELS["measured sizes"]
    assert not whole.step_cost(near)[2]
    assert whole.step_cost(far)[2]
    cached = StepShape(prefill_tokens=64, prefill_requests=1, sampled_tokens=1)
    for context, outside in ((16_000, False), (100_000, True)):
        prompt = cached._replace(
            prefill_context=context, prefill_max_context=context + 64,
            prefill_pairs=64 * context + 64 * 65 // 2,
        )  # fmt: skip
        assert whole.step_cost(prompt)[2] == outside
    assert whole.step_cost(cached._replace(prefill_requests=65))[2]
    assert whole.step_cost(decode(1, 120_000, 1))[2]
    assert whole.step_cost(decode(300, 100, 300))[2]
    assert whole.step_cost(decode(8, 100))[2]  # no graph: no table tells what launches take
    assert not MODELS["other sizes"].step_cost(mixed(prefill(64), near))[2]
    assert MODELS["two GPUs"].step_cost(near)[2]
    small = fit_composition(made_kernels(("Qwen3-0.6B",)), [], H200)
    assert ComposedCostModel(small, load_model_spec("Llama-3.1-70B"), H200).step_cost(near)[2]


def test_the_name_tells_who_speaks_and_how_well():
    """The name holds the GPU and the expected error, or says that it is not known."""
    dense = [e for e in TABLES.composition.errors if e.model != "Qwen3-30B-A3B"]
    median, p90 = expected_error(tuple(dense))
    name = f"composed from kernel tables of NVIDIA H200, expected error {median:.1f} %"
    assert MODELS["other sizes"].name == f"{name}, p90 {p90:.1f} %"
    assert MODELS["no lenders"].name.endswith("of NVIDIA H200, error not known")
    exchange = "of NVIDIA H200, exchange analytic, error not known"
    assert MODELS["two GPUs"].name.endswith(exchange)
    own = expected_error(tuple(e for e in TABLES.composition.errors if e.model == "Qwen3-30B-A3B"))
    assumed = "expert skew 0.25 assumed, expected error"
    assert MODELS["mixture"].name.endswith(f"{assumed} {own[0]:.1f} %, p90 {own[1]:.1f} %")
    dense = fit_composition(BARE, [measured_whole(BARE, "Llama-3.1-8B")], H200)
    unlike = ComposedCostModel(dense, load_model_spec("Qwen3-30B-A3B"), H200)
    assert unlike.name.endswith("expert skew 0.25 assumed, error not known")
    large = ComposedCostModel(TABLES, load_model_spec("Llama-3.1-70B"), H200)
    assert large.name.endswith("error not known")


def test_the_expected_error_is_that_of_the_worst_model():
    """It is the mean over regions of a model, weighted by steps, and the largest of all models."""
    errors = TABLES.composition.errors
    worst = expected_error(errors)
    for card in CARDS:
        own = [e.composed for e in errors if e.model == card]
        median = sum(e.count * e.median_percent for e in own) / sum(e.count for e in own)
        assert median <= worst[0] + 1e-9


def test_latent_attention_is_refused():
    """Models with kernels that no table has are not composed."""
    with pytest.raises(ProfileError, match="latent attention"):
        ComposedCostModel(TABLES, load_model_spec("DeepSeek-V3"), H200)


def test_tables_without_an_op_say_which():
    """A mixture cannot be composed of a dense model's kernels."""
    dense = made_kernels(("Llama-3.1-8B",))
    with pytest.raises(ProfileError, match="kernel tables have no moe_mlp"):
        ComposedCostModel(dense, load_model_spec("Mixtral-8x7B"), H200).step_cost(decode(1, 1, 1))


def test_another_gpus_power_is_not_made_up():
    """Clocks are lent by the model with the most similar arithmetic, in proportion to it."""
    assert MODELS["measured sizes"].power is None
    lender = TABLES.composition.lenders[0]
    power = PowerFit(
        token_ns=1000.0, load=(0.2, 0.8), slowdown=(0.0, 0.1), memory_share=0.3, light_busy=0.1
    )
    hot = msgspec.structs.replace(lender, power=power)
    composition = msgspec.structs.replace(TABLES.composition, lenders=(hot,))
    tables = msgspec.structs.replace(TABLES, composition=composition)
    power = ComposedCostModel(tables, load_model_spec("Llama-3.1-70B"), H200).power
    assert power is not None
    assert 8000 < power.token_ns < 10_500  # 70B has about nine times the products of 8B


def test_idle_times_are_lent():
    """What the first step after an idle time takes is that of the most similar model that knows."""
    assert MODELS["measured sizes"].wake is None
    small, large = (WakeFit(idle_ns=(0, 10), gpu_ns=(0.0, ns), lead_ns=(0.0, 0.0)) for ns in (1, 2))
    lent = {"Qwen3-0.6B": small, "Llama-3.1-8B": large}
    lenders = tuple(msgspec.structs.replace(lender, wake=lent.get(lender.model))
                    for lender in TABLES.composition.lenders)  # fmt: skip
    composition = msgspec.structs.replace(TABLES.composition, lenders=lenders)
    tables = msgspec.structs.replace(TABLES, composition=composition)
    assert ComposedCostModel(tables, load_model_spec("Llama-3.1-70B"), H200).wake == large
    assert ComposedCostModel(tables, load_model_spec("Qwen3-0.6B"), H200).wake == small
