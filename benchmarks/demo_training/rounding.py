"""Round-to-nearest quantization of the matrices inside the layers, simulated: rounded and back.

What is measured is the loss of quality, not speed. The embedding, the norms and the routers stay as
they are, as in the usual weight-only formats.
"""

from __future__ import annotations

import copy
from typing import Final, NamedTuple

import torch
from torch import Tensor

from demo_training.model import Decoder


class Format(NamedTuple):
    """How weights are rounded.

    Attributes:
        bits: of a weight; symmetric, so int4 is -7 to 7.
        group: weights of a row that share a scale; 0: the whole row.
    """

    bits: int
    group: int


FORMATS: Final[dict[str, Format]] = {
    "int8, a scale per row": Format(8, 0),
    "int4, a scale per 128": Format(4, 128),
    "int4, a scale per 32": Format(4, 32),
    "int4, a scale per row": Format(4, 0),
}


def rounded(model: Decoder, form: Format) -> Decoder:
    """A copy of a model with its matrices rounded."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.layers.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("gate.weight"):
                parameter.copy_(_rounded(parameter, form))
    return changed


def _rounded(matrix: Tensor, form: Format) -> Tensor:
    largest = 2 ** (form.bits - 1) - 1
    groups = matrix.unflatten(-1, (-1, form.group or matrix.shape[-1]))
    scales = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
    return ((groups / scales).round().clamp(-largest, largest) * scales).view_as(matrix)
