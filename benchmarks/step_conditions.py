"""What else a step's time depends on, its shape aside: where pages lie, idle times, heat, sharing.

    python benchmarks/step_conditions.py OUT.json [--models Qwen3-0.6B,Llama-3.1-8B] [--device cuda]

Times are medians in us, of random weights. Per model:

    pages      decode steps whose requests have pages anywhere, in runs of 8 or 2, or one after the
               other; of lengths that differ, that hardly do, or not at all
    idle       steps after so many ms of nothing to do: GPU time, launch, launch to result
    sustained  one decode step for 2.5 s: medians of ten equal parts
    shared     decode steps with shared context, the same without sharing, and without that context

`docs/calibration.md` says what came of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from engine.core.graph_sizes import default_graph_batch_sizes
from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import repeat, run_in_turn
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served
from engine.runtime.build import build_runner
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from workbench.record.provenance import source_commit
from workbench.running.engine_driver import HostClock

LENGTHS = {
    "1x1024": (1024,), "2x600": (600, 590), "8x600": as_served(8, 600, 4096),
    "8x600 nearly equal": tuple(560 + 11 * at for at in range(8)),
    "32x512": as_served(32, 512, 4096),
    "32x512 nearly equal": tuple(380 + 9 * at for at in range(32)),
    "32x512 equal": (512,) * 32, "64x512": as_served(64, 512, 4096),
    "128x512": as_served(128, 512, 4096),
}  # fmt: skip
IDLE_MS = (0, 0.3, 1, 5, 30, 200)
FIRST_STEPS = {
    "decode 8": StepDesign(decodes=as_served(8, 512, 4096)),
    "decode 64": StepDesign(decodes=as_served(64, 512, 4096)),
    "prompt 64": StepDesign((Chunk(64),)), "prompt 300": StepDesign((Chunk(300),)),
    "prompt 600": StepDesign((Chunk(600),)),
    "prompt 300, decode 16": StepDesign((Chunk(300),), as_served(16, 512, 4096)),
    "prompt 2048": StepDesign((Chunk(2048),)), "prompt 8000": StepDesign((Chunk(8000),)),
}  # fmt: skip
SUSTAINED, SUSTAINED_NS, PARTS = (16, 128, 256), 2_500_000_000, 10
SHARING = ((96, 1024, 1), (160, 1024, 1), (224, 1024, 1), (224, 1024, 8), (224, 2048, 1))
_REGION = 16_000  # pages at the beginning, where those of a new service lie
_REPEATS = 6


class Bench:
    """One engine, measured."""

    def __init__(self, runner: ModelRunner, clock: HostClock) -> None:
        self._runner, self._clock = runner, clock
        facts, config = runner.facts(), runner.config
        self._limits = EngineLimits(
            num_pages=runner.num_pages,
            page_size=facts["page_size"],
            max_model_len=runner.max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_running_requests=config.max_running_requests,
            graph_batch_sizes=tuple(facts["cuda_graph_batch_sizes"]),
        )

    def _made(self, design: StepDesign, pages: list[int] | None = None) -> StepPlan | None:
        """Its plan, with the requests' pages in this order; None: the engine cannot run it."""
        if not self._limits.allows(design):
            return None
        maker = PlanMaker(self._limits, self._runner.spec.vocab_size)
        if pages is not None:
            maker._pages = pages  # noqa: SLF001 - the one thing that is varied
        before, plan = maker.make(design)
        if before is not None:
            self._runner.launch(before).result()
        return plan

    def _median_us(self, plan: StepPlan | None) -> float | None:
        return None if plan is None else _us(repeat(self._runner, plan))

    def pages(self) -> dict[str, dict[str, float | None]]:
        """By lengths and by where pages lie."""
        layouts = _layouts(self._limits.num_pages)
        return {
            name: {
                layout: self._median_us(self._made(StepDesign(decodes=lengths), pages))
                for layout, pages in layouts.items()
            }
            for name, lengths in LENGTHS.items()
        }

    def idle(self) -> dict[str, dict[str, Any]]:
        """By step and by ms of nothing to do."""
        return {
            name: {"among its like": self._median_us(plan)}
            | {f"{ms:g} ms": self._after(plan, ms) for ms in IDLE_MS}
            for name, design in FIRST_STEPS.items()
            if (plan := self._made(design)) is not None
        }

    def _after(self, plan: StepPlan, idle_ms: float) -> dict[str, float]:
        gpu, launch, whole = [], [], []
        for _ in range(_REPEATS):
            time.sleep(idle_ms / 1e3)
            begin = self._clock()
            step = self._runner.launch(plan)
            launch.append(self._clock() - begin)
            gpu.append(step.result().gpu_ns)
            whole.append(self._clock() - begin)
        return {"gpu": _us(gpu), "launch": _us(launch), "launch to result": _us(whole)}

    def sustained(self) -> dict[str, list[float]]:
        """By requests."""
        found = {}
        for batch in SUSTAINED:
            plan = self._made(StepDesign(decodes=as_served(batch, 512, 4096)))
            if plan is not None:
                times = [ns for _, ns in run_in_turn(self._runner, _for_a_while(plan))]
                parts = np.array_split(np.array(times), PARTS)
                found[str(batch)] = [_us(part.tolist()) for part in parts if len(part)]
        return found

    def shared(self) -> dict[str, dict[str, float | None]]:
        """By requests, tokens that each shares, and groups that share."""
        found = {}
        for batch, shared, groups in SHARING:
            own = as_served(batch, 256, 4096)
            whole = tuple(shared + length for length in own)
            found[f"{batch} requests, {shared} tokens, {groups} groups"] = {
                "shared": self._median_us(
                    self._made(StepDesign((), whole, shared=shared, groups=groups))
                ),
                "not shared": self._median_us(self._made(StepDesign((), whole))),
                "without": self._median_us(self._made(StepDesign((), own))),
            }
        return found


def _for_a_while(plan: StepPlan) -> Iterator[StepPlan]:
    end = time.monotonic_ns() + SUSTAINED_NS
    while time.monotonic_ns() < end:
        yield plan


def _layouts(num_pages: int) -> dict[str, list[int]]:
    """Orders in which requests take pages."""
    draw, region = np.random.default_rng(0), min(num_pages, _REGION)

    def runs(length: int) -> list[int]:
        first = np.arange(region // length * length).reshape(-1, length)
        return [*draw.permutation(first).ravel().tolist(), *range(first.size, num_pages)]

    return {
        "anywhere": draw.permutation(num_pages).tolist(), "in order": list(range(num_pages)),
        "runs of 8": runs(8), "runs of 2": runs(2), "scattered in a region": runs(1),
    }  # fmt: skip


def _us(times_ns: list[int]) -> float:
    return round(statistics.median(times_ns) / 1e3, 1)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="Qwen3-0.6B,Llama-3.1-8B")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    found: dict[str, Any] = {"commit": source_commit(), "torch": torch.__version__,
                             "triton": triton.__version__, "unit": "us"}  # fmt: skip
    for model in options.models.split(","):
        config = RunnerConfig(
            model=model, load_format="dummy", device=options.device,
            cuda_graph_batch_sizes=default_graph_batch_sizes(256),
        )  # fmt: skip
        clock = HostClock()
        runner = build_runner(config, clock, lambda text, model=model: print(model, text))
        runner.fill_cache_with_noise()
        bench = Bench(runner, clock)
        found["device"] = runner.facts()["device"]
        found[model] = {
            part: getattr(bench, part)() for part in ("pages", "idle", "sustained", "shared")
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        runner.close()


if __name__ == "__main__":
    main()
