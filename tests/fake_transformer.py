"""A transformer without weights: the next token is a sum over the KV of its text, read from pages.

A wrong position, row, page, or token therefore changes the text; faults are made on demand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch

from engine.kernels.registry import select_kernels
from engine.models.kv_cache import KvCache
from engine.models.step_inputs import StepInputs
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig

VOCAB = 61
NAN_TOKEN = 60  # a text that holds it has no numbers for logits; no text comes to it by itself


class FakeTransformer:
    """Stands in for `engine.models.transformer.Transformer`.

    Attributes:
        steps: forward passes so far.
        tokens: of each of them.
        faults: forward pass -> what it raises.
    """

    def __init__(self) -> None:
        self.spec = SimpleNamespace(name="fake", num_heads=1, num_kv_heads=1, vocab_size=VOCAB)
        self.kernels = select_kernels(torch.device("cpu"))
        self.steps = 0
        self.tokens: list[int] = []
        self.faults: dict[int, Exception] = {}

    def forward(self, step: StepInputs, cache: KvCache) -> torch.Tensor:
        fault = self.faults.get(self.steps)
        self.steps += 1
        self.tokens.append(len(step.token_ids))
        if fault is not None:
            raise fault
        fed = step.last_tokens[(-1 - step.token_ids).clamp(min=0).long()]
        ids = torch.where(step.token_ids < 0, fed, step.token_ids).numpy()
        (keys, _), size = cache.layers[0], cache.page_size
        wanted = range(len(ids)) if step.logit_rows is None else step.logit_rows.tolist()
        logits = torch.zeros(len(wanted), VOCAB)
        table, positions = step.page_table.numpy(), step.positions.numpy()
        rows, store = step.rows.numpy(), keys.numpy()[..., 0, 0]
        values = np.where(ids == NAN_TOKEN, math.nan, ids + 1)
        store[table[rows, positions // size], positions % size] = values
        for out, at in zip(logits, wanted, strict=True):
            place = np.arange(positions[at] + 1)
            text = store[table[rows[at], place // size], place % size]
            total = float((text * (place + 1)).sum())
            if math.isnan(total):
                out.fill_(math.nan)
            else:
                out[int(total) % NAN_TOKEN] = 1.0
        return logits


def continuation(prompt: Sequence[int], count: int) -> list[int]:
    """The first `count` tokens after a prompt."""
    text = list(prompt)
    for _ in range(count):
        total = sum((token + 1) * (at + 1) for at, token in enumerate(text))
        text.append(total % NAN_TOKEN)
    return text[len(prompt) :]


def fake_runner(clock: Callable[[], int] = lambda: 0, **settings: object) -> ModelRunner:
    """A real model runner on a CPU around a fake transformer; its `transformer` is the fake."""
    known = dict(
        model="fake", num_pages=40, page_size=4, max_model_len=120, max_running_requests=4,
        max_num_batched_tokens=16,
    )  # fmt: skip
    config = RunnerConfig(**{**known, **settings})
    # What lies in pages that nobody has written is not a number: whoever reads it is seen.
    pool = torch.full((1, 2, config.num_pages + 1, config.page_size, 1, 1), math.nan)
    pool[:, :, -1] = 0
    cache = KvCache(pool, ((pool[0, 0], pool[0, 1]),))
    return ModelRunner(config, FakeTransformer(), cache, clock)
