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
    """

    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    tma: bool = True
    group: int = 1


@dataclass(frozen=True, slots=True)
class GroupedConfig:
    """Rows of a block, and the tiles of both GEMMs.

    Attributes:
        block_m: rows of a block.
        gate_up: tile of the first GEMM.
        down: tile of the second.
        halves: blocks that are at most half full are computed as blocks of half the rows.
    """

    block_m: int
    gate_up: Tile
    down: Tile
    halves: bool = False


# Rows of a block -> tiles. Up to 32 rows time is the streaming of weights; from 64 on, arithmetic.
CONFIGS = {
    16: GroupedConfig(16, Tile(64, 128, 4, 4, swap=True), Tile(64, 128, 4, 4, swap=True)),
    32: GroupedConfig(32, Tile(64, 128, 4, 4, swap=True), Tile(64, 128, 4, 4, swap=True)),
    64: GroupedConfig(64, Tile(64, 128, 4, 3, swap=True), Tile(128, 64, 4, 4)),
    128: GroupedConfig(128, Tile(128, 64, 8, 4), Tile(256, 64, 8, 4), halves=True),
}
HEADROOM = 1.5  # a block holds this many times the mean number of an expert's tokens
LARGE_EXPERT = 16 << 20  # weights of gate and up; of larger ones the L2 cache holds too few
LARGE_GROUP = 8


def grouped_config(pairs: int, num_experts: int, features: int, width: int) -> GroupedConfig:
    """Tiles for `pairs` (token, expert) pairs over experts of [2 `width`, `features`] weights."""
    want = HEADROOM * pairs / num_experts
    block_m = next((rows for rows in CONFIGS if rows >= want), max(CONFIGS))
    config = CONFIGS[block_m]
    if block_m == max(CONFIGS) and 2 * features * width > LARGE_EXPERT:
        gate_up, down = (replace(t, group=LARGE_GROUP) for t in (config.gate_up, config.down))
        config = replace(config, gate_up=gate_up, down=down)
    return config
