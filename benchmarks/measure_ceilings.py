"""Measures what one GPU reaches, as the analytic cost model wants it; within about 90 seconds.

    python benchmarks/measure_ceilings.py ceilings.json [--seconds 90]

Needs torch and triton and one NVIDIA GPU. Writes a JSON file and prints a short table:

    copy, read      bandwidth of a large copy (read + write) and of a pure read
    gemm            bf16 GEMMs of Llama-3.1-8B, m = 1 .. 8192 rows, weights never in the L2 cache
    layer           its four GEMMs in turn, in one CUDA Graph: how fast a decode step reads weights
    attention       causal prefill attention through torch, per back end
    launch          CPU time of an eager launch, GPU time of a CUDA Graph node
    small_kernels   norm and activation kernels as graph nodes: gap plus shortest duration

GPU times are medians over groups of CUDA Graph replays; points without time left are "skipped".
"""

# ruff: noqa: ANN001, ANN202 - Triton kernels take device pointers, which have no type here

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel

# (name, k, n): x[m, k] @ w[n, k].T
SHAPES = (
    ("qkv", 4096, 6144),
    ("o", 4096, 4096),
    ("gate_up", 4096, 28672),
    ("down", 14336, 4096),
    ("lm_head", 4096, 128256),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
LAYER_ROWS = (1, 8, 16, 32, 64, 128, 256, 512)
LAYERS = 16
ROTATED_BYTES = 1 << 30  # of weights that a measurement cycles through: 17 x the L2 of an H200
STATE = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
GROUPS = 5
GROUP_SECONDS = 0.015


@triton.jit
def _read(x, out, n, block: tl.constexpr):
    program = tl.program_id(0)
    total = tl.zeros((block,), tl.float32)
    for start in range(program * block, n, tl.num_programs(0) * block):
        index = start + tl.arange(0, block)
        total += tl.load(x + index, mask=index < n, other=0.0)
    tl.store(out + program, tl.sum(total))


@triton.jit
def _copy(x, out, n, block: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(out + index, tl.load(x + index, mask=index < n, other=0.0), mask=index < n)


@triton.jit
def _add_rms_norm(x, residual, weight, out, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    total = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row * width + column, total, mask=inside)
    scale = tl.rsqrt(tl.sum(total * total) / width + 1e-5)
    scaled = total * scale * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * width + column, scaled, mask=inside)


@triton.jit
def _silu_and_mul(gate_up, out, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0)
    tl.store(out + row * width + column, gate * tl.sigmoid(gate) * up, mask=inside)


class Clock:
    """What of the time budget is left, and what was skipped for lack of it."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.perf_counter() + seconds
        self.skipped: list[str] = []

    def allows(self, point: str) -> bool:
        """Whether to measure `point`; notes it otherwise."""
        if time.perf_counter() < self.deadline:
            return True
        self.skipped.append(point)
        return False


def capture(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`work` as a CUDA Graph, after two runs that compile and tune whatever it calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_seconds(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """GPU seconds of one replay, averaged over `replays` in a row."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(replays):
        graph.replay()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / replays


def seconds_of(work: Callable[[], None]) -> float:
    """GPU seconds of one call of `work`: median of GROUPS groups of graph replays."""
    graph = capture(work)
    replay_seconds(graph, 1)
    replays = max(1, min(2000, int(GROUP_SECONDS / replay_seconds(graph, 1))))
    return statistics.median(replay_seconds(graph, replays) for _ in range(GROUPS))


def random_bf16(*shape: int) -> torch.Tensor:
    """Small random values: clocks depend on data, and zeros run too fast."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02


def measure_bandwidth() -> dict[str, float]:
    """TB/s of a copy (read + write) and of a pure read of 2 GiB.

    The copy is a kernel: in a CUDA Graph `Tensor.copy_` becomes a memcpy node, which the copy
    engine may run at little more than half the bandwidth.
    """
    count = 1 << 29
    source, target = torch.randn(count, device="cuda"), torch.empty(count, device="cuda")
    programs = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    sums = torch.empty(programs, device="cuda")
    grid = (count // 4096,)
    copy = seconds_of(lambda: _copy[grid](source, target, count, block=4096, num_warps=8))
    engine = seconds_of(lambda: target.copy_(source))
    read = seconds_of(lambda: _read[(programs,)](source, sums, count, block=4096, num_warps=8))
    return {
        "copy_tb_s": 8 * count / copy / 1e12,
        "memcpy_node_tb_s": 8 * count / engine / 1e12,
        "read_tb_s": 4 * count / read / 1e12,
    }


def measure_gemms(clock: Clock) -> list[dict[str, Any]]:
    """Each GEMM of the model by itself, over the number of rows."""
    points = []
    for name, k, n in SHAPES:
        copies = max(2, -(-ROTATED_BYTES // (2 * k * n)))
        weights = [random_bf16(n, k) for _ in range(copies)]
        for rows in ROWS:
            if not clock.allows(f"gemm {name} m={rows}"):
                continue
            points.append({"shape": name, "k": k, "n": n, "m": rows, **time_gemm(weights, rows)})
        del weights
        torch.cuda.empty_cache()
    return points


def time_gemm(weights: list[torch.Tensor], rows: int) -> dict[str, float]:
    """Time in us, TFLOP/s and weight TB/s of x @ w.T, cycling through `weights`."""
    n, k = weights[0].shape
    x, out = random_bf16(rows, k), torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)

    def work() -> None:
        for weight in weights:
            torch.mm(x, weight.t(), out=out)

    seconds = seconds_of(work) / len(weights)
    return {
        "us": seconds * 1e6,
        "tflop_s": 2 * rows * k * n / seconds / 1e12,
        "weight_tb_s": 2 * k * n / seconds / 1e12,
    }


def measure_layers(clock: Clock) -> list[dict[str, Any]]:
    """The four GEMMs of a layer in turn through LAYERS layers, in one graph."""
    shapes = SHAPES[:4]
    weights = [[random_bf16(n, k) for _, k, n in shapes] for _ in range(LAYERS)]
    size = sum(2 * k * n for _, k, n in shapes)
    points = []
    for rows in LAYER_ROWS:
        if not clock.allows(f"layer m={rows}"):
            continue
        inputs = [random_bf16(rows, k) for _, k, _ in shapes]
        outputs = [torch.empty(rows, n, device="cuda", dtype=torch.bfloat16) for _, _, n in shapes]
        operands = [
            (x, weight.t(), out)
            for layer in weights
            for x, weight, out in zip(inputs, layer, outputs, strict=True)
        ]

        def work(operands: list[tuple[torch.Tensor, ...]] = operands) -> None:
            for x, weight, out in operands:
                torch.mm(x, weight, out=out)

        seconds = seconds_of(work) / LAYERS
        points.append({"m": rows, "us": seconds * 1e6, "weight_tb_s": size / seconds / 1e12})
    return points


def measure_attention(clock: Clock) -> list[dict[str, Any]]:
    """Causal attention of one prompt, 32 query and 8 KV heads of 128."""
    heads, kv_heads, dim = 32, 8, 128
    points: list[dict[str, Any]] = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for tokens in (512, 1024, 2048, 4096, 8192, 16384):
            if not clock.allows(f"attention {backend.name} {tokens}"):
                continue
            query = random_bf16(1, heads, tokens, dim)
            key, value = (random_bf16(1, kv_heads, tokens, dim) for _ in range(2))
            flops = 4 * heads * dim * tokens * tokens / 2
            point: dict[str, Any] = {"backend": backend.name, "tokens": tokens}
            try:
                seconds = time_attention(backend, query, key, value)
            except RuntimeError as error:
                points.append({**point, "error": str(error).splitlines()[0]})
                continue
            points.append({**point, "us": seconds * 1e6, "tflop_s": flops / seconds / 1e12})
    return points


def time_attention(
    backend: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> float:
    """GPU seconds of one causal attention through one back end, grouped queries if it has them."""

    def work() -> None:
        torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )

    with sdpa_kernel(backend):
        try:
            work()
        except RuntimeError:
            groups = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        return seconds_of(work)


def measure_launches() -> dict[str, float]:
    """CPU us of eager launches, GPU us of a node of a CUDA Graph."""
    one = torch.zeros(1, device="cuda")
    x, weight = random_bf16(1, 4096), random_bf16(4096, 4096)
    out = torch.empty(1, 4096, device="cuda", dtype=torch.bfloat16)
    norm = norm_call(1, 4096)

    def nodes() -> None:
        for _ in range(1000):
            one.add_(1.0)

    return {
        "eager_add_us": cpu_seconds(lambda: one.add_(1.0)) * 1e6,
        "eager_mm_us": cpu_seconds(lambda: torch.mm(x, weight.t(), out=out)) * 1e6,
        "eager_triton_us": cpu_seconds(norm) * 1e6,
        "graph_node_us": seconds_of(nodes) / 1000 * 1e6,
    }


def cpu_seconds(work: Callable[[], object], calls: int = 200) -> float:
    """CPU seconds per call while the GPU's queue has room: median of ten bursts."""
    work()
    bursts = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        bursts.append((time.perf_counter() - start) / calls)
    return statistics.median(bursts)


def norm_call(rows: int, width: int) -> Callable[[], None]:
    """A call of the fused residual add and norm."""
    x, residual = random_bf16(rows, width), random_bf16(rows, width)
    weight, out = random_bf16(width), random_bf16(rows, width)
    block = triton.next_power_of_2(width)
    return lambda: _add_rms_norm[(rows,)](x, residual, weight, out, width, block=block)


def silu_call(rows: int, width: int) -> Callable[[], None]:
    """A call of the activation between the GEMMs of an MLP."""
    gate_up, out = random_bf16(rows, 2 * width), random_bf16(rows, width)
    grid = (rows, triton.cdiv(width, 1024))
    return lambda: _silu_and_mul[grid](gate_up, out, width, block=1024)


def measure_small_kernels(clock: Clock) -> list[dict[str, Any]]:
    """Time of a kernel among 200 equal ones in a graph, gap included, in us."""
    points = []
    calls = (("add_rms_norm_4096", norm_call, 4096), ("silu_and_mul_14336", silu_call, 14336))
    for name, make, width in calls:
        for rows in (1, 8, 32, 128, 256, 2048):
            if not clock.allows(f"small kernel {name} m={rows}"):
                continue
            call = make(rows, width)

            def work(call: Callable[[], None] = call) -> None:
                for _ in range(200):
                    call()

            points.append({"kernel": name, "m": rows, "us": seconds_of(work) / 200 * 1e6})
    return points


def warm_up(seconds: float = 3.0) -> None:
    """Real load until the clocks have settled."""
    x = random_bf16(8192, 8192)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(10):
            torch.mm(x, x)
        torch.cuda.synchronize()


def command_output(*command: str) -> str:
    """First line that a command prints, or "unavailable: ..." if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return f"unavailable: {error}"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unavailable: no output"


def gpu_query(fields: str) -> str:
    """What nvidia-smi says of the first GPU."""
    return command_output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0")


def environment(commit: str | None) -> dict[str, Any]:
    """What ran where; `commit` where the tree came without its history."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "driver": gpu_query("driver_version"),
        "commit": commit or command_output("git", "rev-parse", "HEAD"),
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(seconds: float, commit: str | None) -> dict[str, Any]:
    """Everything, most wanted first."""
    torch.manual_seed(0)
    clock = Clock(seconds)
    warm_up()
    states = [gpu_query(STATE)]
    result: dict[str, Any] = {"schema": "ceilings/v1", **environment(commit)}
    result |= measure_bandwidth()
    torch.cuda.empty_cache()
    result["launch"] = measure_launches()
    result["layer"] = measure_layers(clock)
    torch.cuda.empty_cache()
    result["small_kernels"] = measure_small_kernels(clock)
    result["attention"] = measure_attention(clock)
    result["gemm"] = measure_gemms(clock)
    states.append(gpu_query(STATE))
    return {**result, "gpu_states": states, "skipped": clock.skipped}


def print_table(result: dict[str, Any]) -> None:
    """The figures at a glance."""
    print(f"{result['gpu']}, torch {result['torch']}, triton {result['triton']}")
    print(f"copy {result['copy_tb_s']:.2f} TB/s, read {result['read_tb_s']:.2f} TB/s")
    print("launch: " + ", ".join(f"{k} {v:.2f}" for k, v in result["launch"].items()))
    for section in ("layer", "small_kernels", "attention", "gemm"):
        for point in result[section]:
            values = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in point.values())
            keyed = zip(point, values, strict=True)
            print(f"{section}: " + ", ".join(f"{key} {value}" for key, value in keyed))
    if result["skipped"]:
        print(f"no time left for {len(result['skipped'])} points")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=85.0, help="time budget (default: 85)")
    parser.add_argument("--commit", help="of the tree, if git cannot tell")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no NVIDIA GPU")
    result = measure(arguments.seconds, arguments.commit)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(result)


if __name__ == "__main__":
    main()
