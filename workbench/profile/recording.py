"""Records a trace of the engine: of one step again and again, or of a scenario's steps."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.core.graph_sizes import default_graph_batch_sizes
from engine.core.model_spec import model_card_names
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import features_of
from engine.profiling.step_shapes import EngineLimits, StepDesign
from engine.runtime.executor import EngineError
from engine.runtime.runner_config import LoadFormat, RunnerConfig
from workbench.profile.traced_model import TINY
from workbench.record.provenance import source_commit
from workbench.running.engine_driver import HostClock
from workbench.running.engine_run import Runner, Say, build_runner, prepare
from workbench.running.engine_setup import EngineOptions, checkpoint_of
from workbench.scenario.source import LoadedScenario

_GPU_STEPS, _CPU_STEPS, _WATCHED_STEPS = 30, 5, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """What to trace.

    Attributes:
        text: of the step, as it was asked for.
        design: the step.
        model: a checkpoint, or a model card with dummy weights; None: a tiny one.
        load_format, device, dtype: as `RunnerConfig`.
        steps: how often; None: as often as it takes.
        eager: kernel by kernel, where the engine would replay a CUDA Graph.
        layers: of a model card, with random weights; None: all.
    """

    text: str
    design: StepDesign
    model: str | None
    load_format: LoadFormat = "auto"
    device: str | None = None
    dtype: str | None = None
    steps: int | None = None
    eager: bool = False
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """An engine that can run a step.

    Attributes:
        runner: of it.
        limits: of it.
        maker: of its plans.
        facts: that the runner tells of itself.
    """

    runner: Runner
    limits: EngineLimits
    maker: PlanMaker
    facts: dict[str, Any]


@contextmanager
def _ready(request: StepRequest, say: Say, *, small: bool = False) -> Iterator[_Ready]:
    """Build an engine for a step; it is closed afterwards.

    Args:
        request: the step.
        say: told what is going on.
        small: with as many KV pages as the step needs, not with as many as fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = _config(request, Path(folder))
        if small:
            config = replace(config, num_pages=_pages_for(request.design, config.page_size))
        name = request.model or "a tiny model"
        runner = build_runner(config, HostClock(), lambda text: say(f"{name}: {text}"))
        with closing(runner):
            facts = runner.facts()
            limits = _limits(runner, facts)
            if not limits.allows(request.design):
                raise EngineError(
                    f"the engine cannot run {request.text}: it has {limits.num_pages:,} pages of "
                    f"{limits.page_size} tokens and takes {limits.max_num_batched_tokens:,} tokens "
                    f"a step and {limits.max_model_len:,} a request"
                )
            runner.fill_cache_with_noise()
            yield _Ready(runner, limits, PlanMaker(limits, runner.spec.vocab_size), facts)


def record_step(request: StepRequest, path: Path, say: Say = lambda _: None) -> None:
    """Build an engine, run a step under torch's profiler, and write the trace.

    Raises:
        EngineError: there is no such engine here, or the step does not fit.
    """
    with _ready(request, say) as ready:
        on_gpu = ready.facts["device"] != "cpu"
        steps = request.steps or (_GPU_STEPS if on_gpu else _CPU_STEPS)
        say(f"{steps} x {request.text}")
        traced = importlib.import_module("engine.profiling.traced_steps")
        ceilings = ready.runner.ceilings()
        tracer = traced.trace_step(
            ready.runner, ready.maker, request.design, steps, eager=request.eager
        )
        _, plan = ready.maker.make(request.design)
        if request.eager:
            plan.graph_batch = 0
        tracer.write(path, {
            **_facts(ready.facts, ceilings),
            "model": request.model or TINY,
            "layers": request.layers,
            "load_format": ready.runner.config.load_format,
            "step": request.text,
            "launched": "kernel by kernel" if request.eager else "as when serving",
            "features": list(features_of(plan)),
        })  # fmt: skip


def run_watched(request: StepRequest, say: Say = lambda _: None) -> None:
    """Build an engine and run a step for a profiler that watches from outside.

    Its KV cache is as small as can be: ncu saves all memory of the GPU before it replays a kernel.

    Raises:
        EngineError: as `record_step`; or it is no GPU's engine.
    """
    with _ready(request, say, small=True) as ready:
        if ready.facts["device"] == "cpu":
            raise EngineError("nsys and ncu watch GPUs, and this engine runs on the CPU")
        module = importlib.import_module("engine.profiling.profiled_step")
        steps = request.steps or _WATCHED_STEPS
        module.run_for_profiler(
            ready.runner, ready.maker, request.design, steps, eager=request.eager
        )


