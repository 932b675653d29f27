"""Tiny random models of every family, as transformers builds, saves and runs them.

transformers takes seconds to import, so it is imported when a model is made.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

FAMILIES = (
    "llama",
    "llama_tied",
    "llama_bias",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3_moe",
)

TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog dreams of 1,024 foxes. "
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 你好，世界！ 🦊🐶"
)

_COMMON: dict[str, Any] = dict(
    vocab_size=320,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    dtype="float32",
)
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
_MOE = dict(num_experts_per_tok=2, num_local_experts=5)

# Family -> prefix of the class names in transformers, and what differs from _COMMON.
_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(rope_parameters=_LLAMA3_ROPE, rms_norm_eps=1e-5)),
    "llama_tied": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=6)),
    "llama_bias": ("Llama", dict(attention_bias=True)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=16)),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", dict(head_dim=16)),  # not hidden_size / heads = 8
    "mixtral": ("Mixtral", dict(**_MOE, sliding_window=None, rms_norm_eps=1e-5)),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            **_MOE,
            head_dim=16,
            moe_intermediate_size=24,
            num_hidden_layers=5,
            decoder_sparse_step=2,  # layers 1 and 3, less the one below: only layer 3 is a mixture
            mlp_only_layers=[1],
            norm_topk_prob=True,
        ),
    ),
}


def make(family: str, folder: Path, *, shard_size: str = "50GB", **overrides: Any) -> Any:
    """A tiny model in fp32, saved to `folder` as transformers saves it; returns the model.

    Equal arguments give equal weights. Norms and biases are random too, so that a misplaced one
    shows. `overrides` are keys of the config; `shard_size` splits the checkpoint.
    """
    model = build(family, **overrides)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def build(family: str, **overrides: Any) -> Any:
    """The model of `make`, not saved."""
    import transformers

    prefix, changes = _RECIPES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_COMMON, **changes, **overrides})
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(torch.float32).eval()
        _randomize(model)
    return model


@torch.no_grad()
def _randomize(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5)
        else:
            parameter.normal_(0.0, 0.15)


def logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """fp32[T, V]: the logits after each token of one text."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


def greedy(model: Any, token_ids: list[int], num_tokens: int) -> list[int]:
    """The next `num_tokens` tokens, each the likeliest, by recomputing the whole text."""
    text = list(token_ids)
    for _ in range(num_tokens):
        text.append(int(logits(model, text)[-1].argmax()))
    return text[len(token_ids) :]


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer.json trained on TEXT; ids 0 to 2 are <unk>, <s> and </s>."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")


@cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_COMMON["vocab_size"],
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
