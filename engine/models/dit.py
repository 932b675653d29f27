"""A small diffusion transformer: the workload of many equal, short steps beside LLM decode.

DiT with adaLN-Zero (Peebles & Xie 2022, arXiv:2212.09748, section 3.2): patches of a latent image
go through transformer blocks whose norms are shifted, scaled and gated by the time step and the
class. Time steps are embedded as diffusers' `DiTTransformer2DModel` does it, to which
`tests/test_dit.py` holds this model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

_FREQUENCIES = 256  # sines and cosines of a time step
_LONGEST_PERIOD = 10_000.0
_EPS = 1e-6
_STD = 0.02  # of random weights: large enough that every path through a block matters

Group = TypeVar("Group", bound="_Tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class DitSpec:
    """The shape of a diffusion transformer.

    Attributes:
        hidden_size, num_layers, num_heads: of the transformer.
        input_size: pixels of a side of the latent image.
        patch_size: pixels of a side of a token.
        in_channels: of the latent image; the output has as many.
        num_classes: that an image can be of.
        mlp_ratio: width of the MLP over the hidden size.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    num_classes: int = 1000
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads) or self.input_size % self.patch_size:
            raise ValueError(f"{self}: heads and patches must divide what they are parts of")

    @property
    def side(self) -> int:
        """Tokens of a side of the image."""
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.side * self.side

    def flops_per_image(self) -> int:
        """Multiply-adds of one step, counted as two, of matrix products over all tokens."""
        hidden, tokens = self.hidden_size, self.num_tokens
        block = 2 * tokens * hidden * hidden * (4 + 2 * self.mlp_ratio)
        attention = 4 * tokens * tokens * hidden
        return self.num_layers * (block + attention + 12 * hidden * hidden)


DIT_S = DitSpec(hidden_size=384, num_layers=12, num_heads=6)
DIT_XL = DitSpec(hidden_size=1152, num_layers=28, num_heads=16)
SPECS = {"dit-s": DIT_S, "dit-xl": DIT_XL}
"""The smallest and the largest model of the paper, on latents of 32 x 32: 256 tokens an image."""


class _Tensors:
    """A dataclass of tensors, or of such dataclasses."""


