"""Texts that a model writes after beginnings of held-out pieces, and how long they become."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_training.bpe_constants import END_OF_TEXT_ID
from demo_training.model import Decoder, mixed_precision

PROMPT_TOKENS: Final = 32


def prompts_from(held_out: NDArray[np.uint16], count: int, tokens: int, seed: int) -> Tensor:
    """int64[count, tokens + 1]: an end of text, and the first tokens of pieces twice as long."""
    ends = np.flatnonzero(held_out == END_OF_TEXT_ID)
    long = ends[:-1][np.diff(ends) > 2 * tokens]
    picked = np.random.default_rng(seed).permutation(long)[:count]
    return torch.from_numpy(held_out[picked[:, None] + np.arange(tokens + 1)].astype(np.int64))


@torch.no_grad()
def continue_texts(
    model: Decoder, prompts: Tensor, most_tokens: int, temperature: float, seed: int
) -> list[list[int]]:
    """What the model writes after each prompt, up to and with its end of text.

    Args:
        model: whose texts.
        prompts: int64[B, P] on the model's device.
        most_tokens: after which a text is cut; prompt and it must fit the context.
        temperature: 0 is greedy.
        seed: of the draws.
    """
    random = torch.Generator(prompts.device).manual_seed(seed)
    writer = _Writer(model, prompts, most_tokens)
    logits = writer.read(prompts)
    for at in range(most_tokens):
        tokens = _next(logits, temperature, random)
        writer.new[:, at] = tokens
        if at % 32 == 31 and bool((writer.new[:, : at + 1] == END_OF_TEXT_ID).any(1).all()):
            break
        logits = writer.read(tokens[:, None])
    return [_up_to_end(row) for row in writer.new.tolist()]


class _Writer:
    """A model with a contiguous KV cache for texts of equal length, in the weights' own dtype."""

    def __init__(self, model: Decoder, prompts: Tensor, most_tokens: int) -> None:
        count, length = prompts.shape
        self.model, self.at = model, 0
        self.new = torch.full((count, most_tokens), -1, device=prompts.device)
        shape = (count, model.shape.heads, length + most_tokens, 64)
        dtype = torch.bfloat16 if prompts.is_cuda else torch.float32
        self.caches = [
            tuple(torch.zeros(shape, dtype=dtype, device=prompts.device) for _ in "kv")
            for _ in model.layers
        ]

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after these tokens."""
        with mixed_precision(tokens.device):
            x = self.model.embed_tokens(tokens).to(self.caches[0][0].dtype)
            for layer, cache in zip(self.model.layers, self.caches, strict=True):
                x = x + self._attend(layer, layer.input_layernorm(x), cache)
                x = x + layer.mlp(layer.post_attention_layernorm(x))[0]
            self.at += tokens.shape[1]
            last = self.model.norm(x[:, -1])
            return torch.nn.functional.linear(last, self.model.embed_tokens.weight).float()

    def _attend(self, layer: torch.nn.Module, x: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        return layer.self_attn.with_cache(x, self.model.cos, self.model.sin, cache, self.at)


def _next(logits: Tensor, temperature: float, random: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=random)[:, 0]


def _up_to_end(tokens: list[int]) -> list[int]:
    end = tokens.index(END_OF_TEXT_ID) + 1 if END_OF_TEXT_ID in tokens else len(tokens)
    return [token for token in tokens[:end] if token >= 0]
