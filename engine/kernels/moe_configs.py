"""Sizes of tiles of the grouped expert GEMMs, by how many tokens an expert gets."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Tile:
    """How one of the two grouped GEMMs is cut up.

    Attributes:
        block_n: output features of a tile (for gate and up: as many of each).
        block_k: inner features of a step.
        warps: warps of a program.
        stages: steps of which weights are on their way at once.
        swap: weights are the left operand of the product.
        tma: weights (and the contiguous activations of down) come through the TMA unit.
        group: blocks of rows that take turns at the same weights; more than 1 pays where an expert
            has many blocks and weights larger than the L2 cache.
        prefetch: lines of 128 bytes of each row of weights to ask for before the kernel's inputs
            are there (down only); a power of two, or 0.
    """

    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    tma: bool = True
    group: int = 1
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class GroupedConfig:
    """Rows of a block, and the tiles of both GEMMs."""

    block_m: int
    gate_up: Tile
    down: Tile


# Rows of a block -> tiles. Up to 32 rows time is the streaming of weights; from 64 on, arithmetic.
CONFIGS = {
    16: (Tile(64, 128, 4, 3, swap=True), Tile(128, 128, 4, 3, swap=True, prefetch=4)),
    32: (Tile(64, 128, 4, 3, swap=True), Tile(128, 128, 4, 3, swap=True, prefetch=4)),
    64: (Tile(128, 64, 8, 4), Tile(128, 64, 4, 4, prefetch=4)),
    128: (Tile(128, 64, 8, 4), Tile(256, 64, 8, 4)),
}
HEADROOM = 1.5  # a block holds this many times the mean number of an expert's tokens
LARGE_EXPERT = 16 << 20  # weights of gate and up; of larger ones the L2 cache holds too few
LARGE_GROUP = 8


def grouped_config(pairs: int, num_experts: int, features: int, width: int) -> GroupedConfig:
    """Tiles for `pairs` (token, expert) pairs over experts of [2 `width`, `features`] weights."""
    want = HEADROOM * pairs / num_experts
    block_m = next((rows for rows in CONFIGS if rows >= want), max(CONFIGS))
    gate_up, down = CONFIGS[block_m]
    if block_m == max(CONFIGS) and 2 * features * width > LARGE_EXPERT:
        gate_up, down = (replace(tile, group=LARGE_GROUP) for tile in (gate_up, down))
    return GroupedConfig(block_m, gate_up, down)
