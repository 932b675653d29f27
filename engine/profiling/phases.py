"""A workload from its first call on: cold, warm and eager, and as CUDA Graphs. Needs torch.

    python -m engine.profiling.phases decode OUTPUT --model Qwen3-0.6B --step-batch 8

is one process, so that everything in it happens for the first time; kernels are compiled anew if
TRITON_CACHE_DIR names an empty folder. It leaves OUTPUT/phases.json and a trace of each phase.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.core.model_spec import load_model_spec
from engine.core.plan import StepPlan
from engine.kernels.registry import select_kernels
from engine.models.dit import SPECS, Dit, random_weights
from engine.models.dummy_weights import dummy_weights
from engine.models.kv_cache import allocate_kv_cache
from engine.models.transformer import Transformer
from engine.profiling.denoising import DenoisingLoop
from engine.profiling.first_costs import FirstCosts
from engine.profiling.made_plans import PlanMaker
from engine.profiling.step_shapes import EngineLimits, StepDesign
from engine.profiling.traced_steps import Tracer, run_steps
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig

_DTYPE = torch.bfloat16
_PAGE_SIZE = 16
_REPEATS = 5


class Workload(Protocol):
    """Work that comes in equal units.

    Attributes:
        what: it is, in words.
        unit: name of one unit.
        traced_units: that show the steady state.
    """

    what: str
    unit: str
    traced_units: int

    def eager(self, units: int) -> None:
        """Do so much, kernel by kernel, and wait."""
        ...

    def graphed(self, units: int) -> None:
        """Do so much by replaying a CUDA Graph, captured at the first call, and wait."""
        ...


class Decoding:
    """Decode steps of one batch, as when serving; the engine was not warmed up.

    Args:
        model: a model card.
        batch: requests.
        context: KV tokens of each.
    """

    unit, traced_units = "decode step", 20

    def __init__(self, model: str, batch: int, context: int) -> None:
        self.what = f"{model}, decode of {batch} x {context} tokens, bf16, random weights"
        device, spec = torch.device("cuda", 0), load_model_spec(model)
        limits = EngineLimits(
            num_pages=batch * -(-context // _PAGE_SIZE), page_size=_PAGE_SIZE,
            max_model_len=context + 1, max_num_batched_tokens=max(batch, context),
            max_running_requests=batch, graph_batch_sizes=(batch,),
        )  # fmt: skip
        config = RunnerConfig(
            model=model, load_format="dummy", device="cuda:0", dtype="bf16",
            page_size=_PAGE_SIZE, num_pages=limits.num_pages, max_model_len=limits.max_model_len,
            max_num_batched_tokens=limits.max_num_batched_tokens, max_running_requests=batch,
            cuda_graph_batch_sizes=(batch,), cuda_graph_tokens=(),
        )  # fmt: skip
        with torch.inference_mode():
            weights = dummy_weights(spec, device, _DTYPE)
            kernels = select_kernels(device)
            transformer = Transformer(spec, weights, kernels, limits.max_model_len)
            cache = allocate_kv_cache(spec, limits.num_pages, _PAGE_SIZE, device, _DTYPE)
            cache.pool.normal_()
        self._runner = ModelRunner(config, transformer, cache, time.perf_counter_ns)
        design = StepDesign(decodes=(context,) * batch)
        before, self._plan = PlanMaker(limits, spec.vocab_size).make(design)
        self._before: StepPlan | None = before
        self._batch = batch

    def eager(self, units: int) -> None:
        """As `Workload.eager`; the first call of all includes the step that shows the pages."""
        self._run(0, units)

    def graphed(self, units: int) -> None:
        """As `Workload.graphed`."""
        self._run(self._batch, units)

    def _run(self, graph_batch: int, units: int) -> None:
        if self._before is not None:
            self._runner.launch(self._before).result()
            self._before = None
        self._plan.graph_batch = graph_batch
        run_steps(self._runner, self._plan, units)


class Denoising:
    """Steps of a diffusion transformer's denoising loop.

    Args:
        model: one of `engine.models.dit.SPECS`.
        batch: images.
    """

    unit, traced_units = "denoising step", 20

    def __init__(self, model: str, batch: int) -> None:
        spec, device = SPECS[model], torch.device("cuda", 0)
        self.what = f"{model}, {batch} latents of 32 x 32, DDIM, bf16, random weights"
        dit = Dit(spec, random_weights(spec, device, _DTYPE))
        self._loop = DenoisingLoop(dit, batch, self.traced_units)
        shape = (batch, spec.in_channels, spec.input_size, spec.input_size)
        self._noise = torch.randn(shape, device=device)
        self._classes = torch.arange(batch, device=device) % spec.num_classes

    def eager(self, units: int) -> None:
        """As `Workload.eager`."""
        self._run(self._loop.step, units)

    def graphed(self, units: int) -> None:
        """As `Workload.graphed`."""
        self._run(self._loop.replay, units)

    def _run(self, step: Callable[[], None], units: int) -> None:
        for number in range(units):
            if number % self._loop.steps == 0:
                self._loop.begin(self._noise, self._classes)
            step()
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where a workload's traces go."""

    folder: Path

    def write(self, tracer: Tracer, name: str) -> str:
        """The file's name."""
        file = f"{name}.json.gz"
        tracer.write(self.folder / file, {})
        return file


