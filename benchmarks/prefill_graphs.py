"""Steps with prefill as one CUDA Graph and kernel by kernel, on the GPU of this machine.

    python benchmarks/prefill_graphs.py MODEL out.json [--sizes 16,128,256,512,704]

For each size: a prompt alone, a prompt beside 64 decoding requests, and prompts of 8 tokens, one
more than the graph of the size before has room for. Random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton

from engine.core.graph_sizes import graph_chunks
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import repeat
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served
from engine.runtime import prefill_graphs
from engine.runtime.build import build_runner
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from workbench.record.provenance import source_commit

_DECODES = 64
_LAUNCHES = 5


def designs(sizes: list[int]) -> Iterator[tuple[str, int, StepDesign]]:
    """(what it is, tokens of its graph, the step)."""
    smaller = 0
    for size in sizes:
        yield "prompt", size, StepDesign((Chunk(size),))
        if size > _DECODES + 16:
            decodes = as_served(_DECODES, 1024, 4096)
            yield "prompt and 64 decodes", size, StepDesign((Chunk(size - _DECODES),), decodes)
        chunks = graph_chunks(smaller) + 1
        if smaller and 8 * chunks <= size:
            yield f"{chunks} prompts of 8", size, StepDesign((Chunk(8),) * chunks)
        smaller = size


def measure(runner: ModelRunner, maker: PlanMaker, design: StepDesign) -> dict[str, float]:
    """Milliseconds of the GPU, and of the host to launch."""
    before, plan = maker.make(design)
    if before is not None:
        runner.launch(before).result()
    gpu_ms = statistics.median(repeat(runner, plan)) / 1e6
    host_ms = []
    for _ in range(_LAUNCHES):
        start = time.perf_counter()
        step = runner.launch(plan)
        host_ms.append(1e3 * (time.perf_counter() - start))
        step.result()
    return {"gpu_ms": round(gpu_ms, 3), "host_ms": round(statistics.median(host_ms), 2)}


def compare(model: str, sizes: list[int]) -> list[dict[str, object]]:
    """A row a step: with the graph of its size, and without."""
    config = RunnerConfig(
        model=model, load_format="dummy", cuda_graph_tokens=tuple(sizes),
        cuda_graph_batch_sizes=(1, 8, _DECODES), max_model_len=32768, num_pages=20_000,
    )  # fmt: skip
    runner = build_runner(config, time.monotonic_ns, lambda text: print(text, file=sys.stderr))
    runner.fill_cache_with_noise()
    limits = EngineLimits(
        num_pages=runner.num_pages, page_size=16, max_model_len=runner.max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_running_requests=config.max_running_requests, graph_batch_sizes=(1, 8, _DECODES),
    )  # fmt: skip
    maker = PlanMaker(limits, runner.spec.vocab_size)
    rows: list[dict[str, object]] = []
    for what, size, design in designs(sizes):
        row: dict[str, object] = {"step": what, "graph_tokens": size}
        for name, forced in (("graph", size), ("kernel by kernel", 0)):
            prefill_graphs.graph_tokens_for = lambda *_, forced=forced: forced  # whatever the rule
            row[name] = measure(runner, maker, design)
        print(f"{size:5} {what:22} {row['graph']}  {row['kernel by kernel']}", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure one model and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", default="16,128,256,512,704")
    options = parser.parse_args()
    rows = compare(options.model, [int(size) for size in options.sizes.split(",")])
    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found[options.model] = {
        "commit": source_commit(), "gpu": torch.cuda.get_device_name(), "steps": rows,
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }  # fmt: skip
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
