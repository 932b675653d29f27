"""Random weights of a model's shape, to measure speed and to test without a checkpoint."""

from __future__ import annotations

import math

import torch

from engine.core.model_spec import ModelSpec
from engine.models.weights import MoeMlp, Weights, empty_weights, named_tensors

_BIAS_STD = 0.02
_NORM_SPREAD = 0.1
_MARKED = 8  # at most one of so many numbers of the residual stream marks tokens for routers
_UNMARKED_SHARE = 1 / 16  # of what routers read besides


def dummy_weights(
    spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Random weights, drawn in place on the device, one kernel per tensor.

    Matrices are uniform with variance 1 / in_features, so that each keeps the size of what it
    multiplies, except that `o` and `down`, whose results are added to the residual stream, are
    smaller by sqrt(2 num_layers) (as in GPT-2), which holds the stream finite at any depth.

    Routers choose by token, each layer otherwise. With nothing but chance attention makes the
    tokens of a text alike, and after some layers a long prompt would go to a third of 128 experts:
    no trained router does so, and steps would read too few weights. So embeddings begin with a
    random mark of their token, to which no layer adds, which routers read above all, and the output
    does not see.

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
    if spec.moe is not None:
        _route_by_token(weights, min(spec.moe.num_experts, spec.hidden_size // _MARKED), generator)
    return weights


def _route_by_token(weights: Weights, marks: int, generator: torch.Generator) -> None:
    """Let so many numbers of the residual stream be what routers go by."""
    bound = math.sqrt(3)
    weights.embed[:, :marks].uniform_(-bound, bound, generator=generator)
    weights.final_norm[:marks] = 0
    for layer in weights.layers:
        layer.o[:marks] = 0
        if layer.o_bias is not None:
            layer.o_bias[:marks] = 0
        layer.mlp.down[..., :marks, :] = 0
        if isinstance(layer.mlp, MoeMlp):
            router = layer.mlp.router
            router.mul_(_UNMARKED_SHARE)
            most = bound / math.sqrt(marks)
            router[:, :marks].uniform_(-most, most, generator=generator)


def _std(name: str, tensor: torch.Tensor, residual: float) -> float:
    if name.endswith("bias"):
        return _BIAS_STD
    std = 1 / math.sqrt(tensor.shape[-1])
    return std * residual if name in ("o", "down") else std
