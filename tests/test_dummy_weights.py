"""Random weights: deterministic, of the right bytes, and such that activations stay finite."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import reference_model as reference
import torch
from kernel_device import DEVICE

from engine.core.model_spec import ModelSpec, load_model_spec, model_card_names
from engine.models.dummy_weights import dummy_weights
from engine.models.weights import (
    DenseMlp,
    LayerWeights,
    MoeMlp,
    Weights,
    empty_weights,
    named_tensors,
    weight_bytes,
)

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("name", [name for name in model_card_names() if name != "DeepSeek-V3"])
def test_bytes_equal_the_spec(name: str) -> None:
    """The engine holds exactly the bytes that the scheduler and the simulator reckon with."""
    spec = load_model_spec(name)
    for dtype, short in SHORT.items():
        assert weight_bytes(empty_weights(spec, "meta", dtype)) == spec.weight_bytes(short)


def small_spec(num_layers: int = 4, **changes: object) -> ModelSpec:
    values = {**CONFIG, "num_hidden_layers": num_layers}
    return ModelSpec.from_hf_config({**values, **changes})


def test_dummy_weights_depend_on_the_seed_alone() -> None:
    """Equal seeds give equal weights, different seeds different ones."""
    spec = small_spec(attention_bias=True)
    first, second, other = (
        dict(named_tensors(dummy_weights(spec, DEVICE, torch.bfloat16, seed))) for seed in (3, 3, 4)
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert not torch.equal(tensor, other[name]), name


def test_dummy_weights_have_the_right_size() -> None:
    """Norms lie about one, and a matrix keeps the size of what it multiplies."""
    spec = small_spec(hidden_size=512, intermediate_size=1024, num_attention_heads=8)
    layer = dummy_weights(spec, DEVICE, torch.float32).layers[0]
    assert layer.input_norm.mean().item() == pytest.approx(1, abs=0.05)
    assert isinstance(layer.mlp, DenseMlp)
    for matrix in (layer.qkv, layer.mlp.gate_up):
        assert matrix.std().item() * 512**0.5 == pytest.approx(1, rel=0.02)
        assert matrix.mean().item() == pytest.approx(0, abs=1e-3)
    assert layer.mlp.down.std().item() * (1024 * 2 * 4) ** 0.5 == pytest.approx(1, rel=0.02)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * x.square().mean().add(1e-6).rsqrt() * weight


def run_layer(x: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
    """One layer for a text of one token, which attends to itself alone."""
    value = (layer.qkv @ normed(x, layer.input_norm)).chunk(3)[2]
    x = x + layer.o @ value
    assert not isinstance(layer.mlp, MoeMlp)
    gate, up = (layer.mlp.gate_up @ normed(x, layer.post_norm)).chunk(2)
    return x + layer.mlp.down @ (torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("num_layers", [2, 100])
def test_dummy_weights_keep_activations_finite(num_layers: int) -> None:
    """The residual stream neither vanishes nor grows with the depth, so fp16 holds it."""
    weights = dummy_weights(small_spec(num_layers), DEVICE, torch.float32)
    x = weights.embed[5]
    for layer in weights.layers:
        x = run_layer(x, layer)
    assert 0.05 < x.square().mean().sqrt().item() < 5
    logits = weights.lm_head @ normed(x, weights.final_norm)
    assert 0.2 < logits.std().item() < 5


def chosen(weights: Weights, spec: ModelSpec, token_ids: list[int]) -> list[torch.Tensor]:
    """int64[T, k] for each layer: which experts the tokens of a text go to."""
    assert spec.moe is not None
    x, found = weights.embed[token_ids].double(), []
    for layer in weights.layers:
        x = x + reference._attention(spec, layer, reference._norm(x, layer.input_norm, 1e-6))
        read = reference._norm(x, layer.post_norm, 1e-6)
        assert isinstance(layer.mlp, MoeMlp)
        logits = read @ layer.mlp.router.double().T
        found.append(logits.topk(spec.moe.experts_per_token, -1).indices)
        x = x + reference._mlp(spec, layer.mlp, read)
    return found


MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 64, "num_experts_per_tok": 4,
    "moe_intermediate_size": 16, "hidden_size": 256, "head_dim": 32, "num_key_value_heads": 2,
    "vocab_size": 2000, "max_position_embeddings": 512, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def routed() -> list[torch.Tensor]:
    """What the tokens of a long text choose in each of 12 layers."""
    spec = small_spec(12, **MIXTURE)
    weights = dummy_weights(spec, "cpu", torch.float32)
    text = torch.randint(0, 2000, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    return chosen(weights, spec, text)


def test_a_prompt_visits_as_many_experts_as_chance_says(routed: list[torch.Tensor]) -> None:
    """In the last layers as in the first, and none is liked much more than others."""
    for experts in routed:
        counts = torch.bincount(experts.flatten(), minlength=64)
        assert int((counts > 0).sum()) >= 62
        assert counts.max() < 4 * counts.float().mean()
    few = [len(experts[:16].unique()) for experts in routed]  # as sixteen requests that decode
    even = 64 * (1 - (1 - 4 / 64) ** 16)
    assert sum(few) / len(few) == pytest.approx(even, rel=0.1)


def test_layers_choose_otherwise(routed: list[torch.Tensor]) -> None:
    """Tokens that share an expert in one layer do not in the next more than by chance."""
    shared = [
        len(set(one.tolist()) & set(other.tolist()))
        for first, second in pairwise(routed)
        for one, other in zip(first, second, strict=True)
    ]
    assert sum(shared) / len(shared) == pytest.approx(4 * 4 / 64, rel=0.25)


@pytest.mark.parametrize("tied", [False, True])
def test_routers_marks_are_not_in_the_output(tied: bool) -> None:
    """Else models with tied embeddings would say each token again; logits keep their size."""
    spec = small_spec(2, **MIXTURE, tie_word_embeddings=tied)
    weights = dummy_weights(spec, "cpu", torch.float32)
    unmarked = weights.lm_head.clone()
    unmarked[:, : spec.hidden_size // 8] = 0
    logits, others = (
        reference.reference_logits(spec, replace(weights, lm_head=head), list(range(100)))
        for head in (weights.lm_head, unmarked)
    )
    assert torch.equal(logits, others)
    assert 0.2 < logits.std().item() < 5
