"""Times the mixture-of-experts kernels on one GPU, and looks for the best tiles; 100 seconds.

    python benchmarks/kernels_moe.py moe.json [--seconds 100] [--tokens 1,32]

Layers of Qwen3-30B-A3B (128 experts of 768, hidden size 2048, 8 per token), bf16, random routing,
which is nearly uniform. Several layers take turns, so that no weights are found in the L2 cache.
Candidates are compiled by many processes first. Every result is compared with fp32 arithmetic; a
wrong one is reported and not timed.

The floor is the larger of (weights of experts touched) / (copy bandwidth of this GPU) and
FLOPs / 700 TFLOP/s. "chain" is routing and everything after it up to the norm that adds the result
to the residual stream, per layer, in one CUDA Graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure_ceilings import (
    Clock,
    capture,
    environment,
    measure_bandwidth,
    replay_seconds,
    warm_up,
)
from moe_candidates import (
    CANDIDATES,
    DEVICE,
    EXPERT_BYTES,
    EXPERTS,
    FEATURES,
    HALVES_FROM,
    LAYERS,
    PAIR_TILES,
    TOP_K,
    WIDTH,
    Layer,
    block_rows,
    compile_all,
    make_layers,
    short,
)

from engine.kernels.moe_configs import GroupedConfig, Tile, grouped_config
from engine.kernels.moe_experts import moe_mlp_reference, moe_mlp_triton
from engine.kernels.moe_grouped import (
    down_grouped,
    gate_up_grouped,
    moe_mlp_grouped,
)
from engine.kernels.moe_grouped_mm import moe_mlp_grouped_mm
from engine.kernels.moe_pairs import moe_mlp_pairs
from engine.kernels.moe_routing import route_triton
from engine.kernels.moe_sort import sort_pairs_triton
from engine.kernels.parts import sum_parts
from engine.kernels.rms_norm import norm_triton

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)
MOST_PAIR_TOKENS = 32
TOLERANCE = 8e-3


def seconds_of(work: Callable[[], None]) -> float:
    """GPU seconds of one call: median of three groups of graph replays."""
    graph = capture(work)
    replay_seconds(graph, 1)
    replays = max(2, min(500, int(0.006 / replay_seconds(graph, 1))))
    return statistics.median(replay_seconds(graph, replays) for _ in range(3))


def per_layer_us(layers: list[Layer], call: Callable[[int, Layer], object]) -> float:
    """Microseconds of `call(i, layer)`, averaged over the layers in turn."""

    def work() -> None:
        for i, layer in enumerate(layers):
            call(i, layer)

    return seconds_of(work) / len(layers) * 1e6


class Batch:
    """One number of tokens: inputs, routing of each layer, the floor, and results so far."""

    def __init__(self, tokens: int, layers: list[Layer], copy_tb_s: float) -> None:
        self.tokens, self.layers = tokens, layers
        self.x = torch.randn(tokens, FEATURES, device=DEVICE).to(torch.bfloat16)
        self.residual = torch.zeros_like(self.x)
        self.norm = torch.ones(FEATURES, device=DEVICE, dtype=torch.bfloat16)
        self.logits = [layer.logits[:tokens].contiguous() for layer in layers]
        self.routing = [route_triton(logits, TOP_K, True) for logits in self.logits]
        touched = statistics.mean(len(experts.unique()) for _, experts in self.routing)
        flops = 6 * tokens * TOP_K * FEATURES * WIDTH
        self.floor_us = max(touched * EXPERT_BYTES / copy_tb_s / 1e6, flops / 700e6)
        first = layers[0]
        self.expected = moe_mlp_reference(
            self.x.float(), first.gate_up.float(), first.down.float(), *self.routing[0]
        )
        self.result: dict[str, Any] = {
            "tokens": tokens, "experts_touched": touched, "floor_us": self.floor_us,
            "tflop": flops / 1e12, "gate_up": [], "down": [], "chains": [],
        }  # fmt: skip

    def chain(self, name: str, run: Callable[..., torch.Tensor]) -> float:
        """Time of routing and `run`, after a check of its result; infinity if it is wrong."""
        first = self.layers[0]
        try:
            out = run(self.x, first.gate_up, first.down, *self.routing[0])
            out = sum_parts(out)
            error = ((out - self.expected).norm() / self.expected.norm()).item()
            if not error < TOLERANCE:
                self.result["chains"].append({"name": name, "wrong": error})
                return float("inf")
            us = per_layer_us(
                self.layers,
                lambda i, layer: norm_triton(
                    run(
                        self.x, layer.gate_up, layer.down,
                        *route_triton(self.logits[i], TOP_K, True),
                    ),
                    self.residual, self.norm, 1e-6,
                ),
            )  # fmt: skip
        except Exception as failure:  # noqa: BLE001 - one candidate's failure is a result
            self.result["chains"].append({"name": name, "failed": str(failure)[-200:]})
            return float("inf")
        self.result["chains"].append(
            {"name": name, "us": us, "percent": 100 * self.floor_us / us, "error": error}
        )
        return us

    def time_grouped(self, clock: Clock, block_m: int) -> None:
        """The best of each GEMM's candidates by itself, then both in a chain."""
        pairs = [sort_pairs_triton(experts, EXPERTS, block_m) for _, experts in self.routing]
        gate_ups, downs = CANDIDATES[block_m]

        def gate_up(tile: Tile) -> Callable[[int, Layer], object]:
            config = GroupedConfig(block_m, tile, tile, halves=block_m >= HALVES_FROM)
            return lambda i, layer: gate_up_grouped(self.x, layer.gate_up, pairs[i], TOP_K, config)

        hidden = gate_up(gate_ups[0])(0, self.layers[0])

        def down(tile: Tile) -> Callable[[int, Layer], object]:
            config = GroupedConfig(block_m, tile, tile, halves=block_m >= HALVES_FROM)
            return lambda i, layer: down_grouped(
                hidden, layer.down, self.routing[i][0], pairs[i], config
            )

        best_gate_up = self.best(clock, "gate_up", block_m, gate_ups, gate_up)
        best_down = self.best(clock, "down", block_m, downs, down)
        if best_gate_up is None or best_down is None:
            return
        for halves in {False, block_m >= HALVES_FROM}:
            config = GroupedConfig(block_m, best_gate_up, best_down, halves)
            name = f"M{block_m}{'h' * halves} {short(best_gate_up)} {short(best_down)}"
            self.chain(name, lambda *operands, c=config: moe_mlp_grouped(*operands, config=c))

    def best(
        self,
        clock: Clock,
        stage: str,
        block_m: int,
        tiles: list[Tile],
        call: Callable[[Tile], Callable[[int, Layer], object]],
    ) -> Tile | None:
        """The quickest of `tiles`, all of which are noted."""
        timed = []
        for tile in tiles:
            point = {"block_m": block_m, **asdict(tile)}
            if not clock.allows(f"{self.tokens} {stage} M{block_m} {short(tile)}"):
                continue
            try:
                us = per_layer_us(self.layers, call(tile))
            except Exception as error:  # noqa: BLE001 - one candidate's failure is a result
                self.result[stage].append({**point, "failed": str(error)[-200:]})
                continue
            self.result[stage].append({**point, "us": us})
            timed.append((us, len(timed), tile))
        return min(timed)[2] if timed else None

    def time_small_kernels(self) -> None:
        """Routing and sorting by themselves."""
        config = grouped_config(self.tokens * TOP_K, EXPERTS, FEATURES, WIDTH)
        experts = [experts for _, experts in self.routing]
        layers = self.layers * 5
        self.result["small_us"] = {
            "route": per_layer_us(
                layers, lambda i, _: route_triton(self.logits[i % LAYERS], TOP_K, True)
            ),
            "sort": per_layer_us(
                layers, lambda i, _: sort_pairs_triton(experts[i % LAYERS], EXPERTS, config.block_m)
            ),
        }


