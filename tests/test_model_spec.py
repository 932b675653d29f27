"""Shapes, parameters, bytes and FLOPs of models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.model_spec import (
    ModelSpec,
    TensorParallelError,
    load_model_spec,
    model_card_names,
)

CARDS = {name: load_model_spec(name) for name in model_card_names()}

# Totals of the safetensors headers as published; DeepSeek-V3 without its prediction layer (MTP).
PUBLISHED = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen3-0.6B": 596_049_920,
    "demo-dense": 7_869_696,
    "demo-draft": 951_168,
    "demo-moe": 14_699_264,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Mixtral-8x7B": 46_702_792_704,
    "DeepSeek-V3": 671_026_419_200,
}
KV_BYTES = {
    "Llama-3.1-8B": 131_072,
    "Llama-3.1-70B": 327_680,
    "Qwen3-0.6B": 114_688,
    "demo-dense": 8 * 2 * 4 * 64 * 2,
    "demo-draft": 2 * 2 * 2 * 64 * 2,
    "demo-moe": 4 * 2 * 4 * 64 * 2,
    "Qwen3-8B": 147_456,
    "Qwen3-30B-A3B": 98_304,
    "Mixtral-8x7B": 131_072,
    "DeepSeek-V3": 61 * (512 + 64) * 2,
}

# Models with too few heads for 8 GPUs are left out.
cards = st.sampled_from([spec for _, spec in sorted(CARDS.items()) if spec.num_heads >= 8])
parallel_sizes = st.sampled_from([1, 2, 4, 8])


def config(**changes: object) -> dict[str, object]:
    """A small Qwen2 config with changed keys."""
    base: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
    }
    return {**base, **changes}


def test_every_card_is_checked():
    """Each shipped card has a published total below."""
    assert set(CARDS) == set(PUBLISHED) == set(KV_BYTES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_the_published_totals(name):
    """The weight table counts every parameter of the checkpoint once."""
    spec = CARDS[name]
    assert spec.num_parameters == PUBLISHED[name]
    assert sum(spec.parameter_counts().values()) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("changes", "published"),
    [
        ({}, 7_615_616_512),  # Qwen2.5-7B: biases of queries, keys and values
        (
            {  # Mistral-7B-v0.3
                "architectures": ["MistralForCausalLM"],
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "num_key_value_heads": 8,
                "vocab_size": 32768,
            },
            7_248_023_552,
        ),
        (
            {  # Llama-2-7B: as many KV heads as heads, and the key left out
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "num_key_value_heads": None,
                "vocab_size": 32000,
            },
            6_738_415_616,
        ),
    ],
)
def test_models_without_a_card_count_as_published(changes, published):
    """Any supported config.json counts exactly, not only the shipped cards."""
    assert ModelSpec.from_hf_config(config(**changes)).num_parameters == published


def test_a_tied_embedding_is_one_matrix():
    """Tying removes exactly one vocabulary matrix from parameters and bytes."""
    tied = CARDS["Qwen3-0.6B"]
    matrix = tied.vocab_size * tied.hidden_size
    assert tied.tied
    assert "embedding" not in tied.parameter_counts()
    assert tied.num_parameters + matrix == 751_632_384


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_bytes_per_token(name):
    """Two vectors per KV head and layer, or one latent per layer."""
    assert CARDS[name].kv_bytes_per_token("bf16") == KV_BYTES[name]


def test_kv_dtypes_and_their_scales():
    """int8 adds an fp32 scale per token and head for keys and values; fp8 scales are static."""
    spec = CARDS["Llama-3.1-8B"]
    vectors = 2 * 32 * 8
    assert spec.kv_bytes_per_token("fp32") == 2 * spec.kv_bytes_per_token("fp16")
    assert spec.kv_bytes_per_token("fp8") == vectors * 128
    assert spec.kv_bytes_per_token("int8") == vectors * (128 + 4)
    assert CARDS["DeepSeek-V3"].kv_bytes_per_token("int8") == 61 * (576 + 4)


def test_kv_heads_are_split_then_replicated():
    """KV bytes fall with tensor parallelism until each GPU has one head; a latent never splits."""
    llama, qwen, deepseek = CARDS["Llama-3.1-8B"], CARDS["Qwen3-30B-A3B"], CARDS["DeepSeek-V3"]
    assert [llama.kv_bytes_per_token(None, tp) for tp in (1, 2, 8)] == [131072, 65536, 16384]
    assert [qwen.kv_bytes_per_token(None, tp) for tp in (4, 8, 16)] == [24576] * 3
    assert {deepseek.kv_bytes_per_token(None, tp) for tp in (1, 8, 16)} == {70272}


@given(cards, parallel_sizes)
def test_parts_of_all_gpus_add_up(spec, tp):
    """Over tp GPUs, split weights are stored once, replicated ones tp times, and no FLOP twice."""
    total = sum(m.parameters for m in spec.weights if m.split != "none")
    total += sum(
        m.parameters * (max(tp // min(tp, m.max_ways), 1) - 1)
        for m in spec.weights
        if m.split != "none"
    )
    everywhere = sum(m.parameters for m in spec.weights if m.split == "none")
    assert tp * spec.weight_bytes("bf16", tp) == 2 * (total + tp * everywhere)
    for group in ("mlp", "experts", "shared_experts", "lm_head"):
        whole = spec.flops_per_token_by_group(1).get(group)
        part = spec.flops_per_token_by_group(tp).get(group)
        assert whole is None or part * tp == whole


@given(cards, parallel_sizes)
def test_quantized_weights_are_half_plus_scales(spec, tp):
    """fp8 halves the projections, adds 4 bytes per row and leaves vocabulary and norms alone."""
    plain = spec.weight_bytes_by_group("bf16", tp)
    quantized = spec.weight_bytes_by_group("fp8", tp)
    for group in plain:
        scales = 4 * sum(
            m.copies * m.local_shape(tp)[0]
            for m in spec.weights
            if m.group == group and m.quantizable
        )
        vectors = 2 * sum(
            m.copies * m.local_shape(tp)[0] * m.local_shape(tp)[1]
            for m in spec.weights
            if m.group == group and not m.quantizable
        )
        assert quantized[group] == (plain[group] - vectors) // 2 + vectors + scales
    assert quantized["lm_head"] == plain["lm_head"]


def test_flops_are_twice_the_parameters_that_a_token_meets():
    """A dense model multiplies a token with every matrix, an MoE model with some experts."""
    llama, qwen = CARDS["Llama-3.1-8B"], CARDS["Qwen3-30B-A3B"]
    counts = llama.parameter_counts()
    projections = counts["attention"] + counts["mlp"] + counts["lm_head"]
    assert sum(llama.flops_per_token_by_group().values()) == 2 * projections
    counts = qwen.parameter_counts()
    assert qwen.flops_per_token_by_group()["experts"] == 2 * counts["experts"] * 8 // 128


def test_deepseek_activates_37_billion_parameters():
    """Matrix FLOPs of a token agree with the 37 B active parameters of the technical report."""
    spec = CARDS["DeepSeek-V3"]
    active = sum(spec.flops_per_token_by_group().values()) / 2
    assert active + spec.vocab_size * spec.hidden_size == pytest.approx(37.55e9, rel=1e-3)
    assert spec.moe.layers == tuple(range(3, 61))


def test_attention_flops_per_pair():
    """A pair costs 2 d for its score and 2 d for its value per head and layer; MLA as absorbed."""
    llama, deepseek = CARDS["Llama-3.1-8B"], CARDS["DeepSeek-V3"]
    assert llama.prefill_attention_flops_per_pair() == 4 * 32 * 32 * 128
    assert llama.decode_attention_flops_per_pair(2) == 4 * 32 * 16 * 128
    assert deepseek.prefill_attention_flops_per_pair(8) == 2 * 61 * 16 * (192 + 128)
    assert deepseek.decode_attention_flops_per_pair(8) == 2 * 61 * 16 * (576 + 512)
    assert deepseek.context_expansion_flops_per_token() == 2 * 61 * 512 * 128 * (128 + 128)
    assert llama.context_expansion_flops_per_token() == 0


@pytest.mark.parametrize(
    ("name", "tp", "part"),
    [
        ("Llama-3.1-8B", 3, "num_attention_heads = 32 does not divide"),
        ("Llama-3.1-8B", 64, "num_attention_heads = 32 does not divide"),
        ("Llama-3.1-8B", 0, "must be at least 1"),
    ],
)
def test_a_size_that_does_not_divide_is_an_error(name, tp, part):
    """Tensor parallelism that cuts a head in two names the key and both numbers."""
    with pytest.raises(TensorParallelError, match=part):
        CARDS[name].weight_bytes(None, tp)
    with pytest.raises(TensorParallelError, match=part):
        CARDS[name].kv_bytes_per_token(None, tp)


def test_kv_heads_that_neither_divide_nor_are_divided_are_an_error():
    """28 heads over 7 GPUs would work, but 4 KV heads over 7 do not."""
    spec = ModelSpec.from_hf_config(config(intermediate_size=18942))
    with pytest.raises(TensorParallelError, match="num_key_value_heads = 4 neither divides"):
        spec.check_tensor_parallel(7)


def test_an_uneven_vocabulary_is_padded():
    """A vocabulary that does not divide costs each GPU its rounded-up share."""
    spec = ModelSpec.from_hf_config(config(vocab_size=152_065))
    rows = [m.local_shape(4)[0] for m in spec.weights if m.name == "lm_head"]
    assert rows == [38_017]
