"""Runs the CUDA C++ of the kernel lab and of the native ops on small, odd sizes, and checks it.

    compute-sanitizer --tool memcheck python benchmarks/sanitize_lab.py
    compute-sanitizer --tool racecheck python benchmarks/sanitize_lab.py

Needs a Hopper GPU; the ops are compiled if they have not been. On an H200 both tools said nothing
(2026-11-26).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from engine.kernels.lab.labs import LABS
from engine.kernels.lab.results import TOLERANCE
from engine.native import ops

NORM_SHAPES = ((1, 8), (3, 7), (5, 4096), (1, 70000))
GATED_SHAPES = ((3, 14), (5, 28672))


def run_ladders(device: torch.device) -> None:
    """Every rung in CUDA C++ at every small size."""
    for op, lab in LABS.items():
        for size in lab.small_sizes:
            case = lab.make(device, **size)
            for name, run in lab.rungs.items():
                if not name.startswith("cuda-"):
                    continue
                error = lab.error(case, run(case))
                if not error < TOLERANCE:
                    raise SystemExit(f"{op}/{name} at {size}: error {error}")
        print(op, "done", flush=True)


def run_ops(device: torch.device) -> None:
    """Both ops in both dtypes, with rows of vectors and rows that are none."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in NORM_SHAPES:
            x, residual = (torch.randn(*shape, device=device).to(dtype) for _ in range(2))
            ops.add_rms_norm_(x, residual, x[0].clone(), 1e-5)
        for shape in GATED_SHAPES:
            ops.silu_mul(torch.randn(*shape, device=device).to(dtype))
    torch.cuda.synchronize(device)
    print("ops done:", ops.load(), flush=True)


def main() -> None:
    """Both."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU")
    device = torch.device("cuda")
    torch.manual_seed(0)
    run_ladders(device)
    run_ops(device)


if __name__ == "__main__":
    main()
