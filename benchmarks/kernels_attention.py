"""Times the attention kernels over their tunables on one NVIDIA GPU; within about 100 seconds.

    python benchmarks/kernels_attention.py attention.json [--seconds 100] [--commit HASH]

Needs torch and triton. Variants are compiled by a pool of processes, checked against plain torch on
random inputs, and timed as CUDA Graphs of many calls that rotate among layers' caches (decode)
or page tables (prefill), together far larger than the L2 cache. Bandwidths count the KV bytes of a
call and are given relative to a large copy (read + write). Points without time left are "skipped".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.kernels import decode_attention as decode
from engine.kernels import prefill_attention as prefill
from engine.kernels.decode_attention import DecodeTuning
from engine.kernels.prefill_attention import PrefillTuning

MODELS = {"8B": (32, 8), "0.6B": (16, 8), "30B-A3B": (32, 4)}  # query heads, KV heads
HEAD_DIM, PAGE_SIZE = 128, 16
MAX_CONTEXT = 16384  # what the engine says, far above any context here
DECODE_POINTS = ((1, 1088), (2, 1088), (4, 1088), (8, 1088), (16, 1088), (32, 1088), (64, 1088),
                 (128, 1088), (256, 1088), (1, 8192), (8, 8192), (32, 8192))  # fmt: skip
DECODE_SHAPES = ((32, 1, 3), (32, 1, 4), (32, 2, 3), (32, 2, 4), (32, 2, 5), (64, 2, 3), (64, 2, 4),
                 (64, 4, 2), (64, 4, 3), (128, 4, 2))  # fmt: skip
MIN_BLOCKS = (1, 3)
PROGRAMS_PER_SM = (2, 3, 4, 5, 6, 8)
PREFILL_POINTS = {
    "1x512": (1, 512, 0), "1x2048": (1, 2048, 0), "1x8192": (1, 8192, 0),
    "16x1024": (16, 1024, 0), "8x2048": (8, 2048, 0), "1x2048+6144": (1, 2048, 6144),
    "1x512+7680": (1, 512, 7680), "16x256+512": (16, 256, 512),
}  # fmt: skip
PREFILL_SHAPES = ((128, 64, 8, 3), (128, 32, 4, 3), (64, 64, 4, 3), (64, 32, 4, 3))
POOL_BYTES = 4 << 30  # of keys and values together
GRAPH_SECONDS = 0.0015
REPLAYS = 5


@dataclass(frozen=True, slots=True)
class Pool:
    """One large KV cache whose pages are handed out in random order, or cut into layers."""

    k: torch.Tensor
    v: torch.Tensor
    order: torch.Tensor

    def tables(self, rows: int, tokens: int, most: int) -> list[torch.Tensor]:
        """Up to `most` page tables of `rows` x `tokens`, of disjoint pages."""
        width = -(-tokens // PAGE_SIZE)
        count = min(most, len(self.order) // (rows * width))
        return [t.view(rows, width) for t in self.order[: count * rows * width].chunk(count)]

    def layers(
        self, rows: int, tokens: int, most: int
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """A page table, and up to `most` pairs of caches in which its pages are."""
        width = -(-tokens // PAGE_SIZE)
        count = min(most, len(self.k) // (rows * width))
        size = len(self.k) // count
        pages = torch.randperm(size, device="cuda").int()[: rows * width].view(rows, width)
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return pages, [(self.k[cut], self.v[cut]) for cut in cuts]


def make_pool(kv_heads: int, size: int = POOL_BYTES) -> Pool:
    """A pool of random bf16 numbers."""
    pages = size // (4 * PAGE_SIZE * kv_heads * HEAD_DIM)
    shape = (pages, PAGE_SIZE, kv_heads, HEAD_DIM)
    k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return Pool(k, v, torch.randperm(pages, device="cuda").int())


def graph_seconds(calls: list[Callable[[], Any]]) -> float:
    """Median time of one of `calls`, run in turn in one CUDA Graph."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        stream.synchronize()
    spans = [a.elapsed_time(b) for a, b in pairwise(marks)]
    return statistics.median(spans) / 1e3 / len(calls)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a kernel that copies 2 GiB and adds 1."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda").fill_(1.5)
    target = torch.empty_like(source)
    return 4 * len(source) / graph_seconds([lambda: torch.add(source, 1, out=target)] * 3)


