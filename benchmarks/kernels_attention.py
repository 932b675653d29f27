"""Times the attention kernels over their tunables on one NVIDIA GPU; within about 100 seconds.

    python benchmarks/kernels_attention.py attention.json [--seconds 100]

Needs torch and triton. Variants are compiled by a pool of processes, checked against plain torch on
random inputs, and timed as CUDA Graphs of many calls that rotate among page tables whose pages
together are far larger than the L2 cache. Bandwidths count the KV bytes of a call and are given
relative to a large copy (read + write). Points without time left are "skipped".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.kernels import decode_attention as decode
from engine.kernels import prefill_attention as prefill
from engine.kernels.decode_attention import DecodeTuning
from engine.kernels.prefill_attention import PrefillTuning

MODELS = {"8B": (32, 8), "0.6B": (16, 8), "30B-A3B": (32, 4)}  # query heads, KV heads
HEAD_DIM, PAGE_SIZE = 128, 16
DECODE_POINTS = ((1, 1088), (8, 1088), (32, 1088), (64, 1088), (128, 1088), (256, 1088),
                 (1, 8192), (8, 8192), (32, 8192))  # fmt: skip
DECODE_SHAPES = ((32, 4, 3), (32, 4, 4), (32, 4, 5), (32, 2, 4), (64, 4, 2), (64, 4, 3), (64, 4, 4),
                 (64, 8, 3), (128, 4, 2), (128, 8, 2), (128, 8, 3))  # fmt: skip
FEWER_DECODE_SHAPES = ((32, 4, 3), (32, 4, 4), (64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 8, 2))
MIN_CHUNKS = (64, 128, 256)
PROGRAMS_PER_SM = (1, 2, 3, 4, 6)
PREFILL_POINTS = {
    "1x512": (1, 512, 0), "1x2048": (1, 2048, 0), "1x8192": (1, 8192, 0),
    "16x1024": (16, 1024, 0), "1x2048+6144": (1, 2048, 6144),
}  # fmt: skip
PREFILL_SHAPES = ((128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 32, 8, 3),
                  (128, 32, 8, 4), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (64, 32, 4, 4),
                  (128, 128, 8, 2))  # fmt: skip
POOL_BYTES = 4 << 30  # of keys and values together
GRAPH_SECONDS = 0.003
REPLAYS = 5


@dataclass(frozen=True, slots=True)
class Pool:
    """One large KV cache whose pages are handed out in random order."""

    k: torch.Tensor
    v: torch.Tensor
    order: torch.Tensor

    def tables(self, rows: int, tokens: int, page_size: int, most: int) -> list[torch.Tensor]:
        """Up to `most` page tables of `rows` x `tokens`, of disjoint pages."""
        width = -(-tokens // page_size)
        count = min(most, len(self.order) // (rows * width))
        return [t.view(rows, width) for t in self.order[: count * rows * width].chunk(count)]


def make_pool(kv_heads: int, page_size: int = PAGE_SIZE, size: int = POOL_BYTES) -> Pool:
    """A pool of random bf16 numbers."""
    pages = size // (4 * page_size * kv_heads * HEAD_DIM)
    shape = (pages, page_size, kv_heads, HEAD_DIM)
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
    """Bytes per second, read and written, of a copy of 2 GiB."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / graph_seconds([lambda: target.copy_(source)] * 3)


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


