"""Finds the fastest tilings of the linear layers of a few rows, beside cuBLAS.

    python benchmarks/kernels_linear.py out.json [--seconds 200]

Each point is a CUDA Graph that runs one layer shape over weights that together exceed the L2 cache,
as consecutive kernels with programmatic dependent launch where ours have it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure_ceilings import capture, random_bf16, replay_seconds

from engine.kernels.skinny_linear import Tiling, gemv, skinny_linear

SHAPES = {
    "8b.qkv": (4096, 6144, False), "8b.o": (4096, 4096, False),
    "8b.gate_up": (4096, 28672, True), "8b.down": (14336, 4096, False),
    "8b.lm_head": (4096, 128256, False),
    "06b.qkv": (1024, 4096, False), "06b.o": (2048, 1024, False),
    "06b.gate_up": (1024, 6144, True), "06b.down": (3072, 1024, False),
    "06b.lm_head": (1024, 151936, False),
    "30b.qkv": (2048, 5120, False), "30b.o": (4096, 2048, False),
}  # fmt: skip
ROWS = (1, 8, 16, 32, 64)


def tilings(name: str, m: int) -> list[Tiling]:
    """Candidates for a shape."""
    k, n, gated = SHAPES[name]
    found = []
    splits = (1,) if gated or "lm_head" in name else (1, 2, 4, 8)
    if m == 1:
        for rows, inner, warps in (
            (1, 2048, 4), (1, 4096, 8), (2, 1024, 4), (2, 2048, 8), (4, 1024, 8), (4, 2048, 8),
            (4, 512, 4), (8, 512, 8), (8, 1024, 8), (2, 2048, 4), (1, 1024, 4), (16, 256, 4),
        ):  # fmt: skip
            for split in splits:
                if inner * split <= k and (n // rows) * split >= 128 and n // rows * split < 40000:
                    found.append(Tiling(rows, inner, split, 1, warps))
        return found
    for rows, inner, stages, split, per_sm in product(
        (16, 32, 64, 128), (64, 128), (3, 4, 6), splits, (0, 1, 2, 3, 4, 6)
    ):
        both = 2 if gated else 1
        tile_bytes = 2 * inner * (both * rows + max(16, m))
        shared = tile_bytes * (stages - 1 if stages > 3 else stages)
        if shared > 220_000 or k // split // inner < stages or rows * both > 256:
            continue
        tiles = 0
        programs = -(-n // rows) * split
        if per_sm:  # as many programs as fill every multiprocessor equally
            tiles = 132 * per_sm // split
            used = -(-n // tiles)
            if shared * per_sm > 225_000 or not 0.6 * rows < used <= rows:
                continue
            programs = -(-n // used) * split
            tiles = -(-n // used)
        elif 224_000 // shared * 132 < programs / 2.2 or programs < 110:
            continue
        if shared * min(8, -(-programs // 132)) < 60_000:
            continue
        warps = 4 if rows * both <= 128 else 8
        found.append(Tiling(rows, inner, split, stages, warps, 4, tiles))
    return found


def run(name: str, m: int, tiling: Tiling | None, x: torch.Tensor, weight: torch.Tensor):  # noqa: ANN201
    """One product; tiling None is cuBLAS."""
    if tiling is None:
        return torch.mm(x, weight.t())
    function = gemv if m == 1 else skinny_linear
    return function(x, weight, tiling, gated=SHAPES[name][2])


def precompile(jobs: list[tuple[str, int, Tiling]]) -> None:
    """Compile in this process, to leave binaries in Triton's cache."""
    for name, m, tiling in jobs:
        k, n, _ = SHAPES[name]
        try:
            weight = torch.empty(n, k, device="cuda", dtype=torch.bfloat16)
            run(name, m, tiling, torch.zeros(m, k, device="cuda", dtype=torch.bfloat16), weight)
        except Exception as error:  # noqa: BLE001, a candidate that does not compile is no candidate
            print("no:", name, m, tiling, str(error).splitlines()[-1][:80])
    torch.cuda.synchronize()


def main() -> None:
    """Compile, check, time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    arguments = parser.parse_args()
    begin = time.perf_counter()
    names, rows = arguments.shapes.split(","), [int(r) for r in arguments.rows.split(",")]
    jobs = [(name, m, t) for name in names for m in rows for t in tilings(name, m)]
    seen: dict[tuple, tuple] = {}
    for job in jobs:  # one of each binary
        key = (SHAPES[job[0]][2], max(16, job[1]) if job[1] > 1 else 1, job[2]._replace(split=0))
        seen.setdefault(key, job)
    unique = list(seen.values())
    context = multiprocessing.get_context("spawn")
    with context.Pool(15) as pool:
        pool.map(precompile, [unique[i::60] for i in range(60)], chunksize=1)
    print(f"{len(jobs)} candidates, {len(unique)} compiled, {time.perf_counter() - begin:.0f} s")
    results = []
    for name in names:
        k, n, gated = SHAPES[name]
        copies = max(2, min(64, -(-(1 << 28) // (2 * k * n))))
        weights = [random_bf16(n, k) for _ in range(copies)]
        for m in rows:
            x = random_bf16(m, k)
            want = x.double() @ weights[0].double().T
            if gated:
                gate, up = want.chunk(2, -1)
                want = torch.nn.functional.silu(gate) * up
            best: list[tuple[float, Tiling | None]] = []
            for tiling in [None, *tilings(name, m)]:
                if time.perf_counter() - begin > arguments.seconds:
                    break
                try:
                    out = run(name, m, tiling, x, weights[0])
                    if tiling is not None:
                        out = out.double() if out.ndim == 2 else out.double().sum(0)
                        error = ((out - want).norm() / want.norm()).item()
                        if not error < 1e-2:
                            print("WRONG", name, m, tiling, error)
                            continue
                    graph = capture(lambda t=tiling: [run(name, m, t, x, w) for w in weights])
                    replay_seconds(graph, 2)
                    seconds = min(replay_seconds(graph, 8) for _ in range(3)) / copies
                except Exception as error:  # noqa: BLE001
                    print("failed", name, m, tiling, str(error).splitlines()[-1][:90])
                    continue
                best.append((seconds * 1e6, tiling))
            best.sort(key=lambda pair: pair[0])
            cublas = next(us for us, tiling in best if tiling is None)
            results.append({
                "shape": name, "m": m, "bytes": 2 * k * n, "cublas_us": cublas,
                "best": [(us, t and t._asdict()) for us, t in best[:8]],
            })  # fmt: skip
            us, tiling = best[0]
            print(
                f"{name:12s} m={m:3d} cublas {cublas:7.2f} best {us:7.2f} us "
                f"{2 * k * n / us / 1e6:.2f} TB/s {tuple(tiling) if tiling else 'cublas'}"
                f" | 2nd {best[1][0]:.2f} {tuple(best[1][1]) if best[1][1] else 'cublas'}"
            )
            even = next(((us, tuple(t)) for us, t in best if t and t.tiles), 0)
            plain = next(((us, tuple(t)) for us, t in best if t and not t.tiles), 0)
            print(f"     filling {even} plain {plain}")
        del weights
        torch.cuda.empty_cache()
    arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