# Decode


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """A batch of requests of one context over rotating page tables."""

    heads: int
    kv_heads: int
    batch: int
    context: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that a call reads."""
        return 4 * self.batch * self.context * self.kv_heads * HEAD_DIM


def decode_seconds(
    case: DecodeCase, pool: Pool, tunings: Sequence[DecodeTuning | None]
) -> list[float]:
    """Times of a call with each tuning; None is what the engine calls."""
    calls = max(4, min(48, int(GRAPH_SECONDS / (case.kv_bytes / 3e12 + 5e-6))))
    table, layers = pool.layers(case.batch, case.context, calls)
    q = torch.randn(case.batch, case.heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(case.batch, dtype=torch.int32, device="cuda")
    positions = torch.full_like(rows, case.context - 1)
    counters = torch.zeros(case.batch * case.kv_heads, dtype=torch.int32, device="cuda")
    sms = decode.multiprocessors(q.device)

    def call(cache: tuple[torch.Tensor, torch.Tensor], tuning: DecodeTuning | None) -> None:
        rest = (table, rows, positions, HEAD_DIM**-0.5)
        if tuning is None:
            decode.decode_attention_triton(q, *cache, *rest, MAX_CONTEXT, counters)
        else:
            pieces = tuning.programs_per_sm * sms // case.kv_heads
            decode.launch(q, *cache, *rest, pieces=pieces, tuning=tuning, counters=counters)

    def seconds(tuning: DecodeTuning | None) -> float:
        return graph_seconds([partial(call, cache, tuning) for cache in layers])

    seconds(tunings[0])  # the first one after a pause runs at lower clocks
    return [seconds(tuning) for tuning in tunings]


def compile_decode(group: int, shape: tuple[int, int, int], batch: int) -> str:
    """Check one variant on a batch of mixed lengths."""
    kv_heads = 2
    pool = make_pool(kv_heads, size=1 << 24)
    contexts = torch.randint(1, 700, (batch,), dtype=torch.int32, device="cuda")
    q = torch.randn(batch, kv_heads * group, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    table = pool.order[torch.randint(0, len(pool.order), (batch, 44), device="cuda")]
    rows = torch.randperm(batch, device="cuda").int()
    arguments = (q, pool.k, pool.v, table, rows, contexts - 1, 0.1)
    expected = decode.decode_attention_reference(*arguments, 704).float()
    counters = torch.zeros(batch * kv_heads, dtype=torch.int32, device="cuda")
    worst = 0.0
    for pieces in (1, 7, 49, 500):
        out = decode.launch(
            *arguments, pieces=pieces, tuning=DecodeTuning(*shape), counters=counters,
            out=torch.full_like(q, float("nan")),
        )  # fmt: skip
        worst = max(worst, error(out, expected))
    return "" if worst < 1e-2 and not counters.any() else f"wrong: error {worst}"


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the 2-norm; infinite if anything is not a number."""
    value = ((out.float() - expected).norm() / expected.norm()).item()
    return value if value == value else float("inf")


