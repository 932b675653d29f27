"""Random weights of a model's shape, to measure speed and to test without a checkpoint."""

from __future__ import annotations

import math

import torch

from engine.core.model_spec import ModelSpec
from engine.models.weights import Weights, empty_weights, named_tensors

_BIAS_STD = 0.02
_NORM_SPREAD = 0.1


def dummy_weights(
    spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Random weights, drawn in place on the device, one kernel per tensor.

    Matrices are uniform with variance 1 / in_features, so that each keeps the size of what it
    multiplies, except that `o` and `down`, whose results are added to the residual stream, are
    smaller by sqrt(2 num_layers) (as in GPT-2), which holds the stream finite at any depth.

    Equal (spec, dtype, seed) give equal weights on one type of device; a CPU and a GPU draw
    differently.

    Raises:
        UnsupportedModelError: see `empty_weights`.
    """
    weights = empty_weights(spec, device, dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    residual = 1 / math.sqrt(2 * spec.num_layers)
    for path, tensor in named_tensors(weights):
        name = path.rpartition(".")[2]
        if name.endswith("norm"):
            tensor.uniform_(1 - _NORM_SPREAD, 1 + _NORM_SPREAD, generator=generator)
            continue
        bound = math.sqrt(3) * _std(name, tensor, residual)
        tensor.uniform_(-bound, bound, generator=generator)
    return weights


def _std(name: str, tensor: torch.Tensor, residual: float) -> float:
    if name.endswith("bias"):
        return _BIAS_STD
    std = 1 / math.sqrt(tensor.shape[-1])
    return std * residual if name in ("o", "down") else std