@dataclass(frozen=True, slots=True)
class Linear(_Tensors):
    """`x @ weight.T + bias`: [N, H], [N]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., N]."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class DitBlock(_Tensors):
    """One block.

    Attributes:
        modulation: condition -> shift, scale and gate of attention, then of the MLP, 6 H.
        qkv: queries, keys and values, 3 H.
        out: of attention.
        up, down: of the MLP.
    """

    modulation: Linear
    qkv: Linear
    out: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DitWeights(_Tensors):
    """All weights.

    Attributes:
        patch: pixels of a patch, channel first -> H.
        time_in, time_out: the MLP over the time step's sines and cosines.
        classes: [num_classes, H].
        blocks: in order.
        final_modulation: condition -> shift and scale, 2 H.
        final: H -> pixels of a patch, channel last.
    """

    patch: Linear
    time_in: Linear
    time_out: Linear
    classes: Tensor
    blocks: tuple[DitBlock, ...]
    final_modulation: Linear
    final: Linear


class Dit:
    """A model ready to run.

    Args:
        spec: its shape.
        weights: on one device, of one dtype.
    """

    def __init__(self, spec: DitSpec, weights: DitWeights) -> None:
        self.spec, self.weights = spec, weights
        table = weights.classes
        half = torch.arange(_FREQUENCIES // 2, dtype=torch.float64)
        frequencies = torch.exp(-math.log(_LONGEST_PERIOD) * half / (len(half) - 1))
        # Angles need float32 whatever the dtype of the weights: bf16 cannot tell 999 from 1000.
        self._frequencies = frequencies.to(table.device, torch.promote_types(
            table.dtype, torch.float32))  # fmt: skip
        self._positions = _grid_positions(spec).to(table)

    def forward(self, latents: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        """The noise in images.

        Args:
            latents: [B, C, S, S].
            times: float[B], time steps.
            classes: int64[B].

        Returns:
            [B, C, S, S] in the dtype of the weights.
        """
        w = self.weights
        x = w.patch(_patches(latents, self.spec)) + self._positions
        condition = functional.silu(self._embed_time(times) + w.classes[classes])
        for block in w.blocks:
            x = self._block(block, x, condition)
        shift, scale = w.final_modulation(condition)[:, None].chunk(2, dim=-1)
        return _image(w.final(_modulated(x, shift, scale)), self.spec)

    def _embed_time(self, times: Tensor) -> Tensor:
        """[B] -> [B, H]."""
        angles = times[:, None].to(self._frequencies) * self._frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.weights.classes)
        return self.weights.time_out(functional.silu(self.weights.time_in(waves)))

    def _block(self, block: DitBlock, x: Tensor, condition: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        modulation = block.modulation(condition)[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = x + gate * self._attention(block, _modulated(x, shift, scale))
        hidden = functional.gelu(block.up(_modulated(x, mlp_shift, mlp_scale)), approximate="tanh")
        return x + mlp_gate * block.down(hidden)

    def _attention(self, block: DitBlock, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        heads = block.qkv(x).view(batch, tokens, 3, self.spec.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return block.out(mixed.transpose(1, 2).reshape(batch, tokens, hidden))


def random_weights(
    spec: DitSpec, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> DitWeights:
    """Weights drawn from a normal distribution, gates among them, so that no block is idle."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        # Drawn in float32, so that all dtypes get the same numbers.
        values = torch.randn(shape, generator=generator, device=device) * _STD
        return values.to(dtype)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(drawn(rows, columns), drawn(rows))

    hidden, width = spec.hidden_size, spec.mlp_ratio * spec.hidden_size
    pixels = spec.in_channels * spec.patch_size**2
    return DitWeights(
        patch=linear(hidden, pixels),
        time_in=linear(hidden, _FREQUENCIES),
        time_out=linear(hidden, hidden),
        classes=drawn(spec.num_classes, hidden),
        blocks=tuple(
            DitBlock(
                modulation=linear(6 * hidden, hidden), qkv=linear(3 * hidden, hidden),
                out=linear(hidden, hidden), up=linear(width, hidden), down=linear(hidden, width),
            )
            for _ in range(spec.num_layers)
        ),
        final_modulation=linear(2 * hidden, hidden),
        final=linear(pixels, hidden),
    )  # fmt: skip


def converted(group: Group, dtype: torch.dtype, device: torch.device | str = "cpu") -> Group:
    """The same weights in another dtype, on a device."""

    def one(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device, dtype)
        if isinstance(value, tuple):
            return tuple(one(part) for part in value)
        if isinstance(value, _Tensors):
            return converted(value, dtype, device)
        raise TypeError(f"no weights: {value!r}")

    made = {field.name: one(getattr(group, field.name)) for field in fields(group)}  # type: ignore[arg-type]
    return type(group)(**made)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then scale and shift that depend on the condition."""
    return functional.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


def _patches(latents: Tensor, spec: DitSpec) -> Tensor:
    """[B, C, S, S] -> [B, T, C p p], row by row."""
    batch, p, side = len(latents), spec.patch_size, spec.side
    cut = latents.view(batch, spec.in_channels, side, p, side, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, spec.num_tokens, -1)


def _image(tokens: Tensor, spec: DitSpec) -> Tensor:
    """[B, T, p p C] -> [B, C, S, S]."""
    batch, p, side = len(tokens), spec.patch_size, spec.side
    cut = tokens.view(batch, side, side, p, p, spec.in_channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, spec.in_channels, side * p, side * p)


def _grid_positions(spec: DitSpec) -> Tensor:
    """float64[T, H], fixed: half of it waves over the columns of the grid, half over its rows."""
    quarter = spec.hidden_size // 4
    frequencies = _LONGEST_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(spec.side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = waves.repeat(spec.side, 1), waves.repeat_interleave(spec.side, dim=0)
    return torch.cat([columns, rows], dim=-1)
