"""Rotary position embedding (arXiv:2104.09864): the table of cosines and sines.

Element j < D/2 of a head turns together with element j + D/2 ("rotate half", as the checkpoints of
Llama and its kin on the Hugging Face Hub are permuted), by position * frequency_j.
"""

from __future__ import annotations

import math

import torch

from engine.core.hf_config import RopeSpec


class UnsupportedRopeError(ValueError):
    """A rotary embedding whose angles are not a function of the position alone."""


def rope_table(
    rope: RopeSpec, head_dim: int, max_positions: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Cosines and sines of every position, each already times the attention factor.

    Computed in float64 and rounded once, so the table is the same on every device.

    Args:
        rope: kind and parameters.
        head_dim: D, even.
        max_positions: length of the table: the longest context that will be served, in tokens.
        device: where the table is wanted.

    Returns:
        float32[max_positions, D]: D/2 cosines, then D/2 sines.

    Raises:
        UnsupportedRopeError: a "dynamic" rope, or an odd head_dim.
    """
    positions = torch.arange(max_positions, dtype=torch.float64)
    angles = torch.outer(positions, rope_frequencies(rope, head_dim))
    table = torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor
    return table.to(torch.float32).to(device)


def rope_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Radians per token of each pair of elements, float64[D/2]. Raises as `rope_table`."""
    if head_dim % 2:
        raise UnsupportedRopeError(f"head_dim = {head_dim} is odd; rotation needs pairs")
    plain = _plain_frequencies(rope.theta, head_dim)
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / rope.factor
        case "llama3":
            return _llama3_frequencies(rope, plain)
        case "yarn":
            return _yarn_frequencies(rope, plain, head_dim)
    raise UnsupportedRopeError(
        f"rope kind {rope.kind!r} is not supported: its frequencies change with the length of each"
        " text, so that keys already in the cache would have to be rotated again"
        if rope.kind == "dynamic"
        else f"rope kind {rope.kind!r} is not known"
    )


def _plain_frequencies(theta: float, head_dim: int) -> torch.Tensor:
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def _llama3_frequencies(rope: RopeSpec, plain: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    turns = _original_length(rope) * plain / (2 * math.pi)  # within the original context
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _yarn_frequencies(rope: RopeSpec, plain: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN's "NTK by parts" (arXiv:2309.00071, section 3.2), with a ramp over the index."""
    first = _index_of_turns(rope, rope.beta_fast, head_dim)
    last = _index_of_turns(rope, rope.beta_slow, head_dim)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001  # an empty ramp becomes a step
    index = torch.arange(head_dim // 2, dtype=torch.float64)
    kept = 1 - ((index - first) / width).clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _index_of_turns(rope: RopeSpec, turns: float, head_dim: int) -> float:
    """Where, between the frequencies, one turns that often within the original context."""
    frequency = 2 * math.pi * turns / _original_length(rope)
    return -head_dim / 2 * math.log(frequency) / math.log(rope.theta)


def _original_length(rope: RopeSpec) -> int:
    if rope.original_max_position is None:
        raise UnsupportedRopeError(f"rope kind {rope.kind!r} needs original_max_position")
    return rope.original_max_position