def measure_phases(workload: Workload, folder: Path) -> dict[str, Any]:
    """Go through all phases; each is told by JSON data.

    Args:
        workload: that has done nothing yet.
        folder: of the traces.
    """
    kept = _Kept(folder)
    _start_profiler()
    cold = _first(workload.eager, kept, "cold")
    eager = _steady(workload.eager, workload.traced_units, kept, "eager")
    capture = _first(workload.graphed, kept, "capture")
    graph = _steady(workload.graphed, workload.traced_units, kept, "graph")
    properties = torch.cuda.get_device_properties(0)
    return {
        "what": workload.what,
        "unit": workload.unit,
        "gpu": properties.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "phases": {"cold": cold, "eager": eager, "capture": capture, "graph": graph},
    }


def _start_profiler() -> None:
    """The profiler's own first call, which is nobody's cost but its own."""
    tracer = Tracer()
    tracer.start()
    torch.zeros(1, device="cuda").add_(1)
    tracer.stop()


def _first(work: Callable[[int], None], kept: _Kept, name: str) -> dict[str, Any]:
    """One unit, for the first time."""
    costs, tracer = FirstCosts(), Tracer()
    torch.cuda.synchronize()
    tracer.start()
    with costs.watching():
        begin = time.perf_counter()
        work(1)
        wall_ms = 1e3 * (time.perf_counter() - begin)
    tracer.stop()
    return {"wall_ms": wall_ms, "causes_ms": costs.ms, "counts": costs.counts,
            "trace": kept.write(tracer, name)}  # fmt: skip


def _steady(work: Callable[[int], None], units: int, kept: _Kept, name: str) -> dict[str, Any]:
    """Many units, timed without the profiler and then seen by it."""
    work(units)
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        work(units)
        times.append(1e3 * (time.perf_counter() - begin) / units)
    tracer = Tracer()
    tracer.start()
    work(units)
    tracer.stop()
    return {"unit_ms": statistics.median(times), "unit_ms_all": times, "units": units,
            "trace": kept.write(tracer, name)}  # fmt: skip


def main() -> None:
    """Measure one workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workload", choices=("decode", "denoise"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, default=1024)
    arguments = parser.parse_args()
    workload: Workload
    if arguments.workload == "decode":
        workload = Decoding(arguments.model, arguments.batch, arguments.context)
    else:
        workload = Denoising(arguments.model, arguments.batch)
    found = measure_phases(workload, arguments.output)
    path = arguments.output / "phases.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
