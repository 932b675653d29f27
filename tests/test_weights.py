"""Loading the engine's weights from checkpoints of every family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from kernel_device import DEVICE

from engine.core.model_spec import ModelSpec, load_model_spec
from engine.models import weight_loading
from engine.models.checkpoint import SINGLE_NAME, CheckpointError
from engine.models.dummy_weights import dummy_weights
from engine.models.weight_loading import load_weights
from engine.models.weight_names import parts
from engine.models.weights import (
    UnsupportedModelError,
    Weights,
    empty_weights,
    named_tensors,
    weight_bytes,
)

STORED = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def tiny(family: str, folder: Path, **arguments: object) -> tuple[dict[str, torch.Tensor], Path]:
    """(parameters by their names in transformers, folder) of a saved tiny model."""
    pytest.importorskip("transformers")
    model = tiny_models.make(family, folder, **arguments)
    return dict(model.state_dict()), folder


def save_file(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file, also where the package is not installed."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": STORED[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [begin, end]}  # fmt: skip
    text = json.dumps(header).encode()
    new = file.with_suffix(".new")  # the old file may be mapped by tensors that are written
    with new.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    new.replace(file)


def load_file(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(folder, load_model_spec(str(folder)), DEVICE, dtype)


def from_transformers(state: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """What the engine's tensors must be, fused from transformers' own."""

    def layer(index: int) -> dict[str, torch.Tensor]:
        prefix = f"model.layers.{index}."
        own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        fused = {
            "input_norm": own["input_layernorm.weight"],
            "qkv": torch.cat([own[f"self_attn.{x}_proj.weight"] for x in "qkv"]),
            "o": own["self_attn.o_proj.weight"],
            "post_norm": own["post_attention_layernorm.weight"],
        }
        if "self_attn.q_proj.bias" in own:
            fused["qkv_bias"] = torch.cat([own[f"self_attn.{x}_proj.bias"] for x in "qkv"])
        if "self_attn.o_proj.bias" in own:
            fused["o_bias"] = own["self_attn.o_proj.bias"]
        if "self_attn.q_norm.weight" in own:
            fused["q_norm"] = own["self_attn.q_norm.weight"]
            fused["k_norm"] = own["self_attn.k_norm.weight"]
        if "mlp.gate.weight" in own:
            fused["mlp.router"] = own["mlp.gate.weight"]
            fused["mlp.gate_up"] = own["mlp.experts.gate_up_proj"]
            fused["mlp.down"] = own["mlp.experts.down_proj"]
        else:
            both = [own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]]
            fused["mlp.gate_up"] = torch.cat(both)
            fused["mlp.down"] = own["mlp.down_proj.weight"]
        return {f"layers.{index}.{name}": tensor for name, tensor in fused.items()}

    fused = {"embed": state["model.embed_tokens.weight"], "final_norm": state["model.norm.weight"]}
    for index in range(spec.num_layers):
        fused |= layer(index)
    return fused if spec.tied else {**fused, "lm_head": state["lm_head.weight"]}


def assert_equal(weights: Weights, expected: dict[str, torch.Tensor]) -> None:
    loaded = dict(named_tensors(weights))
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name].cpu(), tensor), name


@pytest.mark.parametrize("shard_size", ["50GB", "60KB"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_loads_as_transformers_saved_it(
    family: str, shard_size: str, tmp_path: Path
) -> None:
    """Every parameter lands in its place of the fused tensors, from one file or from shards."""
    state, folder = tiny(family, tmp_path, shard_size=shard_size)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard_size == "60KB")
    spec, weights = load_model_spec(str(folder)), load(folder)
    assert_equal(weights, from_transformers(state, spec))
    assert weight_bytes(weights) == spec.weight_bytes("fp32")
    assert (weights.lm_head is weights.embed) == spec.tied
    assert all(tensor.is_contiguous() for _, tensor in named_tensors(weights))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_load_too(family: str, tmp_path: Path) -> None:
    """The names that transformers 5 uses in memory are read as well as those of the Hub."""
    state, folder = tiny(family, tmp_path)
    save_file(state, folder / SINGLE_NAME)
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(folder / SINGLE_NAME))
    assert_equal(load(folder), from_transformers(state, load_model_spec(str(folder))))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_float_types_are_converted(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any float type loads as any other, rounded once, also in pieces smaller than a tensor."""
    monkeypatch.setattr(weight_loading, "_PIECE_BYTES", 1000)
    state, folder = tiny("qwen2", tmp_path)
    tensors = {name: tensor.to(stored) for name, tensor in state.items()}
    save_file(tensors, folder / SINGLE_NAME)
    spec, weights = load_model_spec(str(folder)), load(folder, wanted)
    expected = from_transformers(tensors, spec)
    assert_equal(weights, {name: tensor.to(wanted) for name, tensor in expected.items()})
    assert weight_bytes(weights) == spec.weight_bytes(SHORT[wanted])


