"""Reading config.json files of every style, and saying what is wrong with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.hf_config import ModelConfigError, RopeSpec
from engine.core.model_spec import ModelSpec, load_model_spec, model_card_names

CARD_FOLDER = Path(__file__).parents[1] / "engine" / "core" / "model_cards"


def card(name: str, **changes: object) -> dict[str, object]:
    """The values of a shipped card with keys changed, or left out where the change is `...`."""
    values = json.loads((CARD_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return {k: v for k, v in {**values, **changes}.items() if v is not ...}


def in_transformers_5_style(values: dict[str, object]) -> dict[str, object]:
    """The same config as transformers 5 saves it."""
    rope = {"rope_theta": values.pop("rope_theta")}
    scaling = values.pop("rope_scaling", None) or {"rope_type": "default"}
    rope |= {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    values["rope_parameters"] = rope
    values["dtype"] = values.pop("torch_dtype")
    if "num_experts" in values:
        values["num_local_experts"] = values.pop("num_experts")
    return values


@pytest.mark.parametrize("name", model_card_names())
def test_both_transformers_styles_give_one_spec(name):
    """A config means the same whether transformers 4 or 5 wrote it."""
    old = ModelSpec.from_hf_config(card(name), name)
    assert ModelSpec.from_hf_config(in_transformers_5_style(card(name)), name) == old
    assert old == load_model_spec(name)


def test_a_nested_text_model_is_read_and_the_tower_noted():
    """A multimodal config yields its language model, and says that the vision tower is left out."""
    text = card("Qwen3-8B", architectures=..., torch_dtype=...)
    spec = ModelSpec.from_hf_config(
        {
            "architectures": ["SomeForConditionalGeneration"],
            "dtype": "bfloat16",
            "text_config": text,
            "vision_config": {"depth": 24},
        },
        "Qwen3-8B",
    )
    assert spec.notes == ("weights under `vision_config` are not counted",)
    assert replace(spec, notes=()) == load_model_spec("Qwen3-8B")


def test_names_are_case_insensitive_and_paths_work(tmp_path):
    """A card name in any case, a folder and a file all load."""
    (tmp_path / "config.json").write_text(json.dumps(card("Qwen3-8B")), encoding="utf-8")
    by_name = load_model_spec("qWEN3-8b")
    by_folder = load_model_spec(str(tmp_path))
    by_file = load_model_spec(str(tmp_path / "config.json"))
    assert by_name.name == "Qwen3-8B"
    assert by_folder == by_file == replace(by_name, name=str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("llama-3-8b", ["'llama-3-8b'", "did you mean 'Llama-3.1-8B'?", "Mixtral-8x7B"]),
        ("/no/such/folder", ["no model card and no file named '/no/such/folder'", "cards: "]),
    ],
)
def test_an_unknown_name_lists_the_cards(asked, parts):
    """A miss says what was asked, what is close and what there is."""
    with pytest.raises(ModelConfigError) as caught:
        load_model_spec(asked)
    assert all(part in str(caught.value) for part in parts)


def test_files_that_are_no_config_are_named(tmp_path):
    """A folder without config.json, broken JSON and a JSON list name the file."""
    with pytest.raises(ModelConfigError, match="the folder holds no config"):
        load_model_spec(str(tmp_path))
    file = tmp_path / "model.json"
    for text, message in (("{", "not valid JSON"), ("[]", "expected a JSON object, got list")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ModelConfigError, match=rf"model\.json: .*{message}"):
            load_model_spec(str(file))


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "torch_dtype",
    ],
)
def test_a_missing_key_is_named_with_its_file(key):
    """Nothing that a shape depends on has a silent default."""
    values = card("Qwen3-30B-A3B", **{key: ...})
    with pytest.raises(ModelConfigError) as caught:
        ModelSpec.from_hf_config(values, "models/x/config.json")
    message = str(caught.value)
    assert message.startswith("models/x/config.json: missing key `")
    assert f"`{key}`" in message


@pytest.mark.parametrize("key", ["kv_lora_rank", "qk_rope_head_dim", "first_k_dense_replace"])
def test_latent_attention_needs_its_keys(key):
    """DeepSeek's own keys have no default either."""
    with pytest.raises(ModelConfigError, match=f"missing key `{key}`"):
        ModelSpec.from_hf_config(card("DeepSeek-V3", **{key: ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, "`hidden_size` must be an integer >= 1, got '4096'"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be an integer >= 1, got 0"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` must be true or false, got 1"),
        ({"num_key_value_heads": 5}, "`num_attention_heads` = 32 does not divide"),
        ({"torch_dtype": "int4"}, "`torch_dtype` = 'int4' is not one of"),
        ({"dtype": "float16"}, "contradict each other"),
        ({"sliding_window": 4096}, "`sliding_window` = 4096 is not supported"),
        ({"layer_types": ["sliding_attention"]}, "`layer_types` with sliding_attention"),
        ({"mlp_bias": True}, "`mlp_bias` = true is not supported"),
        ({"hidden_act": "gelu"}, "`hidden_act` = 'gelu' is not supported; allowed: 'silu'"),
        ({"rms_norm_eps": "1e-5"}, "`rms_norm_eps` must be a positive number, got '1e-5'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"\[rope_scaling\]: missing key `factor`"),
        ({"quantization_config": {"quant_method": "awq"}}, "`quant_method` = 'awq' is not"),
        ({"architectures": ...}, None),
        ({"architectures": ..., "model_type": ...}, "missing key `architectures`"),
        ({"architectures": ["GPT2LMHeadModel"]}, "unsupported architecture 'GPT2LMHeadModel'"),
        ({"architectures": ["LLamaForCausalLM"]}, "did you mean 'LlamaForCausalLM'?"),
    ],
)
def test_a_wrong_value_is_explained(changes, message):
    """Each impossible or unsupported value is an error that shows it; a model_type will do."""
    values = card("Llama-3.1-8B", **changes)
    if message is None:
        assert ModelSpec.from_hf_config(values).family == "llama"
        return
    with pytest.raises(ModelConfigError, match=message):
        ModelSpec.from_hf_config(values)


def test_more_experts_per_token_than_experts_is_an_error():
    """A router cannot choose nine of eight."""
    with pytest.raises(ModelConfigError, match="`num_experts_per_tok` = 9 exceeds the 8 experts"):
        ModelSpec.from_hf_config(card("Mixtral-8x7B", num_experts_per_tok=9))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 40_960),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131_072),
        ({"type": "yarn", "factor": 4.0}, 163_840),
        ({"rope_type": "linear", "factor": 2}, 81_920),
        ({"rope_type": "llama3", "factor": 8.0}, 40_960),
    ],
)
def test_context_length_follows_the_rope_type(scaling, expected):
    """Yarn and linear extend the written length, llama3 has already done so."""
    spec = ModelSpec.from_hf_config(card("Qwen3-8B", rope_scaling=scaling))
    assert spec.max_model_len == expected


