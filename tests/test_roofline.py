"""The analytic cost model: one set of integers from three methods, and laws that they obey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cost_model_laws import check_decode_run, check_empty_steps, check_growing
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.hardware_spec import UnsupportedGpuDtypeError, load_hardware_spec
from engine.core.model_spec import TensorParallelError, load_model_spec
from simulator import roofline
from simulator.cost_model import UNKNOWN, CostModel, StepFeatures, StepShape
from simulator.roofline import HostCosts, RooflineCostModel
from simulator.roofline_coefficients import expected_experts

H200 = load_hardware_spec("h200")
MODELS: dict[str, CostModel] = {
    "dense": RooflineCostModel(load_model_spec("Llama-3.1-8B"), H200),
    "moe": RooflineCostModel(load_model_spec("Qwen3-30B-A3B"), H200, kv_dtype="int8"),
    "mla": RooflineCostModel(load_model_spec("DeepSeek-V3"), H200, tensor_parallel_size=8),
    "pcie": RooflineCostModel(
        load_model_spec("Qwen3-0.6B"),
        load_hardware_spec("rtx4090"),
        tensor_parallel_size=2,
        weight_dtype="fp8",
    ),
}
models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)


@st.composite
def prefills(draw) -> dict[str, int]:
    """Prefill features of a step that could be."""
    requests = draw(st.integers(1, 8))
    tokens = requests * draw(st.integers(1, 2048))
    context = draw(st.integers(0, 100_000))
    pairs = tokens * context // requests + tokens * (tokens + 1) // (2 * requests)
    return {
        "prefill_tokens": tokens,
        "prefill_requests": requests,
        "prefill_context": context,
        "prefill_pairs": pairs,
    }


@st.composite
def decodes(draw) -> dict[str, int]:
    """Decode or verify features of a step that could be."""
    requests = draw(st.integers(1, 512))
    tokens = requests * draw(st.sampled_from([1, 1, 1, 5]))
    context = tokens + draw(st.integers(0, 2_000_000))
    return {
        "decode_requests": requests,
        "decode_tokens": tokens,
        "decode_context": context,
        "decode_max_context": context,
    }


@st.composite
def decode_steps(draw) -> StepShape:
    """Pure decode steps, eager or padded."""
    features = draw(decodes())
    tokens = features["decode_tokens"]
    graph = draw(st.sampled_from([0, 0, tokens, tokens + draw(st.integers(0, 100))]))
    active = draw(st.sampled_from([UNKNOWN, draw(st.integers(0, 6144))]))
    return StepShape(**features, sampled_tokens=tokens, graph_batch=graph, active_experts=active)


@st.composite
def mixed_steps(draw) -> StepShape:
    """Eager steps that prefill, some of which decode as well."""
    features = draw(prefills()) | draw(st.sampled_from([{}, draw(decodes())]))
    sampled = draw(st.integers(0, 8)) + features.get("decode_tokens", 0)
    active = draw(st.sampled_from([UNKNOWN, draw(st.integers(0, 6144))]))
    return StepShape(**features, sampled_tokens=sampled, active_experts=active)


steps = st.one_of(decode_steps(), mixed_steps())


def columns(*shapes: StepShape) -> StepFeatures:
    """Shapes as feature columns."""
    return StepFeatures.from_shapes(shapes)


def gpu_ns(model: CostModel, shape: StepShape) -> int:
    """GPU time of one step."""
    return model.step_cost(shape)[0]


@settings(max_examples=300)
@given(models, st.lists(steps, min_size=1, max_size=8))
def test_one_step_costs_what_its_row_costs(model, shapes):
    """step_cost equals the row of step_costs bit for bit."""
    costs = model.step_costs(columns(*shapes))
    rows = zip(costs.gpu_ns, costs.host_ns, costs.extrapolated, strict=True)
    assert [model.step_cost(shape) for shape in shapes] == list(rows)


@settings(max_examples=300)
@given(models, decode_steps(), st.integers(0, 60))
def test_a_decode_run_costs_what_its_steps_cost(model, shape, num_steps):
    """decode_run equals step_costs of the steps written out, bit for bit."""
    check_decode_run(model, shape, num_steps)


@given(models, st.lists(steps, min_size=1, max_size=8))
def test_terms_are_parts_of_the_whole(model, shapes):
    """No term is negative, they sum to gpu_ns exactly, and gpu_ns and host_ns are positive."""
    costs = model.step_costs(columns(*shapes))
    assert all((ns >= 0).all() for ns in costs.terms.values())
    assert np.array_equal(sum(costs.terms.values()), costs.gpu_ns)
    assert (costs.gpu_ns > 0).all()
    assert (costs.host_ns > 0).all()
    assert tuple(costs.terms) == roofline.TERMS
    assert {ns.dtype for ns in (costs.gpu_ns, costs.host_ns, *costs.terms.values())} == {
        np.dtype(np.int64)
    }


GROWING = (
    "prefill_tokens",
    "prefill_requests",
    "prefill_context",
    "prefill_pairs",
    "decode_tokens",
    "decode_context",
    "decode_max_context",
    "sampled_tokens",
)


@settings(max_examples=300)
@given(models, steps, st.sampled_from(GROWING), st.integers(1, 5000))
def test_more_of_anything_never_costs_less(model, shape, feature, more):
    """Both costs are monotone in every feature."""
    if feature == "prefill_context" and not shape.prefill_tokens:
        return
    check_growing(model, shape, feature, more)


@settings(max_examples=200)
@given(models, decode_steps(), st.integers(1, 64), st.integers(1, 4096))
def test_more_requests_never_cost_less(model, shape, more, context):
    """Further decoding requests, each with tokens like the others and a context, add cost."""
    each = shape.decode_tokens // shape.decode_requests
    larger = shape._replace(
        decode_requests=shape.decode_requests + more,
        decode_tokens=shape.decode_tokens + more * each,
        decode_context=shape.decode_context + more * (context + each),
        sampled_tokens=shape.sampled_tokens + more * each,
    )
    assert gpu_ns(model, larger) >= gpu_ns(model, shape)
    assert model.step_cost(larger)[1] > model.step_cost(shape)[1]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_costs_do_not_depend_on_what_was_asked_before(model):
    """What is kept of one step is right for every step that finds it."""
    shape = StepShape(decode_requests=3, decode_tokens=3, decode_context=300, sampled_tokens=3)
    shapes = [shape, shape._replace(prefill_requests=4000), shape._replace(decode_context=9)]
    costs = model.step_costs(columns(*shapes))
    expected = list(zip(costs.gpu_ns, costs.host_ns, costs.extrapolated, strict=True))
    for index in (0, 1, 2, 0):
        assert model.step_cost(shapes[index]) == expected[index]


@settings(max_examples=200)
@given(models, decode_steps(), st.integers(1, 64))
def test_a_larger_graph_or_more_experts_never_cost_less(model, shape, more):
    """Cost is monotone in the padded batch, and in the experts visited where they are known."""
    padded = shape._replace(graph_batch=max(shape.graph_batch, shape.decode_tokens))
    wider = padded._replace(graph_batch=padded.graph_batch + more)
    assert gpu_ns(model, wider) >= gpu_ns(model, padded)
    known = shape._replace(active_experts=max(0, shape.active_experts))
    visited = known._replace(active_experts=known.active_experts + more)
    assert gpu_ns(model, visited) >= gpu_ns(model, known)


def test_a_padded_batch_pays_for_its_padding():
    """A decode step costs what a full graph of the same context costs, not what its rows cost."""
    model = MODELS["moe"]
    full = StepShape(
        decode_requests=256,
        decode_tokens=256,
        decode_context=9000,
        sampled_tokens=256,
        graph_batch=256,
    )
    padded = full._replace(decode_requests=130, decode_tokens=130, sampled_tokens=130)
    exact = padded._replace(graph_batch=130)
    assert gpu_ns(model, padded) == gpu_ns(model, full)
    assert gpu_ns(model, exact) < gpu_ns(model, padded)


def test_an_eager_step_waits_for_the_cpu_to_launch_it():
    """Without a graph a small step takes kernels x eager launch, with one its own work."""
    model = MODELS["pcie"]
    eager = StepShape(decode_requests=1, decode_tokens=1, decode_context=2, sampled_tokens=1)
    # 28 layers of 8 kernels and 2 for attention, embedding, last norm, lm_head, sampling
    assert gpu_ns(model, eager) == (28 * 10 + 4) * 8_400
    assert gpu_ns(model, eager._replace(graph_batch=1)) < gpu_ns(model, eager)


def test_a_large_eager_step_hides_its_launches():
    """Once the GPU is busy longer than the CPU launches, only the gaps between kernels remain."""
    shape = StepShape(prefill_tokens=8192, prefill_requests=1, prefill_pairs=8192 * 8193 // 2)
    costs = MODELS["dense"].step_costs(columns(shape))
    assert costs.terms["launch"].tolist() == [(2 + 32 * 9) * 1_190]


def test_host_time_is_affine_in_the_requests():
    """host_ns = step + request x requests, prefilling or decoding."""
    model = RooflineCostModel(load_model_spec("Qwen3-8B"), H200, host=HostCosts(1000, 10))
    shape = StepShape(prefill_tokens=5, prefill_requests=2, decode_requests=3, decode_tokens=3)
    assert model.step_cost(shape)[1] == 1050


def test_decode_attention_reads_the_cache_once():
    """A megabyte more of context costs its bytes at the copy bandwidth, halved by fp8."""
    spec = load_model_spec("Llama-3.1-8B")
    shape = StepShape(
        decode_requests=8, decode_tokens=8, decode_context=800_000, sampled_tokens=8, graph_batch=8
    )
    for dtype, per_token in (("bf16", 131_072), ("fp8", 65_536)):
        costs = RooflineCostModel(spec, H200, kv_dtype=dtype).step_costs(columns(shape))
        expected = 800_000 * per_token / 4.25e12 * 1e9
        assert costs.terms["attention_decode"][0] == pytest.approx(expected, abs=1)


def test_latent_attention_of_a_verify_step_is_bound_by_arithmetic():
    """With several queries per request the absorbed MLA kernel computes longer than it reads."""
    model = MODELS["mla"]
    one = StepShape(
        decode_requests=8, decode_tokens=8, decode_context=800_000, sampled_tokens=8, graph_batch=48
    )
    six = one._replace(decode_tokens=48, sampled_tokens=48)
    reads, computes = (
        int(model.step_costs(columns(shape)).terms["attention_decode"][0]) for shape in (one, six)
    )
    assert reads == pytest.approx(800_000 * 70_272 / 4.25e12 * 1e9, abs=1)
    flops = 2 * 61 * 16 * (576 + 512) * 800_000 * 6
    assert computes == pytest.approx(flops / 545e12 * 1e9, rel=1e-6)


def test_a_cached_latent_prefix_is_expanded_in_prefill():
    """With MLA a cached prefix costs the expansion of its latents besides its pairs."""
    model = MODELS["mla"]
    shape = StepShape(prefill_tokens=512, prefill_requests=1, prefill_pairs=512 * 30_000)
    longer = shape._replace(prefill_context=30_000)
    extra = gpu_ns(model, longer) - gpu_ns(model, shape)
    flops = 30_000 * 2 * 61 * 512 * 16 * 256
    assert extra == pytest.approx(flops / 1204e12 * 1e9, rel=1e-3)


def test_tensor_parallelism_adds_all_reduces_and_divides_the_rest():
    """On two GPUs weights and KV halve; each layer reduces twice, as does the embedding."""
    spec = load_model_spec("Llama-3.1-8B")
    shape = StepShape(
        decode_requests=64,
        decode_tokens=64,
        decode_context=70_000,
        sampled_tokens=64,
        graph_batch=64,
    )
    one = RooflineCostModel(spec, H200).step_costs(columns(shape)).terms
    two = RooflineCostModel(spec, H200, tensor_parallel_size=2).step_costs(columns(shape)).terms
    assert one["all_reduce"][0] == 0
    message = 64 * 4096 * 2
    expected = 65 * (6000 + message / 357e9 * 1e9)  # 2 (tp-1)/tp = 1
    assert two["all_reduce"][0] == pytest.approx(expected, abs=1)
    assert two["attention_decode"][0] == pytest.approx(one["attention_decode"][0] / 2, abs=1)
    assert two["linear"][0] == pytest.approx(one["linear"][0] / 2, rel=1e-3)
    with pytest.raises(TensorParallelError):
        RooflineCostModel(spec, H200, tensor_parallel_size=3)


def test_expected_experts_agree_with_drawing_them():
    """The number of distinct experts of R rows equals its mean over random choices of k of E."""
    spec = load_model_spec("Qwen3-30B-A3B")
    visited = expected_experts(spec)
    random = np.random.default_rng(0)
    for rows in (1, 8, 64):
        chosen = random.random((400, rows, 128)).argpartition(8, axis=2)[:, :, :8]
        distinct = [len(np.unique(step)) for step in chosen]
        assert visited[rows] == pytest.approx(48 * np.mean(distinct), rel=0.01)
    assert visited[-1] == 48 * 128
    assert visited[-2] < 48 * 128


def test_known_experts_replace_the_expectation():
    """As many experts as expected cost the same; a step that visits fewer reads less."""
    model = MODELS["moe"]
    step = StepShape(
        decode_requests=1, decode_tokens=1, decode_context=10, sampled_tokens=1, graph_batch=1
    )
    assert gpu_ns(model, step._replace(active_experts=8 * 48)) == gpu_ns(model, step)
    assert gpu_ns(model, step._replace(active_experts=7 * 48)) < gpu_ns(model, step)


def test_quantized_weights_are_read_faster_and_computed_faster():
    """fp8 weights shorten both a memory-bound and a compute-bound linear term."""
    spec = load_model_spec("Llama-3.1-8B")
    small = StepShape(prefill_tokens=1, prefill_requests=1, prefill_pairs=1)
    shapes = columns(small, small._replace(prefill_tokens=8192))
    plain = RooflineCostModel(spec, H200).step_costs(shapes).terms["linear"]
    fp8 = RooflineCostModel(spec, H200, weight_dtype="fp8").step_costs(shapes).terms["linear"]
    assert fp8[0] / plain[0] == pytest.approx(0.5, abs=0.01)
    assert fp8[1] / plain[1] == pytest.approx(700 / 1204, abs=0.01)
    with pytest.raises(UnsupportedGpuDtypeError):
        RooflineCostModel(spec, load_hardware_spec("a100"), weight_dtype="fp8")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_empty_step_is_an_error(model):
    """No method invents the cost of a step without tokens, or of a run that does not decode."""
    check_empty_steps(model)


def test_no_steps_cost_nothing():
    """Empty columns give empty costs."""
    costs = MODELS["dense"].step_costs(columns())
    assert len(costs.gpu_ns) == len(costs.host_ns) == len(costs.extrapolated) == 0


def test_every_result_names_its_model():
    """The analytic model says that it is analytic and uncalibrated, and never extrapolates."""
    assert {model.name for model in MODELS.values()} == {"analytic, uncalibrated"}


def test_the_caches_stay_bounded_and_change_nothing(monkeypatch):
    """Costs are the same whether remembered or computed again after the cache started over."""
    monkeypatch.setattr(roofline, "_REMEMBERED", 4)
    model = RooflineCostModel(load_model_spec("Qwen3-30B-A3B"), H200)
    shapes = [
        StepShape(prefill_tokens=n, prefill_requests=1, prefill_pairs=n, sampled_tokens=n)
        for n in range(1, 20)
    ]
    first = [model.step_cost(shape) for shape in shapes]
    assert [model.step_cost(shape) for shape in shapes] == first
    assert len(model._rows_cache) <= 4
    assert len(model._logits_cache) <= 4


def test_two_models_share_nothing():
    """A model's cache is its own: another GPU's model gives other costs for the same step."""
    spec = load_model_spec("Llama-3.1-8B")
    slow = replace(H200, bandwidth=H200.bandwidth / 2)
    shape = StepShape(prefill_tokens=1, prefill_requests=1, prefill_pairs=1)
    fast_ns, slow_ns = (gpu_ns(RooflineCostModel(spec, gpu), shape) for gpu in (H200, slow))
    assert slow_ns > fast_ns
