"""Finds tilings of the linear layers where they stand: in the chain of a layer, without attention.

    python benchmarks/linear_chain.py out.json [--rows 1,8,32,128] [--seconds 100]

A layer by itself (`kernels_linear.py`) hides what its neighbours cost it: waiting for activations,
norming them, summing parts. Here the four products of a layer run in order on each other's results,
through several layers of weights, and one tiling after the other is changed as long as that helps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from measure_ceilings import capture, random_bf16, replay_seconds

from engine.kernels.gemv import GemvTiling, InputNorm, gemv
from engine.kernels.linear_hopper import HopperTiling, hopper_linear
from engine.kernels.linear_tilings import SMS, gemv_tiling, hopper_tiling, skinny_tiling
from engine.kernels.rms_norm import norm_triton
from engine.kernels.silu_mul import silu_mul_triton
from engine.kernels.skinny_linear import Tiling, skinny_linear

MODELS = {
    "Llama-3.1-8B": (4096, 6144, 4096, 14336, 8),
    "Qwen3-0.6B": (1024, 4096, 2048, 3072, 28),
}
EPS = 1e-5
Tilings = dict[str, Any]


def shapes_of(model: str) -> dict[str, tuple[int, int]]:
    """[out, in] of the four products of a layer."""
    hidden, qkv, width, mlp, _ = MODELS[model]
    return {
        "qkv": (qkv, hidden),
        "o": (hidden, width),
        "gate_up": (2 * mlp, hidden),
        "down": (hidden, mlp),
    }


def product(x: torch.Tensor, weight: torch.Tensor, tiling: Any, *, gated: bool = False) -> Any:
    """One product of several rows, as the tiling's kind says; None: cuBLAS."""
    if tiling is None:
        out = torch.nn.functional.linear(x, weight)
        return silu_mul_triton(out, x.dtype) if gated else out
    multiply = hopper_linear if isinstance(tiling, HopperTiling) else skinny_linear
    return multiply(x, weight, tiling, gated=gated)


class Chain:
    """Some layers of a model: hidden size, QKV rows, attention width, MLP width, layers."""

    def __init__(self, model: str, rows: int) -> None:
        hidden, _, width, _, layers = MODELS[model]
        self.model, self.rows, self.shapes = model, rows, shapes_of(model)
        self.layers = [
            {name: random_bf16(*shape) for name, shape in self.shapes.items()}
            for _ in range(layers)
        ]
        self.norm = random_bf16(hidden) + 1
        self.residual = random_bf16(rows, hidden)
        self.attended = random_bf16(rows, width)

    def default(self) -> Tilings:
        """The rules in force."""
        found: Tilings = {}
        for name, (n, k) in self.shapes.items():
            gated = name == "gate_up"
            features = n // 2 if gated else n
            if self.rows == 1:
                norm = name in ("qkv", "gate_up")
                found[name] = gemv_tiling(features, k, norm=norm, gated=gated)
            else:
                shape = (self.rows, features, k)
                hopper = hopper_tiling(*shape, gated=gated, whole=gated)
                found[name] = hopper or skinny_tiling(*shape, gated=gated, whole=gated)
        return found

    def run(self, tilings: Tilings) -> None:
        """One pass through all layers."""
        (self._single if self.rows == 1 else self._several)(tilings)

    def _single(self, tilings: Tilings) -> None:
        norm = InputNorm(self.norm, EPS)
        for w in self.layers:
            gemv(self.residual, w["qkv"], tilings["qkv"], norm=norm)
            gemv(self.attended, w["o"], tilings["o"], residual=self.residual)
            mid = gemv(self.residual, w["gate_up"], tilings["gate_up"], norm=norm, gated=True)
            gemv(mid, w["down"], tilings["down"], residual=self.residual)

    def _several(self, tilings: Tilings) -> None:
        pending = None
        for w in self.layers:
            normed = norm_triton(pending, self.residual, self.norm, EPS)
            product(normed, w["qkv"], tilings["qkv"])
            pending = product(self.attended, w["o"], tilings["o"])
            normed = norm_triton(pending, self.residual, self.norm, EPS)
            mid = product(normed, w["gate_up"], tilings["gate_up"], gated=True)
            pending = product(mid, w["down"], tilings["down"])

    def microseconds(self, tilings: Tilings) -> float:
        """Of one layer."""
        graph = capture(lambda: self.run(tilings))
        replay_seconds(graph, 2)
        seconds = min(replay_seconds(graph, 10) for _ in range(3))
        return seconds * 1e6 / len(self.layers)