def time_pairs(batch: Batch, tiles: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Time the path for pairs with each of `tiles`; the best first."""
    timed = []
    for tile in tiles:
        name = "pairs " + "/".join(map(str, tile))
        us = batch.chain(name, lambda *operands, t=tile: moe_mlp_pairs(*operands, *t))
        timed.append((us, tile))
    return [tile for _, tile in sorted(timed)]


def measure(seconds: float, numbers: list[int], commit: str | None) -> dict[str, Any]:
    """Everything, for each of these numbers of tokens."""
    torch.manual_seed(0)
    clock = Clock(seconds)
    start = time.perf_counter()
    failures = compile_all()
    compiled = time.perf_counter() - start
    warm_up(2.0)
    result: dict[str, Any] = {"schema": "kernels_moe/v1", **environment(commit)}
    result |= {"compile_seconds": compiled, "compile_failures": failures}
    result |= measure_bandwidth()
    torch.cuda.empty_cache()
    layers = make_layers(LAYERS, max(numbers))
    pair_tiles, batches = PAIR_TILES, []
    for tokens in numbers:
        if not clock.allows(f"{tokens} tokens"):
            continue
        batch = Batch(tokens, layers, result["copy_tb_s"])
        batches.append(batch.result)
        batch.chain("default", moe_mlp_triton)
        if tokens <= MOST_PAIR_TOKENS:
            pair_tiles = time_pairs(batch, pair_tiles)[:3]
        batch.time_small_kernels()
        for block_m in block_rows(tokens):
            batch.time_grouped(clock, block_m)
        if tokens >= 64 and clock.allows(f"{tokens} grouped_mm"):
            batch.chain("grouped_mm", moe_mlp_grouped_mm)
    return {**result, "batches": batches, "skipped": clock.skipped}


def print_table(result: dict[str, Any]) -> None:
    """The figures at a glance."""
    print(f"{result['gpu']}, torch {result['torch']}, triton {result['triton']}", end="; ")
    print(f"copy {result['copy_tb_s']:.2f} TB/s, compiled in {result['compile_seconds']:.0f} s")
    for failure in result["compile_failures"]:
        print("FAILED", failure)
    for batch in result["batches"]:
        small = ", ".join(f"{k} {v:.1f}" for k, v in batch["small_us"].items())
        print(f"T={batch['tokens']}: floor {batch['floor_us']:.1f} us; {small}")
        for stage in ("gate_up", "down"):
            for rows in CANDIDATES:
                timed = [p for p in batch[stage] if p["block_m"] == rows and "us" in p]
                timed.sort(key=lambda point: point["us"])
                fields = ("block_n", "block_k", "warps", "stages", "swap", "tma", "group")
                tiles = (Tile(**{k: p[k] for k in fields}) for p in timed[:3])
                best = ", ".join(
                    f"{short(t)} {p['us']:.1f}" for t, p in zip(tiles, timed, strict=False)
                )
                if best:
                    print(f"  {stage} M{rows}: {best}")
        bad = [chain for chain in batch["chains"] if "us" not in chain]
        good = sorted((c for c in batch["chains"] if "us" in c), key=lambda c: c["us"])
        shown = good[:3] + [c for c in good[3:] if c["name"] in {"default", "grouped_mm"}]
        for chain in bad + shown:
            print("  ", {k: round(v, 4) if k != "name" else v for k, v in chain.items()}
                  if "failed" not in chain else chain)  # fmt: skip
    if result["skipped"]:
        print(f"no time left for {len(result['skipped'])} points")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description="Times the mixture-of-experts kernels.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--commit")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    arguments = parser.parse_args()
    tokens = [int(number) for number in arguments.tokens.split(",")]
    result = measure(arguments.seconds, tokens, arguments.commit)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)


if __name__ == "__main__":
    main()
