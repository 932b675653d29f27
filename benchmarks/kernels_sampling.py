"""Sampling on one GPU: right first, then how long it takes in a CUDA Graph; within 40 seconds.

    python benchmarks/kernels_sampling.py sampling.json

First compiles in many processes and compares tokens and log-probabilities with the torch reference.
Then, for vocabularies of Llama-3 and Qwen3 and batches of 1 to 256 rows, replays a graph that
samples several times in a row, each time from other logits if there are enough of them, so that a
PDL chain is measured as it runs behind the model. Times are microseconds per call, medians over
replays. Logits are bf16: a bulk of standard deviation 2.5, and a few likely tokens above it, as a
language model has them; "flat" rows have the bulk alone.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.kernels.sampling import SampleResult, SamplingBatch, sample_reference, sample_triton
from engine.sampling_params import SamplingParams

VOCABS = (128256, 151936)
ROWS = (1, 8, 32, 64, 128, 256)
CASES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top-k 50, top-p 0.9": SamplingParams(top_k=50, top_p=0.9),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "min-p 0.05": SamplingParams(min_p=0.05),
    "greedy, 5 logprobs": SamplingParams(temperature=0, logprobs=5),
}
COMPILED = ((151936, 8), (128256, 32), (128256, 64), (128256, 128))  # every specialisation
PROCESSES = 12
CALLS = 8
REPLAYS = 7
BUDGET_SECONDS = 36.0
DEVICE = torch.device("cuda")


def make_logits(rows: int, vocab: int, flat: bool = False) -> torch.Tensor:
    """bf16 logits [rows, vocab]."""
    logits = torch.randn(rows, vocab, device=DEVICE) * 2.5
    if not flat:
        likely = torch.randint(0, vocab, (rows, 40), device=DEVICE)
        logits.scatter_add_(1, likely, 12 + 3 * torch.randn(rows, 40, device=DEVICE))
    return logits.bfloat16()


def make_batch(params: SamplingParams, rows: int) -> SamplingBatch:
    """`rows` requests with the same parameters and other seeds."""
    return SamplingBatch.of([params] * rows, list(range(rows)), [3] * rows, DEVICE)


def precompile(job: tuple[str, int, int]) -> None:
    """Sample once, for what it leaves in the compiler's cache."""
    name, vocab, rows = job
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device=DEVICE)
    last = torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE)
    sample_triton(logits, make_batch(CASES[name], rows), last, last[:rows])
    sample_triton(logits, make_batch(CASES[name], rows))


def agreement(out: SampleResult, expected: SampleResult) -> dict[str, float]:
    """Share of equal tokens, and the largest difference of log-probabilities."""
    shares = {"equal_tokens": (out.tokens == expected.tokens).float().mean().item()}
    if out.top_ids is not None:
        shares["equal_top_ids"] = (out.top_ids == expected.top_ids).float().mean().item()
        shares["logprob_error"] = (out.logprobs - expected.logprobs).abs().max().item()
    return shares


def check() -> dict[str, dict[str, float]]:
    """Compare with the reference; a share below 1 is a near-tie or a mistake."""
    found = {}
    for name, params in CASES.items():
        for flat in (False, True):
            logits = make_logits(16, VOCABS[0], flat)
            batch = make_batch(params, 16)
            result = agreement(sample_triton(logits, batch), sample_reference(logits, batch))
            found[f"{name}{', flat' if flat else ''}"] = result
            print(f"{name:22} {'flat' if flat else '':5} {result}", flush=True)
            if result["equal_tokens"] < 15 / 16:
                raise SystemExit("more than one of 16 tokens differs from the reference")
    return found


def time_us(params: SamplingParams, logits: torch.Tensor, rows: int) -> float:
    """Microseconds of one call in a captured chain; rewinds over the rows of `logits`."""
    batch = make_batch(params, rows)
    parts = [part for part in logits.split(rows) if len(part) == rows]
    last = torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE)
    index = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    sample_triton(parts[0], batch, last, index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(CALLS):
            sample_triton(parts[call % len(parts)], batch, last, index)
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(times)


def main() -> None:
    """Check, measure, write JSON, print the table last."""
    began = time.monotonic()
    jobs = [(name, vocab, rows) for vocab, rows in COMPILED for name in CASES]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(precompile, jobs, chunksize=1)
    print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
    torch.manual_seed(0)
    results = {"device": torch.cuda.get_device_name(), "agreement": check(), "us": []}
    for vocab in VOCABS:
        logits = make_logits(max(ROWS), vocab)
        for name, params in CASES.items():
            for rows in ROWS:
                if time.monotonic() - began > BUDGET_SECONDS:
                    results["us"].append([vocab, name, rows, None])
                    continue
                results["us"].append([vocab, name, rows, time_us(params, logits, rows)])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nmicroseconds on {results['device']}, {time.monotonic() - began:.0f} s")
    print(f"{'vocabulary':>10} {'case':20}" + "".join(f"{f'B {rows}':>9}" for rows in ROWS))
    for vocab in VOCABS:
        for name in CASES:
            row = [us for v, n, _, us in results["us"] if (v, n) == (vocab, name)]
            cells = "".join("  skipped" if us is None else f"{us:9.1f}" for us in row)
            print(f"{vocab:>10} {name:20}{cells}")


if __name__ == "__main__":
    main()
