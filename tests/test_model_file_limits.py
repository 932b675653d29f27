"""Checkpoints and model configs from anywhere are read or refused in this project's own words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outside_values import DEEP, VALUES, bounded

from engine.core.hf_config import ModelConfigError
from engine.core.model_spec import load_model_spec

# ---- checkpoint headers --------------------------------------------------------------------------


def checkpoint(folder: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    path = folder / "model.safetensors"
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size % 2**64) + header + data)
    return path


def read_header(path: Path) -> None:
    pytest.importorskip("torch")
    from engine.models.checkpoint import CheckpointError
    from engine.models.checkpoint import read_header as read

    bounded(lambda: read(path), CheckpointError)


ENTRIES = st.fixed_dictionaries({}, optional=dict(dtype=VALUES, shape=VALUES, data_offsets=VALUES))


@settings(max_examples=300)
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES | VALUES, max_size=4))
@example(header={"w": {"dtype": [], "shape": [1], "data_offsets": [0, 2]}})
@example(header={"w": {"dtype": "BF16", "shape": [float("inf")], "data_offsets": [0, 2]}})
@example(header={"w": {"dtype": "BF16", "shape": [float("nan")], "data_offsets": [0, 2]}})
@example(header={"w": {"dtype": "BF16", "shape": {"1": 2}, "data_offsets": "01"}})
@example(header={"w": {"dtype": "BF16", "shape": [10**4000] * 40, "data_offsets": [0, 0]}})
def test_any_checkpoint_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object]
) -> None:
    """Whatever JSON stands where dtype, shape and offsets should."""
    text = json.dumps(header).encode()
    read_header(checkpoint(tmp_path_factory.getbasetemp(), text, data=b"\0\0"))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 10**8 + 1])
def test_a_header_that_claims_a_giant_length_is_refused(length: int, tmp_path: Path) -> None:
    """Nothing of that size is ever allocated."""
    read_header(checkpoint(tmp_path, b"{}", length))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_deeply_nested_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    """A JSON text nested 200,000 deep is no reason to crash."""
    pytest.importorskip("torch")
    from engine.models.checkpoint import CheckpointError, read_checkpoint

    if name.endswith("json"):
        (tmp_path / name).write_text(DEEP)
    else:
        checkpoint(tmp_path, DEEP.encode())
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_checkpoint_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    read_header(path)


# ---- model configs -------------------------------------------------------------------------------

GOOD = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=48, intermediate_size=80,
    num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, vocab_size=320,
    max_position_embeddings=256, torch_dtype="bfloat16",
)  # fmt: skip


@settings(max_examples=300)
@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, max_size=3))
def test_any_model_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    """Whatever stands in place of its numbers and names."""
    folder = tmp_path_factory.getbasetemp() / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(GOOD | changes))
    bounded(lambda: load_model_spec(str(folder / "config.json")), ModelConfigError)


def test_a_deeply_nested_model_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(DEEP)
    bounded(lambda: load_model_spec(str(tmp_path / "config.json")), ModelConfigError)
