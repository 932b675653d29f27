"""How busy each expert is on held-out text, over all of it and in steps of 128 tokens."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from demo_training.model import Decoder, mixed_precision
from demo_training.training import Data

STEP_TOKENS: Final = 128
_WINDOWS: Final = 64
_WINDOW_TOKENS: Final = 1024


@torch.no_grad()
def chosen_experts(model: Decoder, data: Data) -> NDArray[np.uint8]:
    """uint8[layers, tokens, k]: the experts of consecutive held-out tokens."""
    length = min(_WINDOW_TOKENS, len(data.held_out) - 1)
    layers: list[list[NDArray[np.uint8]]] = [[] for _ in model.layers]
    for window in range(min(_WINDOWS, len(data.held_out) // length)):
        tokens = data.held_out[window * length : (window + 1) * length].long()[None]
        with mixed_precision(tokens.device):
            _, routings = model.hidden(tokens)
        for layer, routing in zip(layers, routings, strict=True):
            layer.append(routing.experts.to(torch.uint8).cpu().numpy())
    return np.stack([np.concatenate(layer) for layer in layers])


def load_statistics(experts: NDArray[np.uint8], num_experts: int) -> dict[str, Any]:
    """Load by expert, its unevenness and entropy, for each layer.

    `max_over_mean` is 1 where all experts are equally busy; `entropy_bits` is then log2(E). Those
    of steps are medians and 90th percentiles over steps of 128 tokens.
    """
    layers = [_statistics(layer, num_experts) for layer in experts]
    return {"step_tokens": STEP_TOKENS, "tokens": experts.shape[1], "layers": layers}


def _statistics(experts: NDArray[np.uint8], num_experts: int) -> dict[str, Any]:
    counts = np.bincount(experts.reshape(-1), minlength=num_experts)
    share = counts / counts.sum()
    busy = share[share > 0]
    steps = experts[: len(experts) // STEP_TOKENS * STEP_TOKENS].reshape(-1, STEP_TOKENS, 2)
    by_step = np.stack([np.bincount(s.reshape(-1), minlength=num_experts) for s in steps])
    peaks = by_step.max(1) / by_step.mean(1)
    return {
        "counts": counts.tolist(),
        "max_over_mean": float(share.max() * num_experts),
        "entropy_bits": float(-(busy * np.log2(busy)).sum()),
        "step_max_over_mean_p50": float(np.percentile(peaks, 50)),
        "step_max_over_mean_p90": float(np.percentile(peaks, 90)),
    }
