"""How fast the engine is, as `vLLM`'s figures in `measured/vllm_h200.json` were taken.

    python benchmarks/engine_speed.py out.json [--models Llama-3.1-8B,Qwen3-0.6B,Qwen3-30B-A3B]
        [--parts decode,prefill,offline,cold] [--commit HASH]

Random weights, bf16, greedy, no prefix cache, prompts of random ids. A decode step is (time for
1 + n tokens - time for 1 token) / n, best of two, as vLLM was measured, which counts some mixed
steps; `full_step_ms` is the median time between decode steps of the whole batch; prefill is the
time for 1 token; offline is 256 requests at once with exact output lengths; a cold start runs from
the start of a process to its first token, with an empty kernel cache.

The floor of a step is, for its matrix products and for its attention, the larger of bytes over the
measured copy bandwidth and FLOPs over the measured rate of a large product, both of this GPU. Where
the GPU is not the one of vLLM's figures, compare the shares of the floor, not the times.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import triton
from measure_ceilings import (
    capture,
    environment,
    measure_bandwidth,
    random_bf16,
    replay_seconds,
    warm_up,
)

from engine.core.config import Mode, SchedulerConfig
from engine.core.model_spec import ModelSpec
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.runtime.build import build_runner
from engine.runtime.executor import StepOutput
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.serving_loop import LoopEvents, ServingLoop, Turn

HERE = Path(__file__).parent
BATCHES = (1, 8, 32, 64, 128, 256)
PREFILLS = ((1, 512), (1, 2048), (1, 8192), (16, 1024))
DECODE_STEPS = {1: 128, 8: 128, 32: 128, 64: 128, 128: 64, 256: 64}
PROMPT = 1024
BUCKETS = (1, 2, 4, *range(8, 257, 8))
COLD = """
import sys, time
sys.path.insert(0, {root!r})
from engine_speed import cold_start
cold_start({model!r}, {start!r})
"""


class NoEnds:
    """Texts end at their max_tokens."""

    def planned(self, plan: StepPlan) -> None:
        """Nothing to note."""

    def stopped(self, plan: StepPlan, output: StepOutput) -> tuple[int, ...]:
        """Nothing ends early."""
        del plan, output
        return ()


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second of a copy, FLOP/s of a large bf16 product."""

    bandwidth: float
    flops: float


PEER = Ceilings(4.25e12, 0.70e15)  # with which the floors beside vLLM's figures were computed


def measure_ceilings() -> Ceilings:
    """Of this GPU, warm, on random data."""
    warm_up(2.0)
    bandwidth = measure_bandwidth()["copy_tb_s"] * 1e12
    a, b = random_bf16(8192, 8192), random_bf16(8192, 8192)
    out = torch.empty_like(a)
    graph = capture(lambda: torch.mm(a, b, out=out))
    seconds = replay_seconds(graph, 800)  # more than a second: short bursts run at higher clocks
    del graph
    torch.cuda.empty_cache()
    return Ceilings(bandwidth, 2 * 8192**3 / seconds)


def floor_s(spec: ModelSpec, ceilings: Ceilings, new: int, pairs: int, kv: int, rows: int) -> float:
    """Seconds that no implementation can beat by much.

    Args:
        spec: the model.
        ceilings: of the GPU.
        new: tokens computed.
        pairs: (query, key) pairs of the attention.
        kv: tokens of KV that are read or written.
        rows: of logits.
    """
    sizes, flops = spec.weight_bytes_by_group(), spec.flops_per_token_by_group()
    sizes.pop("embedding", None)
    if spec.moe is not None:
        share = 1 - (1 - spec.moe.experts_per_token / spec.moe.num_experts) ** new
        sizes["experts"] = int(sizes["experts"] * share)
    head = flops.pop("lm_head")
    work = sum(flops.values()) * new + head * rows
    products = max(sum(sizes.values()) / ceilings.bandwidth, work / ceilings.flops)
    attention_work = spec.prefill_attention_flops_per_pair() * pairs
    attention = max(kv * spec.kv_bytes_per_token() / ceilings.bandwidth,
                    attention_work / ceilings.flops)  # fmt: skip
    return products + attention