def candidates(model: str, rows_in: int, name: str) -> list[Any]:
    """Tilings of one of the products."""
    n, k = shapes_of(model)[name]
    gated = name == "gate_up"
    if rows_in == 1:
        pairs = (
            (1, 512), (1, 1024), (1, 2048), (2, 512), (2, 1024), (2, 2048), (4, 512), (4, 1024),
            (8, 256), (8, 512), (4, 256), (2, 4096), (16, 256), (1, 4096),
        )  # fmt: skip
        return [
            GemvTiling(rows, inner, warps)
            for rows, inner in pairs
            for warps in (4, 8)
            if inner <= k and 4 <= rows * inner // (32 * warps) <= 64
        ]
    splits = (1,) if gated else (1, 2, 4, 8)
    skinny = [
        Tiling(rows, inner, split, stages, 4, prefetch)
        for rows in (16, 32, 64)
        for inner in (64, 128)
        for split in splits
        for stages in (3, 4, 6)
        for prefetch in (4, 8)
        if rows_in <= 64
        and inner * (rows * (2 if gated else 1) + max(16, rows_in)) * 2 * (stages - 1) < 220_000
        and 48 <= (n // (2 if gated else 1)) // rows * split <= 460
        and k // split // inner >= stages
    ]
    return [*skinny, *hopper_candidates(rows_in, n, k, gated=gated), None]


def hopper_candidates(rows: int, n: int, k: int, *, gated: bool) -> list[HopperTiling]:
    """Those that fill the GPU once or twice."""
    shares = [(-(-rows // 64), 1)]  # warp groups of a block, blocks that share weights
    if rows > 64:
        shares.append((-(-rows // 128), 2))
    widths = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
    splits = (1,) if gated else (1, 2, 3, 4, 5, 6, 8)
    found = []
    for features, split, (groups, cluster) in itertools.product(widths, splits, shares):
        tiling = HopperTiling(groups, features, cluster, split)
        waves = -(-n // features) * split * cluster / SMS
        filled = 0.6 < waves <= 1 or 1.4 < waves <= 2
        if filled and tiling.fits and k // split >= 192:
            found.append(tiling)
    return found


def compile_some(jobs: list[tuple[str, int, str, Any]]) -> None:
    """Leave binaries in Triton's cache."""
    for model, rows, name, tiling in jobs:
        n, k = shapes_of(model)[name]
        try:
            compile_one(rows, name, tiling, random_bf16(rows, k), random_bf16(n, k))
        except triton.runtime.errors.OutOfResources:
            continue  # it is reported where it is timed
    torch.cuda.synchronize()


def compile_one(rows: int, name: str, tiling: Any, x: torch.Tensor, w: torch.Tensor) -> None:
    """Run one product once."""
    gated = name == "gate_up"
    if rows > 1:
        product(x, w, tiling, gated=gated)
    elif name in ("o", "down"):
        gemv(x, w, tiling, residual=random_bf16(1, len(w)))
    else:
        gemv(x, w, tiling, norm=InputNorm(random_bf16(x.shape[1]), EPS), gated=gated)


def named(tiling: Any) -> list[Any]:
    """A tiling as JSON."""
    return ["cuBLAS"] if tiling is None else [type(tiling).__name__, *tiling]


def improve(chain: Chain, allowed: Callable[[], bool]) -> dict[str, Any]:
    """Change one tiling at a time, twice round."""
    best = chain.default()
    first = best_us = chain.microseconds(best)
    log = []
    for _ in range(2):
        for name in chain.shapes:
            for tiling in candidates(chain.model, chain.rows, name):
                if not allowed():
                    break
                try:
                    us = chain.microseconds({**best, name: tiling})
                except Exception as error:  # noqa: BLE001 - a candidate that does not fit is none
                    log.append([name, named(tiling), str(error).splitlines()[0][:60]])
                    continue
                log.append([name, named(tiling), us])
                if us < best_us * 0.997:
                    best_us, best = us, {**best, name: tiling}
    return {"default_us": first, "best_us": best_us, "log": log,
            "best": {name: named(tiling) for name, tiling in best.items()}}  # fmt: skip


def main() -> None:
    """Compile, search, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seconds", type=float, default=100)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    points = [(m, int(r)) for m in arguments.models.split(",") for r in arguments.rows.split(",")]
    jobs: dict[tuple[Any, ...], tuple[str, int, str, Any]] = {}
    for model, rows in points:
        for name in shapes_of(model):
            for tiling in candidates(model, rows, name):
                kind = name if rows == 1 else name == "gate_up"
                key = (rows == 1, max(16, rows), kind, tiling)  # what makes a binary
                jobs.setdefault(key, (model, rows, name, tiling))
    work = list(jobs.values())
    with multiprocessing.get_context("spawn").Pool(15) as pool:
        pool.map(compile_some, [work[i::45] for i in range(45)], chunksize=1)
    print(f"{len(work)} compiled in {time.perf_counter() - begin:.0f} s")
    results = []
    share = (arguments.seconds - (time.perf_counter() - begin)) / len(points)
    for model, rows in points:
        chain = Chain(model, rows)
        start = time.perf_counter()
        found = improve(chain, lambda start=start: time.perf_counter() - start < share)
        results.append({"model": model, "rows": rows, **found})
        print(
            f"{model} rows {rows}: {found['default_us']:.2f} -> {found['best_us']:.2f} us a layer"
        )
        for name, tiling in found["best"].items():
            print(f"    {name}: {' '.join(map(str, tiling))}")
        del chain
        torch.cuda.empty_cache()
    arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
