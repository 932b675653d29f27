"""The optimizer: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers") replaces the momentum of a matrix
by the nearest semi-orthogonal matrix, found with five Newton-Schulz iterations. Matrices of one
shape are handled together, because one by one they would be thousands of tiny kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from demo_training.model import Decoder

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)  # Jordan's, fast rather than exact
_ITERATIONS: Final = 5
_MOMENTUM: Final = 0.95
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 0.003
_DECAY: Final = 0.01


def orthogonalized(matrices: Tensor) -> Tensor:
    """[N, rows, columns] with all singular values near 1."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).float()


class Optimizer:
    """Both optimizers, driven by one schedule.

    Args:
        model: whose parameters it moves.
        compiled: compile the orthogonalization.
    """

    def __init__(self, model: Decoder, *, compiled: bool) -> None:
        named = dict(model.layers.named_parameters())
        is_router = "gate.weight"
        matrices = [p for name, p in named.items() if p.ndim >= 2 and not name.endswith(is_router)]
        ids = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in ids]
        on_gpu = others[0].is_cuda
        self._adam = torch.optim.AdamW(
            others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=on_gpu
        )
        self._groups = [list(group) for group in _by_shape(matrices).values()]
        self._momenta = [[torch.zeros_like(p) for p in group] for group in self._groups]
        self._orthogonalized: Callable[[Tensor], Tensor] = (
            torch.compile(orthogonalized, dynamic=False) if compiled else orthogonalized
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Move all parameters by `share` of the full rates, and forget the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * share
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for parameters, momenta in zip(self._groups, self._momenta, strict=True):
            self._move(parameters, momenta, MUON_RATE * share)

    def _move(self, parameters: list[nn.Parameter], momenta: list[Tensor], rate: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # noqa: SLF001 - there is no other
        rows, columns = parameters[0].shape[-2:]
        stacked = torch.stack(ahead).view(-1, rows, columns)
        moves = self._orthogonalized(stacked) * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * _DECAY)
        moves = moves.view(len(parameters), *parameters[0].shape)
        torch._foreach_add_(parameters, list(moves.unbind()), alpha=-rate)
        for parameter in parameters:
            parameter.grad = None


def _by_shape(parameters: list[nn.Parameter]) -> dict[tuple[int, ...], list[nn.Parameter]]:
    groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(tuple(parameter.shape), []).append(parameter)
    return groups
