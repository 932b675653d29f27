"""Writes a trained model as a Hugging Face folder, in bf16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from demo_training.bpe_constants import END_OF_TEXT_ID
from demo_training.model import Decoder


def export(model: Decoder, folder: Path, tokenizer_folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer.

    Args:
        model: trained.
        folder: is made.
        tokenizer_folder: holds tokenizer.json and tokenizer_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.shape.hf_config())
    ends = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
    write_json(folder / "generation_config.json", ends)
    save_file(hf_tensors(model), folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, folder / name)


def hf_tensors(model: Decoder) -> dict[str, Tensor]:
    """All weights in bf16 under the names that transformers gives them, on the host."""
    tensors = {}
    for name, value in model.named_parameters():
        for full_name, part in _parts(f"model.{name}", value.detach()):
            tensors[full_name] = part.to("cpu", torch.bfloat16).contiguous()
    return tensors


def _parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The experts of a mixture one by one; anything else as it is."""
    prefix, _, last = name.rpartition(".")
    if last not in ("gate_up", "down"):
        yield name, value
        return
    for index, expert in enumerate(value):
        here = f"{prefix}.experts.{index}"
        if last == "down":
            yield f"{here}.down_proj.weight", expert
            continue
        gate, up = expert.chunk(2)
        yield f"{here}.gate_proj.weight", gate
        yield f"{here}.up_proj.weight", up


def round_to_bf16(model: Decoder) -> None:
    """Make the weights in memory those that are written."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())


def write_json(path: Path, value: object) -> None:
    """Indented, with a line feed at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