def _short_model(model: str, layers: int, folder: Path) -> str:
    """The file of a model card with fewer layers."""
    cards = {name.casefold(): name for name in model_card_names()}
    card = cards.get(model.casefold())
    if card is None:
        raise EngineError(
            f"--layers needs a model card, {model} is none: {', '.join(cards.values())}"
        )
    text = (files("engine.core") / "model_cards" / f"{card}.json").read_text(encoding="utf-8")
    path = folder / f"{card}.json"
    path.write_text(json.dumps({**json.loads(text), "num_hidden_layers": layers}))
    return str(path)


def _config(request: StepRequest, folder: Path) -> RunnerConfig:
    design, model = request.design, str(files("scenarios") / TINY)
    if request.model is not None:
        model = checkpoint_of(request.model, request.load_format)
    if request.layers is not None:
        model = _short_model(request.model or model, request.layers, folder)
    tokens = sum(chunk.tokens for chunk in design.chunks) + len(design.decodes)
    requests = len(design.chunks) + len(design.decodes)
    longest = max([chunk.tokens + chunk.context for chunk in design.chunks] + [*design.decodes])
    config = RunnerConfig(
        model=model,
        load_format=request.load_format if request.model and not request.layers else "dummy",
        device=request.device,
        dtype=request.dtype,
    )
    sizes = default_graph_batch_sizes(max(config.max_running_requests, requests))
    # Only the graph that the step replays: capturing all of them would take longer than tracing.
    graphs = [size for size in sizes if size >= len(design.decodes)][:1]
    return replace(
        config,
        max_num_batched_tokens=max(config.max_num_batched_tokens, tokens),
        max_running_requests=max(config.max_running_requests, requests),
        cuda_graph_batch_sizes=tuple(graphs),
        cuda_graph_tokens=None if design.chunks else (),
        max_model_len=longest + 1 if request.model is None else None,
    )


def _pages_for(design: StepDesign, page_size: int) -> int:
    """KV pages that the requests of a step hold, one more each for what follows."""
    lengths = [chunk.tokens + chunk.context for chunk in design.chunks] + [*design.decodes]
    return sum(-(-length // page_size) + 1 for length in lengths)


def _limits(runner: Runner, facts: dict[str, Any]) -> EngineLimits:
    return EngineLimits(
        num_pages=runner.num_pages,
        page_size=facts["page_size"],
        max_model_len=runner.max_model_len,
        max_num_batched_tokens=runner.config.max_num_batched_tokens,
        max_running_requests=runner.config.max_running_requests,
        graph_batch_sizes=tuple(facts["cuda_graph_batch_sizes"]),
    )


def _facts(facts: dict[str, Any], ceilings: dict[str, float]) -> dict[str, Any]:
    kept = ("device", "dtype", "kernels", "torch", "triton", "cuda", "nvrtc")
    return {
        **{key: facts.get(key) for key in kept},
        "ceilings": ceilings,
        "commit": source_commit(),
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def record_run(
    loaded: LoadedScenario,
    options: EngineOptions,
    path: Path,
    *,
    first: int,
    steps: int,
    say: Say = lambda _: None,
) -> None:
    """Serve a scenario, record some of its steps, and end it.

    Args:
        loaded: the scenario.
        options: of the engine.
        path: of the trace.
        first: steps that go by before.
        steps: to record.
        say: told what is going on.

    Raises:
        EngineError: the run has not so many steps. More as `prepare`.
    """
    watching: list[Any] = []

    def build(config: RunnerConfig, clock: Callable[[], int], tell: Say) -> Runner:
        runner = build_runner(config, clock, tell)
        traced = importlib.import_module("engine.profiling.traced_steps")
        watching.append(traced.StepsOfARun(runner, first, steps))
        return runner

    ready = prepare(loaded, "steps", options, build=build, say=say)
    with closing(ready):
        (watched,) = watching
        say(f"{loaded.scenario.name}: serving until {first + steps} steps have run")
        ended = ready.run(should_stop=lambda: watched.tracer is not None)
        watched.finish()
        if watched.tracer is None:
            raise EngineError(
                f"the run ended before step {first}: it has fewer steps; ask for --first 0, or "
                "for more requests (--num-prompts)"
            ) from ended.failure
        watched.tracer.write(path, {
            **_facts(ready.runner.facts(), ready.runner.ceilings()),
            "model": ready.runner.config.model,
            "scenario": loaded.scenario.name,
            "first_step": first,
        })  # fmt: skip
