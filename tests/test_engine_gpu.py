"""The whole engine against a plain float64 forward pass of the same weights.

On a GPU (`WORKBENCH_TEST_DEVICE=cuda`) that is bf16, our kernels and CUDA Graphs; on a CPU the same
laws hold of the torch kernels, where there are no graphs.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, ON_GPU, relative_error
from reference_model import reference_logits
from tiny_engine import Served, TinyEngine

from engine.models.weights import MoeMlp, Weights
from engine.runtime.build import build_runner
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from engine.sampling_params import SamplingParams

VOCAB = 512
TOLERANCE = 1e-2
_COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=256, intermediate_size=384, num_hidden_layers=2,
    num_attention_heads=8, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
    rms_norm_eps=1e-5, rope_theta=10_000.0, hidden_act="silu", torch_dtype="bfloat16",
    tie_word_embeddings=False, attention_bias=False,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=128,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": dict(architectures=["LlamaForCausalLM"], rope_scaling=_LLAMA3),
    "llama_bias_tied": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=True,
        tie_word_embeddings=True, num_key_value_heads=8,
    ),
    "mistral": dict(architectures=["MistralForCausalLM"], head_dim=128, num_attention_heads=4),
    "qwen2": dict(architectures=["Qwen2ForCausalLM"], num_attention_heads=4),
    "qwen3": dict(architectures=["Qwen3ForCausalLM"], head_dim=128),
    "mixtral": dict(
        architectures=["MixtralForCausalLM"], num_local_experts=8, num_experts_per_tok=2,
    ),
    "qwen3_moe": dict(
        architectures=["Qwen3MoeForCausalLM"], head_dim=128, num_experts=16, num_experts_per_tok=4,
        moe_intermediate_size=128, norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=1,
    ),
}  # fmt: skip
_TYPES = {"llama_bias_tied": "llama"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A config without weights; returns its path."""
    name = request.param
    config = {"model_type": _TYPES.get(name, name), **_COMMON, **FAMILIES[name]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def runner_of(model: str, graphs: tuple[int, ...] = (), **settings: Any) -> ModelRunner:
    known = dict(
        load_format="dummy", device=DEVICE.type, dtype="bf16", num_pages=200, seed=3,
        max_running_requests=8, max_num_batched_tokens=64, cuda_graph_batch_sizes=graphs,
    )  # fmt: skip
    runner = build_runner(RunnerConfig(model=model, **{**known, **settings}), lambda: 0)
    # As in trained models, the residual stream is larger than what one layer adds to it. Otherwise
    # the rounding of bf16 alone comes to 1 %.
    runner.transformer.weights.embed.mul_(8)
    if runner.spec.moe is not None:
        make_routers_decisive(runner.transformer.weights, runner.spec.moe.num_experts)
    return runner


def make_routers_decisive(weights: Weights, num_experts: int) -> None:
    """Let no rounding error choose another expert: each token has experts of its own in each layer.

    The first E numbers of the residual stream hold a random order of the experts, a distinct level
    for each, to which no layer adds; the router of each layer reads them in another order. The
    router's other columns stay as they are, too small to exchange two levels.
    """
    embed, experts = weights.embed, slice(0, num_experts)
    generator = torch.Generator(device=embed.device).manual_seed(5)
    orders = torch.rand(len(embed), num_experts, generator=generator, device=embed.device)
    embed[:, experts] = (orders.argsort(-1) * (4 / num_experts)).to(embed.dtype)
    for layer in weights.layers:
        assert isinstance(layer.mlp, MoeMlp)
        layer.o[experts] = 0
        layer.mlp.down[:, experts] = 0
        layer.post_norm[experts] = 1
        read = torch.randperm(num_experts, generator=generator, device=embed.device)
        layer.mlp.router.mul_(1 / 16)
        layer.mlp.router[:, experts] = torch.eye(num_experts, device=embed.device)[read].to(
            embed.dtype
        )


def fresh_prompts(*lengths: int) -> dict[int, list[int]]:
    """Prompts that nobody has tried before."""
    rng = Random(seed := Random().getrandbits(32))
    print("seed", seed)
    return {i: [rng.randrange(VOCAB) for _ in range(n)] for i, n in enumerate(lengths)}


def check_logits(runner: ModelRunner, served: Served, prompts: dict[int, list[int]]) -> None:
    """The logits before each token are those of its text."""
    weights = runner.transformer.weights
    for request_id, prompt in prompts.items():
        text = served.text(request_id)
        expected = reference_logits(runner.spec, weights, prompt + text)[len(prompt) - 1 : -1].cpu()
        found = torch.stack([served.logits[request_id, i] for i in range(len(text))])
        assert text == found.argmax(-1).tolist()
        assert relative_error(found, expected) < TOLERANCE


def serve(
    runner: ModelRunner, prompts: dict[int, list[int]], count: int, **settings: Any
) -> Served:
    """Serve greedily, but so that every step's logits are seen, those of graphs too."""
    for request_id in prompts:
        runner.register(request_id, SamplingParams(temperature=0.0, logprobs=0))
    return TinyEngine(runner, **settings).serve(prompts, count)


@pytest.mark.parametrize("page_size", [1, 16])
def test_logits_are_those_of_a_plain_forward_pass(model: str, page_size: int) -> None:
    """Prefill in chunks, mixed steps, and decode steps in padded graphs stay within 1e-2."""
    runner = runner_of(model, (4, 8), page_size=page_size, num_pages=1000 // page_size)
    prompts = fresh_prompts(1, 100, 17, 64, 33)
    served = serve(runner, prompts, 12)
    check_logits(runner, served, prompts)
    assert served.seen["mixed"]
    assert served.seen["continued"]


def test_logits_after_a_cached_prefix(model: str) -> None:
    """A prompt whose beginning is in the cache has the logits of its whole text."""
    runner = runner_of(model, (1, 2, 4, 8))
    prompts = fresh_prompts(70, 40, 90)
    longer = {i + 10: [*prompt, 7, i, 9] for i, prompt in prompts.items()}
    engine = TinyEngine(runner)
    engine.serve(prompts, 4)
    for request_id in longer:
        runner.register(request_id, SamplingParams(temperature=0.0, logprobs=0))
    served = engine.serve(longer, 8)
    assert served.seen["hit_tokens"] >= 64 + 32 + 80
    check_logits(runner, served, longer)


def test_overlap_changes_no_token(model: str) -> None:
    """One plan in flight or three: the same steps, hence the same tokens."""
    prompts = fresh_prompts(3, 50, 20, 70)
    texts = []
    for plans in (1, 3):
        engine = TinyEngine(runner_of(model, (1, 2, 4)), late=True, max_plans_in_flight=plans)
        served = engine.serve(prompts, 24)
        texts.append([served.text(i) for i in prompts])
    assert texts[0] == texts[1]


@pytest.mark.skipif(not ON_GPU, reason="CUDA Graphs need a GPU")
def test_graphs_change_no_token(model: str) -> None:
    """A captured step, chosen token included, brings what the same step brings kernel by kernel."""
    prompts = fresh_prompts(3, 50, 20, 70)
    texts = []
    for graphs in ((), (1, 2, 3, 4)):
        # Steps with prefill stay as they are: padded ones may be cut up otherwise.
        engine = TinyEngine(runner_of(model, graphs, cuda_graph_tokens=()))
        served = engine.serve(prompts, 24)
        texts.append([served.text(i) for i in prompts])
    assert texts[0] == texts[1]


@pytest.mark.skipif(not ON_GPU, reason="CUDA Graphs need a GPU")
def test_graphs_that_leave_logits_leave_them_in_one_place(model: str) -> None:
    """They come one by one while requests are served, when no memory is left for more."""
    runner = runner_of(model, (1, 2, 4))
    serve(runner, fresh_prompts(3, 50, 20, 70), 4)
    graphs = runner.steps._decode_graphs
    with torch.inference_mode():
        logits = [graphs.get(size, chooses=False).outputs.logits for size in (1, 2, 4)]
    assert [tuple(each.shape) for each in logits] == [(1, VOCAB), (2, VOCAB), (4, VOCAB)]
    assert len({each.data_ptr() for each in logits}) == 1


@pytest.mark.skipif(not ON_GPU, reason="memory is measured on a GPU only")
def test_pages_are_sized_by_measured_memory(model: str) -> None:
    """The pool takes what the device has left of the share that it may use, and not more."""
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(DEVICE)
    fraction = 1 - (free - (2 << 30)) / total
    runner = runner_of(model, (1, 2, 4), num_pages=None, memory_fraction=fraction)
    left = torch.cuda.mem_get_info(DEVICE)[0]
    kept = int(total * (1 - fraction))
    assert kept <= left <= kept + (1 << 29)
    assert runner.num_pages == runner._cache.num_pages > 1000
    runner.close()