def decode_seconds(case: DecodeCase, pool: Pool, tuning: DecodeTuning, combine: str) -> float:
    """Time of a call; `combine` is "none", "last" (counters) or "kernel"."""
    calls = max(6, min(64, int(GRAPH_SECONDS / (case.kv_bytes / 4e12 + 3e-6))))
    tables = pool.tables(case.batch, case.context, PAGE_SIZE, calls)
    q = torch.randn(case.batch, case.heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(case.batch, dtype=torch.int32, device="cuda")
    positions = torch.full_like(rows, case.context - 1)
    counters = torch.zeros(case.batch * case.kv_heads, dtype=torch.int32, device="cuda")
    sms = decode.multiprocessors(q.device)
    splits = 1
    if combine != "none":
        splits = decode.split_grid(case.batch, case.kv_heads, case.context, sms, tuning)

    def call(table: torch.Tensor) -> Callable[[], Any]:
        return lambda: decode.launch(
            q, pool.k, pool.v, table, rows, positions, HEAD_DIM**-0.5, splits=splits,
            target=tuning.programs_per_sm * sms, tuning=tuning,
            counters=counters if combine == "last" else None,
        )  # fmt: skip

    return graph_seconds([call(tables[i % len(tables)]) for i in range(calls)])


def compile_decode(group: int, shape: tuple[int, int, int], split: bool) -> str:
    """Check one variant on a small batch of mixed lengths."""
    kv_heads = 2
    pool = make_pool(kv_heads, size=1 << 22)
    contexts = torch.tensor([700, 1, 64, 129, 16], dtype=torch.int32, device="cuda")
    q = torch.randn(5, kv_heads * group, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    table = pool.order[: 5 * 44].view(5, 44)
    rows = torch.tensor([3, 0, 1, 4, 2], dtype=torch.int32, device="cuda")
    arguments = (q, pool.k, pool.v, table, rows, contexts - 1, 0.1)
    expected = decode.decode_attention_reference(*arguments, 704).float()
    counters = torch.zeros(5 * kv_heads, dtype=torch.int32, device="cuda")
    worst = 0.0
    for last in (True, False)[: 1 + split]:
        for _ in range(2):
            out = decode.launch(
                *arguments, splits=11 if split else 1, target=1000, tuning=DecodeTuning(*shape),
                counters=counters if last else None,
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
    """The best of all usable variants at each point, then of the ways to split at the best."""
    heads, kv_heads = MODELS[model]
    sms = decode.multiprocessors(pool.k.device)
    for batch, context in DECODE_POINTS:
        case = DecodeCase(heads, kv_heads, batch, context)
        if out_of_time():
            yield {"model": model, "batch": batch, "context": context, "skipped": True}
            continue
        tried: dict[tuple[DecodeTuning, str], float] = {}
        base = DecodeTuning(long_context=1 << 30)
        splits = decode.split_grid(batch, kv_heads, context, sms, base) > 1
        for group, shape, split in usable:
            alone = not split and batch * kv_heads >= sms // 2
            if group == heads // kv_heads and (alone or (split and splits)):
                tuning = replace(base, **dict(zip(TUNED, shape, strict=True)))
                combine = "last" if split else "none"
                tried[tuning, combine] = decode_seconds(case, pool, tuning, combine)
        if splits:
            best = sorted((t for t in tried if t[1] == "last"), key=tried.__getitem__)[:2]
            for (tuning, _), chunk, programs in product(best, MIN_CHUNKS, PROGRAMS_PER_SM):
                other = replace(tuning, min_chunk=chunk, programs_per_sm=programs)
                tried[other, "last"] = decode_seconds(case, pool, other, "last")
            tuning, _ = min((t for t in tried if t[1] == "last"), key=tried.__getitem__)
            tried[tuning, "kernel"] = decode_seconds(case, pool, tuning, "kernel")
        rows = [
            {"tuning": asdict(t), "combine": c, "us": round(s * 1e6, 2),
             "percent_of_copy": round(100 * case.kv_bytes / s / copy, 1)}
            for (t, c), s in sorted(tried.items(), key=lambda item: item[1])
        ]  # fmt: skip
        yield {"model": model, "batch": batch, "context": context, "tried": rows}


TUNED = ("block_tokens", "warps", "stages")

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
    """Check one variant on chunks of mixed lengths, with and without a prefix."""
    pool = make_pool(kv_heads, size=1 << 26)
    starts = torch.tensor([0, 1, 1, 300, 377], dtype=torch.int32, device="cuda")
    contexts = torch.tensor([5, 0, 0, 200], dtype=torch.int32, device="cuda")
    q = torch.randn(377, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    rows = torch.tensor([3, 0, 1, 2], dtype=torch.int32, device="cuda")
    arguments = (q, pool.k, pool.v, pool.order[:80].view(4, 20), starts, rows, contexts, 0.1)
    expected = prefill.prefill_attention_reference(*arguments, 299).float()
    worst = error(prefill.launch(*arguments, tuning=PrefillTuning(*shape)), expected)
    return "" if worst < 1e-2 else f"wrong: error {worst}"


def prefill_flops(heads: int, requests: int, length: int, context: int) -> float:
    """Of the visible part: two products of 2 D operations per pair of query and key."""
    return 4 * heads * HEAD_DIM * requests * length * (context + (length + 1) / 2)


def prefill_results(
    model: str,
    pool: Pool,
    usable: list[tuple[int, ...]],
    has_cudnn: bool,
    out_of_time: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of every usable variant, and of cuDNN where nothing is cached."""
    heads, kv_heads = MODELS[model]
    for name, (requests, length, context) in PREFILL_POINTS.items():
        if out_of_time():
            yield {"model": model, "point": name, "skipped": True}
            continue
        flops = prefill_flops(heads, requests, length, context)
        calls = max(2, min(16, int(GRAPH_SECONDS / (flops / 4e14))))
        tables = pool.tables(requests, context + length, PAGE_SIZE, calls)
        inputs = [prefill_arguments(pool, heads, requests, length, context, t) for t in tables]
        seconds: dict[str, float] = {}
        for shape in usable:
            tuning = PrefillTuning(*shape)
            launches = [lambda x=x, t=tuning: prefill.launch(*x, tuning=t) for x in inputs]
            seconds[str(shape)] = graph_seconds(launches)
        if not context and has_cudnn:
            fused = torch.randn(
                requests * length, heads + 2 * kv_heads, HEAD_DIM, dtype=torch.bfloat16,
                device="cuda",
            )  # fmt: skip
            q, k, v = fused.split((heads, kv_heads, kv_heads), 1)
            whole = partial(prefill.whole_prompts, q, k, v, [length] * requests, HEAD_DIM**-0.5)
            seconds["cudnn"] = graph_seconds([whole] * calls)
        tried = [
            {"shape": s, "us": round(t * 1e6, 1), "tflops": round(flops / t / 1e12)}
            for s, t in sorted(seconds.items(), key=lambda item: item[1])
        ]
        yield {"model": model, "point": name, "tried": tried}


def cudnn_facts() -> dict[str, Any]:
    """The error against the reference, and the host's milliseconds for lengths never seen."""
    fused = torch.randn(1300, 48, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    q, k, v = fused.split((32, 8, 8), 1)
    out = prefill.whole_prompts(q, k, v, [1300], 0.1)
    rows = torch.zeros(1, dtype=torch.int32, device="cuda")
    starts = torch.tensor([0, 1300], dtype=torch.int32, device="cuda")
    expected = prefill.prefill_attention_reference(
        q, k[:, None], v[:, None], torch.arange(1300, device="cuda")[None], starts, rows, rows,
        0.1, 1300,
    )  # fmt: skip
    first = []
    for length in (1111, 1203, 907, 1024):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        prefill.whole_prompts(q[:length], k[:length], v[:length], [length], 0.1)
        torch.cuda.synchronize()
        first.append(round(1e3 * (time.perf_counter() - begin), 1))
    return {"error": error(out, expected.float()), "first_call_ms": first}


def compile_all(deadline: float) -> dict[str, dict[Any, str]]:
    """Compile and check every variant in parallel; "" means usable, else why not."""
    jobs: dict[str, dict[Any, Any]] = {"decode": {}, "prefill": {}}
    pool = ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn"))
    heads, kv_heads = MODELS["8B"]
    for shape in PREFILL_SHAPES:
        jobs["prefill"][shape] = pool.submit(compile_prefill, heads, kv_heads, shape)
    for model, shapes in zip(
        MODELS, (DECODE_SHAPES, FEWER_DECODE_SHAPES, FEWER_DECODE_SHAPES), strict=True
    ):
        group = MODELS[model][0] // MODELS[model][1]
        for shape, split in product(shapes, (False, True)):
            job = pool.submit(compile_decode, group, shape, split)
            jobs["decode"][group, shape, split] = job
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
    """The best of each point, one line each."""
    print(f"copy {results['copy_tb_per_s']} TB/s, cudnn {results['cudnn']}, {results['seconds']} s")
    for row in results["decode"]:
        where = f"{row['model']:8} b{row['batch']:<4} ctx {row['context']:<5}"
        for kind in ("none", "last", "kernel"):
            best = next((r for r in row.get("tried", ()) if r["combine"] == kind), None)
            if best and best["us"] < float("inf"):
                cut = "/".join(str(x) for x in list(best["tuning"].values())[:5])
                print(f"{where} {kind:6} {best['us']:8} us {best['percent_of_copy']:5} % {cut}")
        if "skipped" in row:
            print(where, "skipped")
    for row in results["prefill"]:
        tried = "  ".join(f"{r['shape']} {r['tflops']}" for r in row.get("tried", ()))
        print(f"{row['point']:12} {tried or 'skipped'}")


def main() -> None:
    """Compile, check, time, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=100)
    arguments = parser.parse_args()
    begin = time.monotonic()
    made = compile_all(begin + 0.5 * arguments.seconds)
    usable = {op: [key for key, why in made[op].items() if not why] for op in made}
    compiled = time.monotonic() - begin
    print(f"compiled in {compiled:.0f} s: { ({op: len(keys) for op, keys in usable.items()}) }")
    copy = copy_bandwidth()

    try:
        cudnn = cudnn_facts()
    except RuntimeError as cause:  # the rest is still worth knowing
        cudnn = {"failed": str(cause)[:300]}

    def out_of_time() -> bool:
        return time.monotonic() - begin > arguments.seconds - 3

    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "copy_tb_per_s": round(copy / 1e12, 3), "compile_seconds": round(compiled),
        "unusable": {str(k): why for op in made for k, why in made[op].items() if why},
        "cudnn": cudnn,
        "decode": [], "prefill": [],
    }  # fmt: skip
    pool = make_pool(MODELS["8B"][1])
    results["decode"] += decode_results("8B", pool, usable["decode"], copy, out_of_time)
    results["prefill"] += prefill_results(
        "8B", pool, usable["prefill"], "error" in results["cudnn"], out_of_time
    )
    for model in ("0.6B", "30B-A3B"):
        if MODELS[model][1] != pool.k.shape[2]:
            del pool
            pool = make_pool(MODELS[model][1])
        results["decode"] += decode_results(model, pool, usable["decode"], copy, out_of_time)
    results["seconds"] = round(time.monotonic() - begin)
    arguments.path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
