"""Records a trace of the engine: of one step again and again, or of a scenario's steps."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import features_of
from engine.profiling.step_shapes import EngineLimits, StepDesign
from engine.runtime.executor import EngineError
from engine.runtime.runner_config import LoadFormat, RunnerConfig
from workbench.engine_driver import HostClock
from workbench.engine_run import Runner, Say, build_runner, prepare
from workbench.engine_setup import EngineOptions
from workbench.provenance import source_commit
from workbench.scenario_source import LoadedScenario

_GPU_STEPS, _CPU_STEPS = 30, 5
_TINY: Final = "tiny_model.json"


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
    """

    text: str
    design: StepDesign
    model: str | None
    load_format: LoadFormat = "auto"
    device: str | None = None
    dtype: str | None = None
    steps: int | None = None
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace that was written.

    Attributes:
        path: of the trace.
        model: what ran, as `load_model_spec` takes it.
    """

    path: Path
    about: dict[str, Any]


def record_step(request: StepRequest, path: Path, say: Say = lambda _: None) -> Recorded:
    """Build an engine, run a step under torch's profiler, and write the trace.

    Raises:
        EngineError: there is no such engine here, or the step does not fit.
    """
    config = _config(request)
    runner = build_runner(config, HostClock(), lambda text: say(f"{config.model}: {text}"))
    with closing(runner):
        facts = runner.facts()
        limits = _limits(runner, facts)
        if not limits.allows(request.design):
            raise EngineError(
                f"the engine cannot run {request.text}: it has {limits.num_pages:,} pages of "
                f"{limits.page_size} tokens and takes {limits.max_num_batched_tokens:,} tokens a step"
            )
        runner.fill_cache_with_noise()
        on_gpu = facts["device"] != "cpu"
        steps = request.steps or (_GPU_STEPS if on_gpu else _CPU_STEPS)
        say(f"{config.model}: {steps} x {request.text}")
        traced = importlib.import_module("engine.profiling.traced_steps")
        maker = PlanMaker(limits, runner.spec.vocab_size)
        ceilings = runner.ceilings()
        tracer = traced.trace_step(runner, maker, request.design, steps, eager=request.eager)
        _, plan = maker.make(request.design)
        if request.eager:
            plan.graph_batch = 0
        about = {
            **_facts(facts, ceilings),
            "model": config.model,
            "step": request.text,
            "launched": "kernel by kernel" if request.eager else "as when serving",
            "features": list(features_of(plan)),
        }
        tracer.write(path, about)
    return Recorded(path, about)


def _config(request: StepRequest) -> RunnerConfig:
    from engine.core.graph_sizes import default_graph_batch_sizes

    design = request.design
    tokens = sum(chunk.tokens for chunk in design.chunks) + len(design.decodes)
    requests = len(design.chunks) + len(design.decodes)
    longest = max([chunk.tokens + chunk.context for chunk in design.chunks] + [*design.decodes])
    config = RunnerConfig(
        model=request.model or str(files("scenarios") / _TINY),
        load_format=request.load_format if request.model else "dummy",
        device=request.device,
        dtype=request.dtype,
    )
    sizes = default_graph_batch_sizes(max(config.max_running_requests, requests))
    # Only the graph that the step replays: capturing all of them would take longer than tracing.
    graphs = [size for size in sizes if size >= len(design.decodes)][:1] if design.decodes else []
    return replace(
        config,
        max_num_batched_tokens=max(config.max_num_batched_tokens, tokens),
        max_running_requests=max(config.max_running_requests, requests),
        cuda_graph_batch_sizes=tuple(graphs),
        max_model_len=longest + 1 if request.model is None else None,
        num_pages=None,
    )


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
) -> Recorded:
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
        about = {
            **_facts(ready.runner.facts(), ready.runner.ceilings()),
            "model": ready.runner.config.model,
            "scenario": loaded.scenario.name,
            "first_step": first,
        }
        watched.tracer.write(path, about)
    return Recorded(path, about)
