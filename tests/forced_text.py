"""What a model on a CPU thinks of a text that is given: its loss, as the engine computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.core.model_spec import load_model_spec
from engine.kernels.registry import select_kernels
from engine.models.kv_cache import allocate_kv_cache
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.models.transformer import Transformer
from engine.models.weight_loading import load_weights

_PAGE_SIZE = 16


@contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices: threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def nats_per_token(folder: Path, token_ids: list[int], window_tokens: int = 1024) -> float:
    """Mean loss of all but the first token of each window of a text, in fp32."""
    device, dtype = torch.device("cpu"), torch.float32
    spec = load_model_spec(str(folder))
    weights = load_weights(folder, spec, device, dtype)
    pages = -(-window_tokens // _PAGE_SIZE)
    cache = allocate_kv_cache(spec, pages, _PAGE_SIZE, device, dtype)
    nats, count = 0.0, 0
    with one_thread(), torch.inference_mode():
        model = Transformer(spec, weights, select_kernels(device), window_tokens)
        for first in range(0, len(token_ids) - 1, window_tokens):
            window = torch.tensor(token_ids[first : first + window_tokens + 1])
            step = _one_prompt(window[:-1].int(), pages)
            logprobs = model.forward(step, cache).log_softmax(-1)
            nats -= float(logprobs.gather(1, window[1:, None]).sum())
            count += len(window) - 1
    return nats / count


def _one_prompt(tokens: torch.Tensor, pages: int) -> StepInputs:
    def int32(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    count = len(tokens)
    table = torch.stack([torch.arange(pages), torch.full((pages,), pages)]).int()
    return StepInputs(
        token_ids=tokens,
        positions=torch.arange(count).int(),
        rows=torch.zeros(count).int(),
        page_table=table,
        last_tokens=int32(0, 0),
        counters=torch.zeros(1024).int(),
        prefill=PrefillInputs(int32(0, count), int32(0), int32(0), int32(), int32()),
    )
