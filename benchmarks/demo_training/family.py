"""Trains the whole family and judges it, for `engine/demo` and docs/demo_models.md."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from demo_training.expert_load import chosen_experts, load_statistics
from demo_training.export import export, round_to_bf16, write_json
from demo_training.model import Decoder
from demo_training.prepared import read_facts, read_tokens
from demo_training.rounding import FORMATS, rounded
from demo_training.sampling import continue_texts, prompts_from
from demo_training.shapes import DENSE, DRAFT, MOE
from demo_training.speculation import measure_acceptance
from demo_training.training import Data, Log, Plan, bits_per_byte, held_out_nats, train

# Chosen so that the family takes eight minutes of one H200.
PLANS: Final = (
    Plan(name="demo-dense", shape=DENSE, steps=4800),
    Plan(name="demo-draft", shape=DRAFT, steps=2880),
    Plan(name="demo-moe", shape=MOE, steps=1920, balance="aux"),
    Plan(name="moe-none", shape=MOE, steps=1920, balance="none"),
    Plan(name="moe-bias", shape=MOE, steps=1920, balance="bias"),
)
_PROMPTS: Final = 512
_PROMPT_TOKENS: Final = 32
_MOST_TOKENS: Final = 1024
_ACCEPTANCE_TOKENS: Final = 96
_KEPT_TOKENS: Final = 4096  # of each mixture's routing, expert by expert
_SHIPPED: Final = ("demo-dense", "demo-draft", "demo-moe")


def run(
    data_folder: Path, output: Path, *, steps_scale: float, compiled: bool,
    say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Train and judge everything; every file of the result is in `output`.

    Args:
        data_folder: that `prepared.prepare` has filled.
        output: is made.
        steps_scale: of the steps of each plan; 1 but for trials.
        compiled: compile the models.
        say: told about progress.
    """
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held_out = read_tokens(data_folder, "held_out")
    data = Data.load(
        read_tokens(data_folder, "train"), held_out,
        read_facts(data_folder)["held_out"]["bytes"], device,
    )  # fmt: skip
    models: dict[str, Decoder] = {}
    logs: dict[str, Any] = {"environment": _environment(device), "models": {}}
    for plan in PLANS:
        scaled = Plan(
            name=plan.name, shape=plan.shape, steps=max(2, round(plan.steps * steps_scale)),
            batch=plan.batch if device.type == "cuda" else 2, balance=plan.balance,
        )  # fmt: skip
        teacher = models["demo-dense"] if plan.name == "demo-draft" else None
        model, log = train(scaled, data, compiled=compiled, teacher=teacher, say=say)
        logs["models"][plan.name] = _log_as_json(log)
        write_json(output / "training_log.json", logs)
        if plan.name in _SHIPPED:
            export(model, output / plan.name, data_folder)
        models[plan.name] = _plain_copy(model)
    judge(models, data, held_out, output, say)


def judge(
    models: dict[str, Decoder], data: Data, held_out: Any, output: Path, say: Callable[[str], None]
) -> None:
    """Measure everything that docs/demo_models.md states, and write it."""
    started = time.perf_counter()

    def done(what: str) -> None:
        say(f"{what} after {time.perf_counter() - started:.0f} s of judging")

    write_json(output / "perplexity.json", _perplexities(models, data))
    done("perplexities")
    device = data.train.device
    prompts = prompts_from(held_out, _PROMPTS, _PROMPT_TOKENS, seed=1).to(device)
    acceptance = {}
    for temperature in (0, 1):
        measured = measure_acceptance(
            models["demo-dense"], models["demo-draft"], prompts, _ACCEPTANCE_TOKENS,
            greedy=temperature == 0, seed=2,
        )  # fmt: skip
        acceptance[f"temperature {temperature}"] = measured.as_json()
    write_json(output / "acceptance.json", acceptance)
    done("acceptance")
    _write_texts(models["demo-dense"], prompts, output)
    done("texts")
    _write_routing(models, data, output)
    done("routing")


def _perplexities(models: dict[str, Decoder], data: Data) -> list[dict[str, Any]]:
    """A row per model and number format of its weights; activations are bf16 everywhere."""
    rows = []
    for name in _SHIPPED:
        formats = {"bf16": models[name]}
        formats |= {label: rounded(models[name], form) for label, form in FORMATS.items()}
        for label, model in formats.items():
            nats, tokens = held_out_nats(model, data)
            rows.append({
                "model": name,
                "weights": label,
                "tokens": tokens,
                "perplexity": math.exp(nats / tokens),
                "bits_per_byte": bits_per_byte(model, data),
            })  # fmt: skip
    return rows


def _write_texts(model: Decoder, prompts: torch.Tensor, output: Path) -> None:
    """Texts drawn at temperature 1 and 0.8 and greedily, as token ids."""
    texts = {}
    for temperature in (0.0, 0.8, 1.0):
        texts[f"temperature {temperature:g}"] = continue_texts(
            model, prompts, _MOST_TOKENS, temperature, seed=3
        )
    content = {"most_tokens": _MOST_TOKENS, "prompts": prompts.tolist(), "texts": texts}
    (output / "texts.json").write_text(json.dumps(content))


def _write_routing(models: dict[str, Decoder], data: Data, output: Path) -> None:
    """Statistics of all mixtures as JSON; which expert each token went to as arrays."""
    statistics, arrays = {}, {}
    for name, model in models.items():
        if model.shape.experts:
            experts = chosen_experts(model, data)
            statistics[name] = load_statistics(experts, model.shape.experts)
            arrays[name] = experts[:, :_KEPT_TOKENS]
    write_json(output / "expert_load.json", statistics)
    np.savez_compressed(output / "routing.npz", **arrays)


def _plain_copy(model: Decoder) -> Decoder:
    """With the weights that are shipped, and not compiled."""
    copy = Decoder(model.shape).to(model.embed_tokens.weight.device)
    copy.load_state_dict(model.state_dict())
    for mine, other in zip(copy.buffers(), model.buffers(), strict=True):
        mine.copy_(other)
    round_to_bf16(copy)
    return copy


def _log_as_json(log: Log) -> dict[str, Any]:
    return {"facts": log.facts, "train_nats_per_token": log.train,
            "held_out_bits_per_byte": log.held_out}  # fmt: skip


def _environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": str(torch.__version__)}
