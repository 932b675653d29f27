"""The roofline counts what the analytic cost model counts, and places and words follow from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_roofline import decodes, prefills

from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from simulator.cost_model import StepFeatures, StepShape
from simulator.roofline import RooflineCostModel
from workbench.profile.ceilings import Ceilings, assumed_ceilings, reached
from workbench.profile.counted_work import ELEMENTWISE, Work, counted_work
from workbench.profile.ncu_report import NcuKernel
from workbench.profile.predicted import StepPredictor, predicted_times
from workbench.profile.roofline import COUNTERS, Roofline, merged, place, with_counters
from workbench.profile.roofline_text import roofline_text
from workbench.profile.step_text import StepTextError, parse_step, shape_of
from workbench.profile.traced_model import shortened

H200 = load_hardware_spec("h200")
# (model, GPUs, dtype of weights, dtype of KV)
DEPLOYMENTS = [
    ("Llama-3.1-8B", 1, None, None),
    ("Qwen3-0.6B", 2, "fp8", None),
    ("Qwen3-30B-A3B", 1, None, "int8"),
    ("DeepSeek-V3", 8, None, None),
    ("Mixtral-8x7B", 2, None, None),
]
steps = st.one_of(
    prefills(), decodes(), st.tuples(prefills(), decodes()).map(lambda p: p[0] | p[1])
)


def ns(num_bytes: float, bandwidth: float, flops: float, rate: float) -> float:
    """The longer of two times."""
    return 1e9 * max(num_bytes / bandwidth, flops / rate)


@settings(deadline=None)
@given(st.sampled_from(DEPLOYMENTS), steps, st.integers(0, 700), st.integers(0, 512))
def test_counts_are_those_of_the_cost_model(
    deployment: tuple, features: dict, sampled: int, graph_batch: int
) -> None:
    """Bytes over its bandwidths and FLOPs over its rates give its terms again, to the ns."""
    name, tp, weights, kv = deployment
    model = load_model_spec(name)
    costs = RooflineCostModel(
        model, H200, tensor_parallel_size=tp, weight_dtype=weights, kv_dtype=kv
    )
    shape = StepShape(**{"sampled_tokens": sampled, "graph_batch": graph_batch, **features})
    work = counted_work(
        model, shape, tensor_parallel_size=tp, weight_dtype=weights, kv_dtype=kv,
        whole_last_layer=True,
    )  # fmt: skip
    terms = costs.step_costs(StepFeatures.from_shapes([shape])).terms
    none, dtype = Work(0, 0), weights or model.weight_dtype
    plain = model.dtype if dtype in ("fp8", "int8") else dtype

    def total(*kinds: str) -> tuple[float, float]:
        found = [work.get(kind, none) for kind in kinds]
        return sum(one.num_bytes for one in found), sum(one.flops for one in found)

    moved, flops = total("qkv", "output", "gate_up", "down")
    rows = max(shape.prefill_tokens + shape.decode_tokens, shape.graph_batch)
    weights_of = model.weight_bytes_by_group(weights, tp)
    norms = weights_of.get("norm", 0)
    router_bytes, router_flops = total("router")
    linear = ns(moved, H200.weight_bandwidth, flops, H200.gemm_flops(dtype))
    linear += ns(norms + router_bytes, H200.weight_bandwidth, router_flops, H200.gemm_flops(plain))
    assert terms["linear"][0] == pytest.approx(linear, abs=1)
    moved, flops = total("experts")
    experts = ns(moved, H200.weight_bandwidth, flops, H200.gemm_flops(dtype))
    assert terms["experts"][0] == pytest.approx(experts, abs=1)
    moved, flops = total("attention_decode")
    decode = ns(moved, H200.copy_bandwidth, flops, H200.attention_flops)
    assert terms["attention_decode"][0] == pytest.approx(decode, abs=1)
    if model.mla is None:  # latents are expanded at another rate
        moved, flops = total("attention_prefill")
        prefill = ns(moved, H200.copy_bandwidth, flops, H200.attention_flops)
        assert terms["attention_prefill"][0] == pytest.approx(prefill, abs=1)
    if tp == 1:
        moved, flops = total("lm_head")
        head = ns(moved, H200.weight_bandwidth, flops, H200.gemm_flops(plain))
        head += ns(total("sampling")[0], H200.copy_bandwidth, 0, 1)
        assert terms["lm_head"][0] == pytest.approx(head, abs=1)
    elementwise = ns(total(ELEMENTWISE)[0] - norms, H200.copy_bandwidth, 0, 1)
    assert terms["elementwise"][0] == pytest.approx(elementwise, abs=1)
    assert rows > 0


@settings(deadline=None)
@given(st.sampled_from(DEPLOYMENTS), steps, st.integers(0, 700), st.integers(0, 512))
def test_a_predicted_step_is_the_cost_models(
    deployment: tuple, features: dict, sampled: int, graph_batch: int
) -> None:
    """The whole is its gpu_ns, and what the classes leave of it is its launches."""
    name, tp, weights, kv = deployment
    kinds = {"tensor_parallel_size": tp, "weight_dtype": weights, "kv_dtype": kv}
    model = load_model_spec(name)
    costs = RooflineCostModel(model, H200, **kinds)
    shape = StepShape(**{"sampled_tokens": sampled, "graph_batch": graph_batch, **features})
    found = StepPredictor(model, H200, **kinds).predict(shape)
    gpu_ns, host_ns, _ = costs.step_cost(shape)
    assert (found.gpu_us, found.host_us) == (gpu_ns / 1e3, host_ns / 1e3)
    launch_ns = int(costs.step_costs(StepFeatures.from_shapes([shape])).terms["launch"][0])
    assert found.gpu_us - sum(found.times_us.values()) == pytest.approx(launch_ns / 1e3, rel=1e-6)
    assert ("communication" in found.times_us) == (tp > 1)
    assert min(found.times_us.values()) >= 0


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Llama-3.1-8B", "Qwen3-30B-A3B"])
@pytest.mark.parametrize("text", ["decode:1x1088", "prefill:1x2048", "mixed:1x512+32x1024"])
def test_classes_alone_explain_their_terms(name: str, text: str) -> None:
    """What the cost model gives a class is what it takes alone, as no sum hides a crossing."""
    model, shape = load_model_spec(name), shape_of(parse_step(text))
    found = StepPredictor(model, H200).predict(shape)
    alone = predicted_times(counted_work(model, shape, whole_last_layer=True), H200, "bf16")
    assert found.times_us.keys() == alone.keys()
    for kind, us in found.times_us.items():
        assert us == pytest.approx(alone[kind], rel=2e-2)


def test_what_gpus_exchange_has_a_row_and_no_roof() -> None:
    """Its time is its own, not that of products; no share of a ceiling is made up for it."""
    model, shape = load_model_spec("Llama-3.1-8B"), shape_of(parse_step("decode:32x1024"))
    step = StepPredictor(model, H200, tensor_parallel_size=2).predict(shape)
    ceilings = assumed_ceilings(H200, "bf16")
    found = place("a step", step.times_us, step.gpu_us, step.work, ceilings)
    point = next(point for point in found.points if point.kind == "communication")
    assert (point.bound, point.fraction, point.group) == ("link", 0.0, "communication")
    assert point.time_us > 0
    text = roofline_text(found)
    assert f"communication takes {point.time_us:,.1f} us: GPUs exchange data" in text
    parts = sum(one.time_us for one in found.points) + found.rest_us
    assert parts == pytest.approx(found.step_us)


def test_bounds_follow_from_the_ridge() -> None:
    """Left of it memory, right of it arithmetic; far below the roof neither."""
    ceilings = Ceilings(4.0, 800.0, "made up")
    assert ceilings.ridge == 200.0
    memory = reached(Work(4e9, 4e9), 1250.0, ceilings)
    assert (memory.bound, memory.fraction) == ("memory", pytest.approx(0.8))
    assert memory.tb_s == pytest.approx(3.2)
    compute = reached(Work(1e6, 8e11), 2000.0, ceilings)
    assert (compute.bound, compute.fraction) == ("compute", pytest.approx(0.5))
    assert compute.tflop_s == pytest.approx(400.0)
    assert reached(Work(1e3, 1e3), 5.0, ceilings).bound == "latency"


def roofline() -> Roofline:
    """Of a decode step, as predicted, with norms and rotary embedding apart."""
    model = load_model_spec("Llama-3.1-8B")
    work = counted_work(model, shape_of(parse_step("decode:32x1024")))
    times = predicted_times(work, H200, "bf16")
    moved = times.pop(ELEMENTWISE)
    apart = {**times, "norm": moved / 2, "rotary": moved / 4, "activation": moved / 4, "copy": 9.0}
    return place("a step", merged(apart), 6000.0, work, assumed_ceilings(H200, "bf16"))


def test_what_is_never_quantized_has_a_roof_of_its_own() -> None:
    """Attention and logits compute in bf16 beside products in fp8, and are bound by that."""
    model, shape = load_model_spec("DeepSeek-V3"), shape_of(parse_step("decode:200x2048"))
    step = StepPredictor(model, H200).predict(shape)
    ceilings = assumed_ceilings(H200, "fp8", "bf16")
    found = place("a step", step.times_us, step.gpu_us, step.work, ceilings)
    point = {point.kind: point for point in found.points}
    plain, quantized = H200.gemm_flops("bf16") / 1e12, H200.gemm_flops("fp8") / 1e12
    ridge = plain / ceilings.tb_s
    assert ridge < point["attention_decode"].intensity < quantized / ceilings.tb_s
    assert point["attention_decode"].bound == "compute"
    of_its_roof = point["attention_decode"].tflop_s / plain
    assert point["attention_decode"].fraction == pytest.approx(of_its_roof)
    assert point["lm_head"].fraction == pytest.approx(1.0, rel=0.15)
    assert f"{plain:,.0f} TFLOP/s; ridge at {ridge:,.0f}" in roofline_text(found)
    assert Roofline.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_columns_of_large_steps_stay_apart() -> None:
    """Of 32,768 tokens of a prompt, too."""
    model, shape = load_model_spec("Qwen3-30B-A3B"), shape_of(parse_step("prefill:16x2048"))
    step = StepPredictor(model, H200).predict(shape)
    found = place("a step", step.times_us, step.gpu_us, step.work, assumed_ceilings(H200, "bf16"))
    text = roofline_text(found)
    for point in found.points:
        (row,) = [line for line in text.splitlines() if f" {point.kind} " in line[:24]]
        read = [float(cell.replace(",", "")) for cell in row.split()[4:6]]
        assert read == pytest.approx([point.num_bytes / 1e6, point.flops / 1e9], abs=0.06)


def test_kernels_that_only_move_are_one_point() -> None:
    """Their bytes are counted as one; what nothing is counted for is the rest."""
    found = roofline()
    kinds = [point.kind for point in found.points]
    assert ELEMENTWISE in kinds
    assert not {"norm", "rotary", "copy"} & set(kinds)
    assert sum(point.time_us for point in found.points) + found.rest_us == pytest.approx(6000.0)
    assert kinds[0] == "gate_up"


def test_a_roofline_survives_json() -> None:
    """What was written is what is read."""
    found = roofline()
    assert Roofline.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_counters_replace_counts() -> None:
    """Bytes and times of the kernels of a class; classes without any stay counted."""
    found = roofline()
    kernel = NcuKernel("a", None, 500.0, 2e9, 40.0, 10.0, 90.0)
    busier = replace(kernel, time_us=1500.0, warps_active=80.0)
    read = with_counters(found, [("gate_up", kernel), ("gate_up", busier)])
    by_kind = {point.kind: point for point in read.points}
    gate_up, before = by_kind["gate_up"], found.points[0]
    assert (gate_up.source, gate_up.num_bytes, gate_up.time_us) == (COUNTERS, 4e9, 2000.0)
    assert (gate_up.flops, gate_up.counted_bytes) == (before.flops, before.num_bytes)
    assert gate_up.warps_active == pytest.approx(70.0)
    assert by_kind["down"] == {point.kind: point for point in found.points}["down"]
    assert "DRAM/counted" in roofline_text(read)
    no_time = replace(kernel, time_us=0.0)
    assert with_counters(found, [("gate_up", no_time)]) == found


def test_the_text_says_what_bounds_each_class() -> None:
    """In words, and as a picture with a letter for each class that computes."""
    text = roofline_text(roofline())
    assert "gate_up is memory-bound: it moves 7.5 GB at 3.80 TB/s" in text
    assert "ridge at 165 FLOP/byte" in text
    assert "FLOP/byte" in text.splitlines()[-1]
    picture = "".join(line[9:] for line in text.splitlines()[-19:-1])
    computing = [i for i, point in enumerate(roofline().points) if point.flops]
    assert sorted(re.findall("[a-z]", picture)) == ["abcdefghij"[i] for i in computing]


@pytest.mark.parametrize(
    "text",
    ["", "decode", "decode:", "decode:0x5", "decode:5", "decode:3x4+5x6", "mixed:3x4",
     "prefill:axb", "train:1x1", "decode:1x1x1", "decode: 1x1", "decode:99999999x1"],
)  # fmt: skip
def test_what_is_no_step_is_refused(text: str) -> None:
    """With examples of steps."""
    with pytest.raises(StepTextError, match="decode:32x1024 decodes 32 requests"):
        parse_step(text)


def test_steps_are_what_their_text_says() -> None:
    """Requests, tokens, pairs and the graph that replays them."""
    assert shape_of(parse_step("decode:20x100")) == StepShape(
        decode_requests=20, decode_tokens=20, decode_context=2000, decode_max_context=100,
        sampled_tokens=20, graph_batch=24,
    )  # fmt: skip
    assert shape_of(parse_step("decode:300x1")).graph_batch == 300
    assert shape_of(parse_step("decode:20x100"), ()).graph_batch == 0
    assert shape_of(parse_step("mixed:2x3+4x5"), (8,)) == StepShape(
        prefill_tokens=6, prefill_requests=2, prefill_pairs=12, prefill_max_context=3,
        decode_requests=4, decode_tokens=4, decode_context=20, decode_max_context=5,
        sampled_tokens=6,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-30B-A3B", "DeepSeek-V3"])
def test_the_last_layer_computes_only_tokens_whose_logits_are_wanted(name: str) -> None:
    """Of two layers it is half of what comes after attention; of decoding requests it is all."""
    model = shortened(load_model_spec(name), 4 if name == "DeepSeek-V3" else 2)
    layers = model.num_layers
    prompt = shape_of(parse_step("prefill:1x2048"))
    pruned, whole = (counted_work(model, prompt, whole_last_layer=each) for each in (False, True))
    for kind, share in (
        ("output", 1 / layers),
        ("qkv", 0),
        ("attention_prefill", 0),
        ("lm_head", 0),
    ):
        left = 2048 - share * 2047
        assert pruned[kind].flops == pytest.approx(whole[kind].flops * left / 2048)
        assert pruned[kind].num_bytes == whole[kind].num_bytes
    mixtures = len(model.moe.layers) if model.moe else 0
    if mixtures:
        done = pruned["experts"].flops / whole["experts"].flops
        assert done == pytest.approx(1 - 2047 / 2048 / mixtures)
        assert pruned["experts"].num_bytes < whole["experts"].num_bytes
    else:
        assert pruned["down"].flops == pytest.approx(whole["down"].flops * 2049 / 4096)
    assert pruned[ELEMENTWISE].num_bytes < 0.9 * whole[ELEMENTWISE].num_bytes
    nobody_looks = prompt._replace(sampled_tokens=0)
    assert counted_work(model, nobody_looks)["output"].num_bytes == pytest.approx(
        whole["output"].num_bytes * (1 - 1 / layers)
    )
    attended = counted_work(model, nobody_looks)["attention_prefill"]
    assert attended.flops == pytest.approx(whole["attention_prefill"].flops * (1 - 1 / layers))
    decode = shape_of(parse_step("decode:32x1024"))
    assert counted_work(model, decode) == counted_work(model, decode, whole_last_layer=True)
