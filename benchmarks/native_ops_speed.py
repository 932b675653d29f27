"""Times the native ops beside Triton's kernels and PyTorch's ops of the same functions.

    python benchmarks/native_ops_speed.py native_ops.json [--commit HASH]

Needs one GPU, g++, nvcc and half a minute. Of each op two times are taken: what a call adds to a
chain of calls that is replayed as a CUDA Graph, and what the host needs to launch one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from torch import Tensor
from torch.nn import functional

from engine.kernels.rms_norm import add_rms_norm_triton
from engine.kernels.silu_mul import silu_mul_triton
from engine.native import ops

TOKENS = (1, 64, 8192)
HIDDEN, INTERMEDIATE = 4096, 14336  # of Llama 3.1 8B
EPS = 1e-5
CHAIN = 20
REPLAYS = 20

Call = Callable[[], Tensor]


def norm_calls(tokens: int, device: torch.device) -> Mapping[str, Call]:
    """`add_rms_norm_` by implementation; each has tensors of its own."""

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        x, residual = (torch.randn(tokens, HIDDEN, device=device).bfloat16() for _ in range(2))
        return x, residual, torch.randn(HIDDEN, device=device).bfloat16()

    def torch_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        residual.add_(x)
        return functional.rms_norm(residual, (HIDDEN,), weight, EPS)

    compiled = torch.compile(torch_norm, dynamic=False)
    runs: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "native": lambda x, r, w: ops.add_rms_norm_(x, r, w, EPS),
        "triton": lambda x, r, w: add_rms_norm_triton(x, r, w, EPS),
        "torch": torch_norm,
        "torch.compile": compiled,
    }
    return {name: _bound(run, *inputs()) for name, run in runs.items()}


def gated_calls(tokens: int, device: torch.device) -> Mapping[str, Call]:
    """`silu_mul` by implementation."""
    gate_up = torch.randn(tokens, 2 * INTERMEDIATE, device=device).bfloat16()

    def torch_gated(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    compiled = torch.compile(torch_gated, dynamic=False)
    runs: Mapping[str, Callable[[Tensor], Tensor]] = {
        "native": ops.silu_mul,
        "triton": lambda g: silu_mul_triton(g, torch.bfloat16),
        "torch": torch_gated,
        "torch.compile": compiled,
    }
    return {name: _bound(run, gate_up) for name, run in runs.items()}


def _bound(run: Callable[..., Tensor], *tensors: Tensor) -> Call:
    return lambda: run(*tensors)


def time_call(call: Call) -> dict[str, float]:
    """Both times, us."""
    call()
    return {"chained_us": _chained_us(call), "host_us": _host_us(call)}


def _chained_us(call: Call) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CHAIN):
            call()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / CHAIN / REPLAYS


def _host_us(call: Call) -> float:
    """Of launching one; few enough that the queue never fills."""
    times = []
    for _ in range(REPLAYS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CHAIN):
            call()
        times.append(1e6 * (time.perf_counter() - begin) / CHAIN)
    torch.cuda.synchronize()
    return statistics.median(times)


def measure(device: torch.device) -> list[dict[str, Any]]:
    """A row per op, number of tokens and implementation."""
    rows = []
    for op, made in (("add_rms_norm", norm_calls), ("silu_mul", gated_calls)):
        for tokens in TOKENS:
            torch.manual_seed(0)
            for name, call in made(tokens, device).items():
                row = {"op": op, "tokens": tokens, "by": name, **time_call(call)}
                rows.append(row)
                print(row, flush=True)
    return rows


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    if ops.load() != "native":
        raise SystemExit("the ops were not built: g++, nvcc, ninja and a GPU are needed")
    device = torch.device("cuda")
    with torch.inference_mode():
        rows = measure(device)
    found = {
        "format": "native_ops/v1",
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": arguments.commit,
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
