"""The rotary table: equal to what transformers computes, for every kind and both config styles."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_device import DEVICE

from engine.core.hf_config import ModelConfigError, RopeSpec
from engine.core.model_spec import ModelSpec
from engine.models.rope import UnsupportedRopeError, rope_frequencies, rope_table

KINDS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3 with other bounds": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 6.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn without its original length": {"rope_type": "yarn", "factor": 4.0},
    "yarn with an attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn with one mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.5},
    "yarn with another ramp": {
        "rope_type": "yarn",
        "factor": 16.0,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "truncate": False,
        "original_max_position_embeddings": 2048,
    },
}


def values(kind: str, theta: float = 500_000.0) -> dict[str, object]:
    """A config of Qwen3 with one rope, as transformers 5 writes it."""
    parameters = {"rope_type": kind, "rope_theta": theta, **KINDS[kind]}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
        "rope_parameters": parameters,
    }


def in_transformers_4_style(config: dict[str, object]) -> dict[str, object]:
    """The same config as transformers 4 wrote it."""
    config = dict(config)
    parameters = dict(config.pop("rope_parameters"))
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = {"type": parameters.pop("rope_type"), **parameters}
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str) -> None:
    """Frequencies and attention factor are those of ROPE_INIT_FUNCTIONS, to fp32 rounding."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = transformers.Qwen3Config(**values(kind))
    theirs = Qwen3RotaryEmbedding(config)
    rope = ModelSpec.from_hf_config(values(kind)).rope
    ours = rope_frequencies(rope, 128)
    torch.testing.assert_close(ours, theirs.inv_freq.double(), rtol=1e-5, atol=0)
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)
    cos, sin = theirs(torch.zeros(1), torch.arange(50)[None])
    table = rope_table(rope, 128, 50, DEVICE).cpu()
    torch.testing.assert_close(table[:, :64], cos[0, :, :64], rtol=0, atol=1e-4)
    torch.testing.assert_close(table[:, 64:], sin[0, :, 64:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_both_config_styles_give_one_rope(kind: str) -> None:
    """All parameters are read from `rope_parameters` and from `rope_scaling` alike."""
    new = ModelSpec.from_hf_config(values(kind))
    old = ModelSpec.from_hf_config(in_transformers_4_style(values(kind)))
    assert old.rope == new.rope


def test_far_positions_are_exact() -> None:
    """At the millionth token the fp32 table is still right to its last bits."""
    rope = RopeSpec("default", 10_000.0, 1.0, None)
    position = 1_000_003
    row = rope_table(rope, 8, position + 1)[position]
    angles = [position * 10_000.0 ** (-j / 4) for j in range(4)]
    exact = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
    torch.testing.assert_close(row.double(), exact, rtol=0, atol=1e-7)


def test_shape_and_dtype() -> None:
    """float32[max_positions, D] on the device; position 0 turns nothing."""
    table = rope_table(RopeSpec("default", 10_000.0, 1.0, None), 16, 33, DEVICE)
    assert (table.shape, table.dtype, table.device.type) == ((33, 16), torch.float32, DEVICE.type)
    assert table[0].tolist() == [1.0] * 8 + [0.0] * 8


@pytest.mark.parametrize(
    ("rope", "head_dim", "message"),
    [
        (RopeSpec("dynamic", 1e4, 2.0, None), 16, "frequencies change with the length"),
        (RopeSpec("spiral", 1e4, 2.0, None), 16, "'spiral' is not known"),
        (RopeSpec("default", 1e4, 1.0, None), 15, "head_dim = 15 is odd"),
        (RopeSpec("yarn", 1e4, 2.0, None), 16, "'yarn' needs original_max_position"),
        (RopeSpec("llama3", 1e4, 2.0, None), 16, "'llama3' needs original_max_position"),
    ],
)
def test_what_cannot_be_a_table_is_refused(rope: RopeSpec, head_dim: int, message: str) -> None:
    """No wrong angles: a kind whose frequencies depend on the text is an error."""
    with pytest.raises(UnsupportedRopeError, match=message):
        rope_table(rope, head_dim, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` = 0.5 is not supported"),
        ({"full_attention": {"rope_type": "default"}}, r"a rope per kind of layer \(full_att"),
        ({"rope_type": "llama3", "low_freq_factor": 4.0}, "must be below `high_freq_factor`"),
        ({"rope_type": "yarn", "beta_slow": 32}, "must be below `beta_fast`"),
    ],
)
def test_ropes_that_would_be_misread_are_refused(changes: dict[str, object], message: str) -> None:
    """A key that changes the rotation and is not understood is an error, not ignored."""
    config = values("default")
    config["rope_parameters"] = {"rope_theta": 1e4, "factor": 2.0, **changes}
    with pytest.raises(ModelConfigError, match=message):
        ModelSpec.from_hf_config(config)