def step_floor_s(spec: ModelSpec, ceilings: Ceilings, plan: StepPlan) -> float:
    """The floor of one step."""
    new = plan.prefill_tokens + plan.decode_tokens
    kv = plan.prefill_context + plan.prefill_tokens + plan.decode_context
    pairs = plan.prefill_pairs + plan.decode_context
    return floor_s(spec, ceilings, new, pairs, kv, plan.sampled_tokens)


class Bench:
    """One model, ready to serve."""

    def __init__(
        self,
        model: str,
        ceilings: Ceilings,
        on_phase: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.ceilings = ceilings
        self._begin = time.perf_counter_ns()
        start = time.perf_counter()
        self.phases: dict[str, float] = {}  # what began when, in s since the build began
        self.runner: ModelRunner = build_runner(
            RunnerConfig(
                model=model, load_format="dummy", max_model_len=16384,
                cuda_graph_batch_sizes=BUCKETS,
            ),
            self.clock,
            lambda what: (
                on_phase(what),
                self.phases.setdefault(what, time.perf_counter() - start),
            ),
        )  # fmt: skip
        self.build_s = time.perf_counter() - start
        self.spec = self.runner.spec
        self.full_steps_ms: list[float] = []
        self.floors_s, self.busy_s = [0.0, 0.0], 0.0
        self._next_id = 0
        self._rng = np.random.default_rng(1)

    def clock(self) -> int:
        """Ns since the bench was made."""
        return time.perf_counter_ns() - self._begin

    def serve(self, prompts: list[int], outputs: list[int], mode: Mode = "mixed") -> float:
        """Seconds to serve requests of these lengths that come at once.

        In `prefill_first` mode all prompts are computed before anything is decoded, so that all
        decode steps are full. Afterwards `full_steps_ms` has the time between the ends of
        consecutive decode steps of all requests, `floors_s` the sum of the floors of the steps, of
        this GPU and of the one that vLLM's figures are of, and `busy_s` the time of the GPU.
        """
        self.floors_s, self.busy_s = [0.0, 0.0], 0.0
        scheduler = Scheduler(SchedulerConfig(
            num_pages=self.runner.num_pages, max_model_len=self.runner.max_model_len,
            prefix_cache=False, cuda_graph_batch_sizes=BUCKETS, mode=mode,
        ))  # fmt: skip
        ends: list[tuple[int, int]] = []  # plan id, end on the device

        def note(plan: StepPlan, output: StepOutput, _now: int) -> None:
            self.busy_s += output.gpu_ns / 1e9
            for index, ceilings in enumerate((self.ceilings, PEER)):
                self.floors_s[index] += step_floor_s(self.spec, ceilings, plan)
            if plan.is_pure_decode and plan.decode_requests == len(prompts):
                ends.append((plan.plan_id, output.start_ns + output.gpu_ns))

        events = LoopEvents(on_step=note)
        loop = ServingLoop(scheduler, self.runner, self.clock, NoEnds(), events=events)
        requests = []
        for prompt, output in zip(prompts, outputs, strict=True):
            ids = self._rng.integers(0, self.spec.vocab_size, prompt, dtype=np.int32)
            self._next_id += 1
            tokens = TokenBuffer(ids, prompt + output)
            requests.append(Request(self._next_id, prompt, output, tokens=tokens))
        torch.cuda.synchronize()
        start = time.perf_counter()
        for request in requests:
            if loop.add(request):
                raise RuntimeError(f"request of {request.prompt_tokens} tokens does not fit")
        while loop.has_work:
            if loop.turn() is Turn.WAIT:
                loop.commit_oldest()
        seconds = time.perf_counter() - start
        produced = [request.committed_outputs for request in requests]
        if produced != outputs:
            raise RuntimeError("some requests did not get their tokens")
        self.full_steps_ms = [
            (end - before) / 1e6
            for (first, before), (second, end) in pairwise(ends)
            if second == first + 1
        ]
        return seconds

    def decode(self, batch: int) -> dict[str, Any]:
        """A decode step of `batch` requests of about 1,088 tokens."""
        count = DECODE_STEPS[batch]
        prompts = [PROMPT] * batch
        times = []
        if batch <= 64:
            self.serve(prompts, [8] * batch)
        for _ in range(2 if batch <= 64 else 1):
            short = self.serve(prompts, [1] * batch)
            long = self.serve(prompts, [1 + count] * batch)
            times.append((long - short) / count)
        self.serve(prompts, [1 + count] * batch, "prefill_first")
        full = statistics.median(self.full_steps_ms)
        context = batch * (PROMPT + count // 2)
        floor = floor_s(self.spec, self.ceilings, batch, context, context, batch)
        what = {"batch": batch, "context": PROMPT + count // 2, "full_step_ms": full * 1.0}
        return self._point(what, min(times), floor)

    def prefill(self, prompts: int, tokens: int) -> dict[str, Any]:
        """First tokens of prompts that come at once."""
        self.serve([tokens] * prompts, [1] * prompts)
        seconds = min(self.serve([tokens] * prompts, [1] * prompts) for _ in range(3))
        pairs = prompts * tokens * (tokens + 1) // 2
        floor = floor_s(
            self.spec, self.ceilings, prompts * tokens, pairs, prompts * tokens, prompts
        )
        return self._point({"prompts": prompts, "tokens": tokens}, seconds, floor)

    def offline(self) -> dict[str, Any]:
        """256 requests at once."""
        rng = random.Random(1)  # noqa: S311 - the published lengths
        prompts = [rng.randint(100, 1024) for _ in range(256)]
        outputs = [rng.randint(100, 1024) for _ in range(256)]
        seconds = self.serve(prompts, outputs)
        own, peer = self.floors_s
        return {
            "seconds": seconds, "output_tokens_per_s": sum(outputs) / seconds,
            "gpu_busy_percent": 100 * self.busy_s / seconds, "floor_s": own,
            "percent_of_floor": 100 * own / seconds, "h200_floor_s": peer,
        }  # fmt: skip

    def _point(self, what: dict[str, Any], seconds: float, floor: float) -> dict[str, Any]:
        return {
            **what, "ms": seconds * 1e3, "floor_ms": floor * 1e3,
            "percent_of_floor": 100 * floor / seconds,
        }  # fmt: skip


def cold_start(model: str, start: float) -> None:
    """Serve one token in a new process; prints the seconds since `start` (time.time)."""
    imported = time.time() - start
    compiled: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **facts: compiled.append(
        facts["fn"].name.rpartition(".")[2]
    )
    bench = Bench(model, Ceilings(1.0, 1.0), on_phase=lambda what: compiled.append(f"[{what}]"))
    bench.serve([512], [1])
    at = compiled.index("[measuring memory]")
    print(json.dumps({
        "first_token_s": time.time() - start, "imported_s": imported, "build_s": bench.build_s,
        "phases": bench.phases,
        "compiled": dict(Counter(compiled[:at])), "compiled_late": compiled[at:],
    }))  # fmt: skip


def measure_cold_start(model: str) -> dict[str, Any]:
    """A cold start with an empty kernel cache, then one with a filled one."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty_cache", "filled_cache"):
            code = COLD.format(root=str(HERE), model=model, start=time.time())
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", code], capture_output=True, text=True, check=False,
                env={**__import__("os").environ, "TRITON_CACHE_DIR": cache},
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            result[name] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(result: dict[str, Any], model: str) -> None:
    """Put vLLM's figures beside ours."""
    peers = json.loads((HERE / "measured" / "vllm_h200.json").read_text(encoding="utf-8"))
    for part, keys in (("decode", ("batch",)), ("prefill", ("prompts", "tokens"))):
        table = next(
            (t for t in peers[part] if t["model"] == model and t["tensor_parallel_size"] == 1), None
        )
        if table is None:
            continue
        for point in result.get(part, ()):
            known = list(zip(*(table[key] for key in keys), strict=True))
            at = known.index(tuple(point[key] for key in keys))
            point["vllm_h200_ms"] = table["vllm_ms"][at]
            point["vllm_h200_percent_of_floor"] = 100 * table["floor_ms"][at] / table["vllm_ms"][at]
    offline, rates = result.get("offline"), peers["offline_output_tokens_per_s"]
    if offline and model in rates:
        seconds = offline["seconds"] * offline["output_tokens_per_s"] / rates[model]
        offline["vllm_h200_output_tokens_per_s"] = rates[model]
        # Of the steps as our scheduler makes them; vLLM's own are not known.
        offline["vllm_h200_percent_of_floor"] = 100 * offline["h200_floor_s"] / seconds


def print_points(model: str, result: dict[str, Any]) -> None:
    """One line a point."""
    for part in ("decode", "prefill"):
        for point in result.get(part, ()):
            name = str(point.get("batch", f"{point.get('prompts')}x{point.get('tokens')}"))
            line = f"{model:14s} {part:7s} {name:>7s} {point['ms']:8.3f} ms"
            if "full_step_ms" in point:
                line += f" (full steps {point['full_step_ms']:7.3f})"
            line += f"  floor {point['floor_ms']:8.3f} {point['percent_of_floor']:5.1f} %"
            if theirs := point.get("vllm_h200_percent_of_floor"):
                share = point["percent_of_floor"] / theirs
                line += f"  vLLM, H200: {point['vllm_h200_ms']:7.2f} ms {theirs:5.1f} %"
                line += f"  ratio of shares {share:.2f}"
            print(line)
    if offline := result.get("offline"):
        line = f"{model:14s} offline {offline['output_tokens_per_s']:8.0f} tok/s in"
        line += f" {offline['seconds']:.2f} s, GPU busy {offline['gpu_busy_percent']:.1f} %,"
        line += f" {offline['percent_of_floor']:.1f} % of the floor"
        if theirs := offline.get("vllm_h200_percent_of_floor"):
            line += f"  vLLM, H200: {offline['vllm_h200_output_tokens_per_s']} tok/s {theirs:.1f} %"
            line += f"  ratio of shares {offline['percent_of_floor'] / theirs:.2f}"
        print(line)
    for part in ("cold_start", "build_s"):
        if part in result:
            print(f"{model:14s} {part}: {json.dumps(result[part])}")


def works_of(
    bench: Bench, parts: list[str], batches: list[int]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What to measure of a model: name of the part, and what gives a point of it."""
    if "decode" in parts:
        yield from (("decode", partial(bench.decode, batch)) for batch in batches)
    if "prefill" in parts:
        yield from (("prefill", partial(bench.prefill, *shape)) for shape in PREFILLS)
    if "offline" in parts:
        yield "offline", bench.offline


def write(file: Path, results: dict[str, Any]) -> None:
    """Write what there is."""
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def guarded(work: Callable[[], Any]) -> Any:
    """A point, or what went wrong with it."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the other points are wanted all the same
        print(f"failed: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--models", default="Llama-3.1-8B,Qwen3-0.6B,Qwen3-30B-A3B")
    parser.add_argument("--parts", default="decode,prefill,offline,cold")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--commit", help="of the tree, if git cannot tell")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    ceilings = measure_ceilings()
    results: dict[str, Any] = {
        "schema": "engine_speed/v1", **environment(arguments.commit),
        "copy_tb_s": ceilings.bandwidth / 1e12, "gemm_tflop_s": ceilings.flops / 1e12, "models": {},
    }  # fmt: skip
    print(f"{results['gpu']}: copy {ceilings.bandwidth / 1e12:.2f} TB/s, "
          f"product {ceilings.flops / 1e12:.0f} TFLOP/s")  # fmt: skip
    for model in arguments.models.split(","):
        found: dict[str, Any] = {}
        results["models"][model] = found
        if "cold" in parts:
            found["cold_start"] = guarded(lambda model=model: measure_cold_start(model))
        bench = Bench(model, ceilings)
        found["build_s"], found["engine"] = bench.build_s, bench.runner.facts()
        batches = [int(b) for b in arguments.batches.split(",")]
        for part, work in works_of(bench, parts, batches):
            point = guarded(work)
            print(f"{model} {part}: {json.dumps(point)}", file=sys.stderr)
            if part == "offline":
                found[part] = point
            elif point:
                found.setdefault(part, []).append(point)
            write(arguments.output, results)  # what is measured stays, whatever comes
        compare(found, model)
        print_points(model, found)
        bench.runner.close()
        del bench
        gc.collect()
        torch.cuda.empty_cache()
        write(arguments.output, results)


if __name__ == "__main__":
    main()