def changed(folder: Path, **changes: torch.Tensor | None) -> Path:
    """The single-file checkpoint in `folder` with tensors replaced, added or (None) left out."""
    tensors = {**load_file(folder / SINGLE_NAME), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / SINGLE_NAME)
    return folder


def problems(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Missing, unknown, misshapen and unreadable tensors are each named, with shapes and file."""
    _, folder = tiny("llama", tmp_path)
    o, down, k = (f"model.layers.1.{x}.weight" for x in ("self_attn.o_proj", "mlp.down_proj",
                                                         "self_attn.k_proj"))  # fmt: skip
    extra = "model.layers.3.mlp.down_proj.weight"
    tensors = {o: None, down: torch.ones(80, 48), extra: torch.ones(48, 80),
               k: torch.ones(16, 48).to(torch.float8_e4m3fn)}  # fmt: skip
    message = problems(changed(folder, **tensors))
    assert message.startswith(f"{folder}: 4 problems")
    assert f"{o} [48, 48] is missing" in message
    asked = "has shape [80, 48]; the model's config.json asks for [48, 80]"
    assert f"{folder / SINGLE_NAME}: {down} {asked}" in message
    assert f"{folder / SINGLE_NAME}: {extra} [48, 80] is unknown" in message
    assert f"{k} is of dtype F8_E4M3; only BF16, F16, F32 can be loaded" in message


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama_bias", "llama", "qwen3_moe"])
def test_a_checkpoint_of_another_family_is_refused(family: str, tmp_path: Path) -> None:
    """Biases and norms that only one family has are never dropped or left out."""
    _, folder = tiny(family, tmp_path)
    other = "qwen3" if family.startswith("llama") else "llama"
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [f"{other.capitalize()}ForCausalLM"], "model_type": other}
    config |= {"attention_bias": False, "head_dim": config.get("head_dim") or 8}
    (folder / "config.json").write_text(json.dumps(config))
    message = problems(folder)
    assert ("is missing" if other == "qwen3" else "is unknown") in message


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    """Each expert of the Hub's spelling is checked on its own."""
    _, folder = tiny("mixtral", tmp_path)
    name = "model.layers.2.block_sparse_moe.experts.4.w3.weight"
    assert problems(changed(folder, **{name: None})) == f"{folder}: {name} [80, 48] is missing"


def test_known_surplus_is_ignored(tmp_path: Path) -> None:
    """Rotary buffers of old checkpoints, and a tied head that was saved anyway, may be there."""
    _, folder = tiny("llama_tied", tmp_path)
    before = dict(named_tensors(load(folder)))
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    head = torch.randn(320, 48)
    weights = load(changed(folder, **{buffer: torch.ones(4), "lm_head.weight": head}))
    assert weights.lm_head is weights.embed
    assert_equal(weights, {name: tensor.cpu() for name, tensor in before.items()})
    assert "lm_head.weight [319, 48] is unknown" in problems(
        changed(folder, **{"lm_head.weight": torch.randn(319, 48)})
    )


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    """The head is never taken from the embedding unless the config says so."""
    _, folder = tiny("llama", tmp_path)
    message = problems(changed(folder, **{"lm_head.weight": None}))
    assert message == f"{folder}: lm_head.weight [320, 48] is missing"


def test_quantized_checkpoints_and_unsupported_models_are_refused(tmp_path: Path) -> None:
    """A config that asks for what the engine cannot do is refused before any file is read."""
    with pytest.raises(CheckpointError, match="fp8 checkpoints cannot be loaded"):
        load_weights(tmp_path, ModelSpec.from_hf_config(_SMALL_FP8), DEVICE, torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="latent attention, shared experts, a router"):
        dummy_weights(load_model_spec("DeepSeek-V3"), "meta", torch.bfloat16)


_SMALL_FP8 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "vocab_size": 64, "max_position_embeddings": 64, "dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip

_PEAK_OF_LOADING = """
import sys, torch
from pathlib import Path
from engine.core.model_spec import load_model_spec
from engine.models.weight_loading import load_weights
from engine.models.weights import weight_bytes

def status(key):
    line = next(x for x in open("/proc/self/status") if x.startswith(key))
    return int(line.split()[1]) * 1024

spec = load_model_spec(sys.argv[1])
torch.ones(1 << 16).to(torch.bfloat16).sum()
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = status("VmRSS")
weights = load_weights(Path(sys.argv[1]), spec, "cpu", torch.bfloat16)
print(status("VmHWM") - before - weight_bytes(weights))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_no_memory_besides_the_weights(tmp_path: Path) -> None:
    """The peak while 4 shards of 32 MiB are loaded exceeds the weights by far less than a shard."""
    config = {**_SMALL_FP8, "hidden_size": 1024, "vocab_size": 16384, "num_hidden_layers": 2}
    config |= {"intermediate_size": 8192, "num_attention_heads": 8, "quantization_config": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_model_spec(str(tmp_path))
    write_fake_checkpoint(tmp_path, spec, shard_bytes=32 << 20)
    assert len(list(tmp_path.glob("*.safetensors"))) >= 4
    command = [sys.executable, "-c", _PEAK_OF_LOADING, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 16 << 20


def write_fake_checkpoint(
    folder: Path, spec: ModelSpec, shard_bytes: int
) -> dict[str, torch.Tensor]:
    """Random bf16 tensors under the names of the model, in shards of about that size."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, target in parts(empty_weights(spec, "meta", torch.bfloat16), spec, ()):
        if sum(t.nbytes for t in shards[-1].values()) >= shard_bytes:
            shards.append({})
        shards[-1][name] = torch.empty(target.shape, dtype=torch.bfloat16).uniform_(-1, 1)
    for index, shard in enumerate(shards):
        save_file(shard, folder / f"{index}.safetensors")
    weight_map = {name: f"{i}.safetensors" for i, shard in enumerate(shards) for name in shard}
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    return {name: tensor for shard in shards for name, tensor in shard.items()}


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 24])
def test_every_element_arrives_on_this_device(
    wanted: torch.dtype, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces and the threads, each part equals what is stored; nothing is missed."""
    monkeypatch.setattr(weight_loading, "_PIECE_BYTES", piece_bytes)
    config = {**_SMALL_FP8, "quantization_config": None, "num_hidden_layers": 5}
    spec = ModelSpec.from_hf_config(config)
    stored = write_fake_checkpoint(tmp_path, spec, shard_bytes=50_000)
    weights = load_weights(tmp_path, spec, DEVICE, wanted)
    for name, target in parts(weights, spec, ()):
        assert target.device.type == DEVICE.type
        assert torch.equal(target.cpu(), stored[name].to(wanted)), name
