"""Tiles of the mixture-of-experts kernels that `kernels_moe.py` tries, and their compilation."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

from engine.kernels.moe_configs import GroupedConfig, Tile
from engine.kernels.moe_grouped import down_grouped, gate_up_grouped
from engine.kernels.moe_pairs import moe_mlp_pairs
from engine.kernels.moe_routing import route_triton
from engine.kernels.moe_sort import sort_pairs_triton

DEVICE = "cuda"
WORKERS = 12
EXPERTS, TOP_K, FEATURES, WIDTH = 128, 8, 2048, 768
LAYERS = 4
EXPERT_BYTES = 2 * 3 * FEATURES * WIDTH

_DECODE_GATE_UP = [
    Tile(64, 128, 4, 3, swap=True), Tile(64, 128, 4, 4, swap=True), Tile(64, 64, 4, 4, swap=True),
    Tile(64, 64, 4, 5, swap=True), Tile(64, 64, 4, 6, swap=True), Tile(128, 64, 4, 4, swap=True),
    Tile(128, 64, 8, 4, swap=True), Tile(128, 128, 8, 3, swap=True),
    Tile(64, 64, 4, 4, swap=True, tma=False), Tile(64, 128, 4, 3, swap=True, tma=False),
]  # fmt: skip
_DECODE_DOWN = [
    Tile(64, 128, 4, 4, swap=True), Tile(64, 256, 4, 3, swap=True), Tile(128, 64, 4, 4, swap=True),
    Tile(128, 64, 4, 6, swap=True), Tile(128, 128, 4, 3, swap=True),
    Tile(128, 128, 8, 4, swap=True), Tile(256, 64, 8, 4, swap=True),
    Tile(128, 128, 4, 3, swap=True, tma=False),
]  # fmt: skip
CANDIDATES: dict[int, tuple[list[Tile], list[Tile]]] = {
    16: (_DECODE_GATE_UP, _DECODE_DOWN),
    32: (_DECODE_GATE_UP, _DECODE_DOWN),
    64: (
        [Tile(64, 64, 4, 3), Tile(64, 64, 4, 4), Tile(64, 128, 4, 3, swap=True),
         Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 4),
         Tile(128, 64, 8, 4, swap=True), Tile(128, 64, 8, 4, tma=False)],
        [Tile(128, 64, 4, 3), Tile(128, 64, 4, 4), Tile(128, 64, 4, 4, swap=True),
         Tile(128, 128, 4, 3), Tile(128, 64, 8, 4), Tile(256, 64, 8, 3), Tile(256, 64, 8, 4)],
    ),
    128: (
        [Tile(64, 64, 4, 3), Tile(64, 64, 8, 3), Tile(64, 64, 8, 4), Tile(128, 64, 8, 3),
         Tile(128, 64, 8, 4), Tile(128, 64, 8, 4, swap=True), Tile(128, 64, 8, 4, group=4)],
        [Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 4), Tile(128, 128, 8, 3),
         Tile(256, 64, 8, 3), Tile(256, 64, 8, 4), Tile(256, 64, 8, 4, group=4)],
    ),
}  # fmt: skip
HALVES_FROM = 128  # rows of a block from which on halves of blocks are tried
PAIR_TILES = [
    (gate_up, down, warps)
    for gate_up in (4096, 8192, 16384)
    for down in (4096, 8192, 16384)
    for warps in (4, 8)
]


class Layer(NamedTuple):
    """Weights and the router's logits of one layer."""

    gate_up: torch.Tensor
    down: torch.Tensor
    logits: torch.Tensor


def make_layers(count: int, tokens: int) -> list[Layer]:
    """Random layers; logits for the largest batch."""

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_(0.0, scale)

    return [
        Layer(
            normal(EXPERTS, 2 * WIDTH, FEATURES, scale=FEATURES**-0.5),
            normal(EXPERTS, FEATURES, WIDTH, scale=WIDTH**-0.5),
            normal(tokens, EXPERTS, scale=1.0),
        )
        for _ in range(count)
    ]


# Compilation, in processes that only fill Triton's cache on disk


def compile_jobs() -> list[tuple[str, Any]]:
    """Everything that will be measured."""
    jobs: list[tuple[str, Any]] = [("pairs", tiles) for tiles in PAIR_TILES]
    for block_m, (gate_up, down) in CANDIDATES.items():
        jobs += [("gate_up", (block_m, tile)) for tile in gate_up]
        jobs += [("down", (block_m, tile)) for tile in down]
    return jobs


def compile_some(jobs: list[tuple[str, Any]]) -> list[str]:
    """Run each job once; what failed, and how."""
    x = torch.zeros(32, FEATURES, device=DEVICE, dtype=torch.bfloat16)
    layer = make_layers(1, 32)[0]
    weights, experts = route_triton(layer.logits, TOP_K, True)
    failures = []
    for kind, job in jobs:
        try:
            compile_one(kind, job, x, layer, weights, experts)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - a candidate that fails is a result
            failures.append(f"{kind} {job}: {type(error).__name__} {str(error)[-200:]}")
    return failures


def compile_one(
    kind: str, job: Any, x: torch.Tensor, layer: Layer, weights: torch.Tensor, experts: torch.Tensor
) -> None:
    """Run one candidate."""
    if kind == "pairs":
        moe_mlp_pairs(x[:1], layer.gate_up, layer.down, weights[:1], experts[:1], *job)
        return
    block_m, tile = job
    config = GroupedConfig(block_m, tile, tile, halves=block_m >= HALVES_FROM)
    pairs = sort_pairs_triton(experts, EXPERTS, block_m)
    if kind == "gate_up":
        gate_up_grouped(x, layer.gate_up, pairs, TOP_K, config)
    else:
        hidden = torch.zeros(experts.numel(), WIDTH, device=DEVICE, dtype=torch.bfloat16)
        down_grouped(hidden, layer.down, weights, pairs, config)


def compile_all() -> list[str]:
    """Compile every candidate, on many cores."""
    jobs = compile_jobs()
    workers = max(1, min(WORKERS, (os.cpu_count() or 2) - 2))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        parts = pool.map(compile_some, [jobs[i::workers] for i in range(workers)])
        return [failure for part in parts for failure in part]


def short(tile: Tile) -> str:
    """A tile in few letters."""
    marks = ("s" if tile.swap else "") + ("" if tile.tma else "p")
    group = f"g{tile.group}" if tile.group > 1 else ""
    return f"{tile.block_n}x{tile.block_k}w{tile.warps}n{tile.stages}{marks}{group}"


def block_rows(tokens: int) -> list[int]:
    """Sizes of blocks worth trying, given how many tokens an expert gets."""
    mean = tokens * TOP_K / EXPERTS
    return [m for m in CANDIDATES if min(mean / 2, 64) <= m <= max(16, 4 * mean)]