def decode_results(
    model: str,
    pool: Pool,
    usable: list[tuple[Any, ...]],
    copy: float,
    out_of_time: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """What the engine calls at each point, then all usable tunings, the best first."""
    heads, kv_heads = MODELS[model]
    for batch, context in DECODE_POINTS:
        case = DecodeCase(heads, kv_heads, batch, context)
        if out_of_time():
            yield {"model": model, "batch": batch, "context": context, "skipped": True}
            continue
        tunings: list[DecodeTuning | None] = [None]
        for group, shape, checked in usable:
            if group == heads // kv_heads and checked == decode.scan_size(batch):
                tunings += [
                    DecodeTuning(*shape, programs, blocks * shape[0], 128 if batch <= 4 else 0)
                    for programs in PROGRAMS_PER_SM
                    for blocks in (MIN_BLOCKS if batch * context <= 5000 else (1,))
                ]
        seconds = decode_seconds(case, pool, tunings)
        tried = [
            {"tuning": asdict(t) if t else "engine", "us": round(s * 1e6, 2),
             "percent_of_copy": round(100 * case.kv_bytes / s / copy, 1)}
            for t, s in zip(tunings, seconds, strict=True)
        ]  # fmt: skip
        tried[1:] = sorted(tried[1:], key=lambda row: row["us"])
        yield {"model": model, "batch": batch, "context": context, "tried": tried[:12]}


# Prefill


def prefill_arguments(
    pool: Pool, heads: int, requests: int, length: int, context: int, table: torch.Tensor
) -> tuple[Any, ...]:
    """Arguments of `prefill_attention.launch`."""
    tokens = requests * length
    q = torch.randn(tokens, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(requests, dtype=torch.int32, device="cuda")
    starts = torch.arange(requests + 1, dtype=torch.int32, device="cuda") * length
    contexts = torch.full_like(rows, context)
    return q, pool.k, pool.v, table, starts, rows, contexts, HEAD_DIM**-0.5


def compile_prefill(heads: int, kv_heads: int, shape: tuple[int, ...]) -> str:
    """Check one variant, () is Hopper's, on chunks of mixed lengths, with and without a prefix."""
    pool = make_pool(kv_heads, size=1 << 26)
    starts = torch.tensor([0, 1, 1, 300, 377], dtype=torch.int32, device="cuda")
    contexts = torch.tensor([5, 0, 0, 200], dtype=torch.int32, device="cuda")
    q = torch.randn(377, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    rows = torch.tensor([3, 0, 1, 2], dtype=torch.int32, device="cuda")
    arguments = (q, pool.k, pool.v, pool.order[:80].view(4, 20), starts, rows, contexts, 0.1)
    expected = prefill.prefill_attention_reference(*arguments).float()
    if shape:
        out = prefill.launch(*arguments, tuning=PrefillTuning(*shape))
    else:
        out = prefill.launch_hopper(*arguments)
    worst = error(out, expected)
    return "" if worst < 1e-2 else f"wrong: error {worst}"


def prefill_flops(heads: int, requests: int, length: int, context: int) -> float:
    """Of the visible part: two products of 2 D operations per pair of query and key."""
    return 4 * heads * HEAD_DIM * requests * length * (context + (length + 1) / 2)


def prefill_results(
    model: str,
    pool: Pool,
    usable: list[tuple[int, ...]],
    out_of_time: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of every usable variant of the portable kernel, and of Hopper's."""
    heads, _ = MODELS[model]
    for name, (requests, length, context) in PREFILL_POINTS.items():
        if out_of_time():
            yield {"model": model, "point": name, "skipped": True}
            continue
        flops = prefill_flops(heads, requests, length, context)
        calls = max(2, min(16, int(GRAPH_SECONDS / (flops / 4e14))))
        tables = pool.tables(requests, context + length, calls)
        inputs = [prefill_arguments(pool, heads, requests, length, context, t) for t in tables]
        seconds: dict[str, float] = {}
        for shape in filter(None, usable):
            tuning = PrefillTuning(*shape)
            launches = [lambda x=x, t=tuning: prefill.launch(*x, tuning=t) for x in inputs]
            seconds[str(shape)] = graph_seconds(launches)
        launches = [partial(prefill.launch_hopper, *x) for x in inputs]
        seconds["hopper"] = graph_seconds(launches)
        tried = [
            {"shape": s, "us": round(t * 1e6, 1), "tflops": round(flops / t / 1e12)}
            for s, t in sorted(seconds.items(), key=lambda item: item[1])
        ]
        yield {"model": model, "point": name, "tried": tried}


def compile_all(deadline: float) -> dict[str, dict[Any, str]]:
    """Compile and check every variant in parallel; "" means usable, else why not."""
    jobs: dict[str, dict[Any, Any]] = {"decode": {}, "prefill": {}}
    pool = ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn"))
    heads, kv_heads = MODELS["8B"]
    for shape in (*PREFILL_SHAPES, ()):
        jobs["prefill"][shape] = pool.submit(compile_prefill, heads, kv_heads, shape)
    for (heads, kv_heads), shape, batch in product(
        MODELS.values(), DECODE_SHAPES, decode.SCAN_SIZES[:3]
    ):
        group = heads // kv_heads
        if batch == decode.SCAN_SIZES[0] or shape[0] * shape[1] >= 64:
            job = pool.submit(compile_decode, group, shape, batch)
            jobs["decode"][group, shape, batch] = job
    made: dict[str, dict[Any, str]] = {"decode": {}, "prefill": {}}
    for op, key in [(name, key) for name, group in jobs.items() for key in group]:
        try:
            made[op][key] = jobs[op][key].result(max(0.0, deadline - time.monotonic()))
        except Exception as cause:  # noqa: BLE001 - a variant that fails is a result
            made[op][key] = f"failed: {type(cause).__name__} {str(cause)[:300]}"
        if made[op][key]:
            print(op, key, made[op][key])
    pool.shutdown(wait=False, cancel_futures=True)
    return made


def show(results: dict[str, Any]) -> None:
    """What the engine does and the best of each point, one line each."""
    print(f"copy {results['copy_tb_per_s']} TB/s, {results['seconds']} s")
    for row in results["decode"]:
        line = f"{row['model']:8} b{row['batch']:<4} ctx {row['context']:<5}"
        for entry in row.get("tried", ())[:3]:
            cut = entry["tuning"]
            cut = cut if isinstance(cut, str) else "/".join(str(x) for x in cut.values())
            line += f"  {entry['us']:8} us {entry['percent_of_copy']:5} % {cut}"
        print(line)
    for row in results["prefill"]:
        tried = "  ".join(f"{r['shape']} {r['tflops']}" for r in row.get("tried", ()))
        print(f"{row['model']:8} {row['point']:12} {tried or 'skipped'}")


def main() -> None:
    """Compile, check, time, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--commit", help="of this checkout, for the record")
    arguments = parser.parse_args()
    begin = time.monotonic()
    made = compile_all(begin + 0.5 * arguments.seconds)
    usable = {op: [key for key, why in made[op].items() if not why] for op in made}
    compiled = time.monotonic() - begin
    print(f"compiled in {compiled:.0f} s: { ({op: len(keys) for op, keys in usable.items()}) }")
    copy = copy_bandwidth()

    def out_of_time() -> bool:
        return time.monotonic() - begin > arguments.seconds - 3

    results: dict[str, Any] = {
        "schema": "kernels_attention/v1", "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__, "triton": triton.__version__, "commit": arguments.commit,
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "copy_tb_per_s": round(copy / 1e12, 3), "compile_seconds": round(compiled),
        "unusable": {str(k): why for op in made for k, why in made[op].items() if why},
        "decode": [], "prefill": [],
    }  # fmt: skip
    for model in MODELS:
        pool = make_pool(MODELS[model][1])
        results["decode"] += decode_results(model, pool, usable["decode"], copy, out_of_time)
        if model == "8B":  # the others differ little
            results["prefill"] += prefill_results(model, pool, usable["prefill"], out_of_time)
        del pool
    results["seconds"] = round(time.monotonic() - begin)
    arguments.path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
