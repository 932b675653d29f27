"""Ops of a model are named for what they compute, and compute the same; steps are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_engine import make_runner

from engine.profiling import op_ranges
from engine.profiling.made_plans import PlanMaker
from engine.profiling.op_classes import GROUP_OF, MEASURED, NAMED, RANGE, STEP, WAIT
from engine.profiling.op_ranges import named_ops
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign
from engine.profiling.traced_steps import StepsOfARun, trace_step
from engine.runtime.model_runner import ModelRunner
from workbench.profile.trace import parse_events, read_trace

SHAPE = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "norm_topk_prob": True}  # fmt: skip
DENSE_LAYER = ["qkv", "rotary", "attention", "output", "gate_up", "down"]
MOE_LAYER = ["qkv", "rotary", "attention", "output", "norm", "router", "routing", "experts"]
MODELS = {
    "LlamaForCausalLM": (SHAPE, DENSE_LAYER),
    "Qwen3MoeForCausalLM": ({**SHAPE, **EXPERTS}, MOE_LAYER),
}


@pytest.fixture(params=MODELS)
def architecture(request: pytest.FixtureRequest) -> str:
    """A model of its kind."""
    return request.param


def runner_of(architecture: str, folder: Path) -> ModelRunner:
    """A tiny one, on the CPU."""
    path = folder / "config.json"
    path.write_text(json.dumps({**MODELS[architecture][0], "architectures": [architecture]}))
    return make_runner(str(path), load_format="dummy", device="cpu", num_pages=32)


def maker_of(runner: ModelRunner) -> PlanMaker:
    """Of its plans."""
    limits = EngineLimits(
        num_pages=runner.num_pages, page_size=runner.config.page_size,
        max_model_len=runner.max_model_len, max_num_batched_tokens=64, max_running_requests=4,
    )  # fmt: skip
    return PlanMaker(limits, runner.spec.vocab_size)


def test_what_can_be_asked_for_alone_is_what_is_named() -> None:
    """Of `--only`: a class without a range of its own would match no kernel."""
    of_products = {"qkv", "output", "gate_up", "down", "router", "lm_head"}
    assert set(NAMED) == {*op_ranges._BY_NAME.values(), *of_products}
    assert tuple(name for name in GROUP_OF if name in NAMED) == NAMED


def test_ops_are_named_in_the_order_of_a_step(architecture: str, tmp_path: Path) -> None:
    """In every layer, and around them; the tokens are those of a model without names."""
    runner = runner_of(architecture, tmp_path)
    maker = maker_of(runner)
    runner.fill_cache_with_noise()
    _, plan = maker.make(StepDesign((Chunk(5),)))
    wanted = runner.launch(plan).result().token_ids.tolist()
    tracer = trace_step(runner, maker, StepDesign((Chunk(5),)), 2)
    trace = parse_events(tracer.events)
    first = trace.ranges(STEP)[0]
    names = [
        work.name.removeprefix(RANGE)
        for work in trace.host
        if work.name.removeprefix(RANGE) in GROUP_OF and first.start_us <= work.start_us
        and work.end_us <= first.end_us
    ]  # fmt: skip
    layer = [name.replace("attention", "attention_prefill") for name in MODELS[architecture][1]]
    wanted_names = ["page_table", "embedding", *layer, *layer, "lm_head", "sampling"]
    assert [name for name in names if name != "page_table"] == wanted_names[1:]
    assert names.count("page_table") == 1
    assert len(trace.ranges(STEP)) == len(trace.ranges(WAIT)) == 2
    assert len(trace.ranges(MEASURED)) == 1
    assert runner.launch(plan).result().token_ids.tolist() == wanted
    runner.close()


def test_every_class_that_is_named_has_a_range(architecture: str, tmp_path: Path) -> None:
    """No weight of a layer is unknown."""
    runner = runner_of(architecture, tmp_path)
    plain = runner.transformer.kernels
    named = named_ops(runner.transformer)
    assert named.chosen == plain.chosen
    changed = {op for op in plain.chosen if getattr(named, op) is not getattr(plain, op)}
    assert changed == set(plain.chosen)
    runner.close()


def test_some_steps_of_a_run_are_recorded(tmp_path: Path) -> None:
    """Those after the first, as many as were asked for; then the runner is as it was."""
    runner = runner_of("LlamaForCausalLM", tmp_path)
    unnamed = runner.transformer.kernels
    watched = StepsOfARun(runner, first=2, steps=3)
    _, plan = maker_of(runner).make(StepDesign((Chunk(4),)))
    for number in range(7):
        assert (watched.tracer is not None) == (number > 5)
        runner.launch(plan).result()
    assert watched.tracer is not None
    assert runner.transformer.kernels is unnamed
    path = tmp_path / "trace.json.gz"
    watched.tracer.write(path, {"a": 1})
    trace = read_trace(path)
    assert len(trace.ranges(STEP)) == 3
    assert trace.about == {"a": 1}
    watched.finish()
    runner.close()