def test_rope_of_the_cards():
    """Base and scaling of the rotary embedding survive both ways of writing them."""
    assert load_model_spec("Llama-3.1-8B").rope == RopeSpec("llama3", 500_000.0, 8.0, 8192)
    assert load_model_spec("DeepSeek-V3").rope == RopeSpec("yarn", 10_000.0, 40.0, 4096)
    assert load_model_spec("Qwen3-8B").rope == RopeSpec("default", 1_000_000.0, 1.0, None)


def test_sparse_step_and_dense_layers_of_qwen_moe():
    """Layers named in mlp_only_layers, or skipped by the period, are dense."""
    values = card("Qwen3-30B-A3B", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    spec = ModelSpec.from_hf_config(values)
    assert spec.moe.layers == (1, 5)
    assert spec.num_dense_layers == 4
    assert spec.parameter_counts()["mlp"] == 4 * 3 * 2048 * 6144


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("Qwen3-30B-A3B", {}, True),
        ("Qwen3-30B-A3B", {"norm_topk_prob": False}, False),
        ("Qwen3-30B-A3B", {"norm_topk_prob": ...}, False),  # transformers' default
        ("Mixtral-8x7B", {}, True),
        ("Mixtral-8x7B", {"norm_topk_prob": False}, True),  # not a key of Mixtral
        ("DeepSeek-V3", {}, True),
    ],
)
def test_whether_expert_weights_are_renormalised(name, changes, expected):
    """Qwen3-MoE says so by norm_topk_prob, Mixtral always does."""
    assert ModelSpec.from_hf_config(card(name, **changes)).moe.renormalize is expected


def test_norm_epsilon_and_theta():
    """Both are read; without the key they are what transformers assumes for the family."""
    assert load_model_spec("Llama-3.1-8B").rms_norm_eps == 1e-5
    assert load_model_spec("Qwen3-8B").rms_norm_eps == 1e-6
    missing = {"rms_norm_eps": ..., "rope_theta": ..., "rope_scaling": ..., "hidden_act": ...}
    for name, eps, theta in (("Mixtral-8x7B", 1e-5, 1e6), ("Llama-3.1-8B", 1e-6, 1e4)):
        spec = ModelSpec.from_hf_config(card(name, **missing))
        assert (spec.rms_norm_eps, spec.rope.theta) == (eps, theta)


def test_a_quantized_checkpoint_keeps_its_dtype():
    """The weight dtype of an fp8 checkpoint is fp8, of any other its own dtype."""
    assert load_model_spec("DeepSeek-V3").weight_dtype == "fp8"
    assert load_model_spec("DeepSeek-V3").dtype == "bf16"
    assert load_model_spec("Mixtral-8x7B").weight_dtype == "bf16"
