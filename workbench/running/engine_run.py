"""From a scenario to a summary as `workbench.running.simulate`, by the engine and in real time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from engine.core.config import SchedulerConfig
from engine.core.journal import Journal
from engine.core.model_spec import ModelSpec
from engine.core.workload import Workload
from engine.runtime.executor import Executor
from engine.runtime.runner_config import SMALL_MODEL, RunnerConfig
from simulator.world import Outcome
from workbench.metrics.latency import NS_PER_S
from workbench.record.header import ReplicaFacts, RunHeader
from workbench.running.capacity import Capacity
from workbench.running.deployment import replica_facts, scheduler_config
from workbench.running.engine_driver import Driver, HostClock, WallClock
from workbench.running.engine_packages import import_engine, use_one_thread
from workbench.running.engine_prompts import RealPrompts, ShownText, TextPrompts
from workbench.running.engine_setup import (
    EngineOptions,
    asked_model,
    config_file,
    is_demo,
    model_spec,
    runner_config,
    substitutions,
)
from workbench.running.execution import (
    DetailName,
    Ended,
    OnProgress,
    Outlet,
    ShouldStop,
    Sink,
    scenario_header,
)
from workbench.running.feasibility import refuse_hopeless, refuse_too_long
from workbench.scenario.source import LoadedScenario
from workbench.workload.workload import BuiltWorkload, build_workload

COST_MODEL: Final = "measured"


class Runner(Executor, Protocol):
    """An executor and what it knows of itself; `engine.runtime.model_runner.ModelRunner` is one."""

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    @property
    def num_pages(self) -> int:
        """KV pages that requests may hold."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output."""
        ...

    @property
    def config(self) -> RunnerConfig:
        """As resolved: the graph sizes are those that were captured."""
        ...

    def facts(self) -> dict[str, Any]:
        """JSON data for the header of the run; `device` is the device's own name."""
        ...

    def ceilings(self) -> dict[str, float]:
        """What the device reaches at best; nothing for a CPU."""
        ...

    def fill_cache_with_noise(self) -> None:
        """Random keys and values in all pages."""
        ...

    def close(self) -> None:
        """Let go of the device's memory."""
        ...


Say = Callable[[str], None]
Build = Callable[[RunnerConfig, Callable[[], int], Say], Runner]


def build_runner(config: RunnerConfig, clock: Callable[[], int], say: Say) -> Runner:
    """Load a model and make it ready to serve; `say` is told what takes time.

    Raises:
        EngineError: a package of the engine is not installed. More from the engine itself: the
            checkpoint is broken, it does not fit, there is no such device.
    """
    runner: Runner = import_engine("engine.runtime.build").build_runner(config, clock, say)
    if runner.facts()["device"] == "cpu" and runner.spec.num_parameters < SMALL_MODEL:
        use_one_thread()
    return runner


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A run of the engine that is ready: the model is loaded and warm, nothing has been asked.

    Attributes:
        header: of its record.
        workload: what is asked.
        scheduler: how it is scheduled.
        max_concurrency: the clients' own cap, or None.
        runner: computes it.
        clock: the runner's too.
        prompts: the ids of each request's prompt.
    """

    header: RunHeader
    workload: Workload
    scheduler: SchedulerConfig
    max_concurrency: int | None
    runner: Runner
    clock: WallClock
    prompts: RealPrompts

    def run(
        self,
        sinks: Sequence[Sink] = (),
        *,
        live: bool = False,
        journal: bool = False,
        should_stop: ShouldStop = lambda: False,
        on_progress: OnProgress = lambda _: None,
    ) -> Ended:
        """Run to the end, or until `should_stop`, asked 20 times a second, says so.

        Whatever breaks the run is in the result, with everything that had been recorded by then;
        only a sink that cannot be written to raises.
        """
        outlet = Outlet(self.header, sinks, live, on_progress)
        recorded = Journal() if journal else None
        driver = Driver(
            self.workload,
            self.scheduler,
            self.runner,
            self.clock,
            self.prompts,
            max_concurrency=self.max_concurrency,
            log=outlet.log,
            journal=recorded,
        )
        stopped: str | None = None
        failure: Exception | None = None
        try:
            if driver.run(should_stop=should_stop, on_progress=outlet.on_progress) is (
                Outcome.STOPPED
            ):
                stopped = f"interrupted at {self.clock() / NS_PER_S:,.1f} s"
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - reported by the caller, after the record is safe
            failure = error
            stopped = f"failed at {self.clock() / NS_PER_S:,.1f} s: {_one_line(error)}"
        driver.close()
        return Ended(
            _summary(outlet, stopped, failure),
            stopped,
            [] if recorded is None else [recorded],
            failure,
            _faults(driver),
            driver.failed_requests + driver.broken_requests + driver.lost_requests,
        )

    def shown_texts(self, count: int) -> list[ShownText]:
        """The first answers in words, where prompts are words."""
        return self.prompts.shown(count) if isinstance(self.prompts, TextPrompts) else []

    def close(self) -> None:
        """Let go of the device's memory."""
        self.runner.close()


def prepare(
    loaded: LoadedScenario,
    detail: DetailName,
    options: EngineOptions,
    *,
    build: Build | None = None,
    clock: WallClock | None = None,
    say: Say = lambda _: None,
) -> EngineRun:
    """Make an engine ready for a scenario; `close` what it returns.

    Args:
        loaded: the scenario.
        detail: how much is recorded.
        options: of the command line.
        build: makes the runner; `build_runner` by default.
        clock: `HostClock` by default.
        say: told what takes time.

    Raises:
        ScenarioErrors: the engine cannot do what the scenario asks for.
        WorkloadError: its trace or the workload cannot be used.

    More as `build_runner`.
    """
    config, scenario = runner_config(loaded, options), loaded.scenario
    (pool,) = scenario.deployment.pools
    name = asked_model(scenario, options)
    # The KV pool is known only when the model is loaded, which takes long; the context is now.
    budget = refuse_too_long_prompts(loaded, options)
    clock = clock or HostClock()
    runner = (build or build_runner)(config, clock, lambda text: say(f"{name}: {text}"))
    try:
        facts = replica_facts(pool, runner.num_pages, runner.max_model_len)
        capacity = Capacity(name, runner.max_model_len, (facts,), budget)
        refuse_too_long(loaded, capacity)
        built = build_workload(
            scenario,
            vocab_size=runner.spec.vocab_size,
            max_context_tokens=capacity.max_context_tokens,
        )
        refuse_hopeless(loaded, capacity, built)
        header = _header(loaded, detail, options, runner, facts, built)
        scheduler = scheduler_config(
            scenario,
            pool.model_copy(
                update={"cuda_graph_batch_sizes": runner.config.cuda_graph_batch_sizes}
            ),
            num_pages=runner.num_pages,
            max_model_len=runner.max_model_len,
        )
    except BaseException:
        runner.close()
        raise
    cap = scenario.load.max_concurrency
    kind = TextPrompts if is_demo(scenario, options) else RealPrompts
    prompts = kind(built.workload, runner.spec.vocab_size, scenario.seed)
    return EngineRun(header, built.workload, scheduler, cap, runner, clock, prompts)


def refuse_too_long_prompts(loaded: LoadedScenario, options: EngineOptions) -> int:
    """Compare a scenario's requests with the model's context; the prefill tokens of a step.

    Raises:
        ScenarioErrors: some can never be served, or the engine cannot do what is asked for.
        ModelConfigError, ModelNotFoundError: the model is not there, or not supported.
    """
    spec, scenario = model_spec(runner_config(loaded, options)), loaded.scenario
    (pool,) = scenario.deployment.pools
    budget = scheduler_config(
        scenario, pool, num_pages=1, max_model_len=spec.max_model_len
    ).prefill_budget
    name = asked_model(scenario, options)
    refuse_too_long(loaded, Capacity(name, spec.max_model_len, (), budget))
    return budget


def _header(
    loaded: LoadedScenario,
    detail: DetailName,
    options: EngineOptions,
    runner: Runner,
    replica: ReplicaFacts,
    built: BuiltWorkload,
) -> RunHeader:
    # Through JSON, because headers take no subclasses of str, such as torch's version.
    facts: dict[str, Any] = json.loads(json.dumps(runner.facts()))
    config, model = runner.config, asked_model(loaded.scenario, options)
    is_named = options.model is not None or is_demo(loaded.scenario, options)
    file = config_file(config)
    return scenario_header(
        loaded,
        detail,
        kind="engine",
        # What a simulation of the scenario would call it, so that a comparison finds them alike.
        model=model if is_named else runner.spec.name,
        gpu=str(facts["device"]),
        cost_model=COST_MODEL,
        replicas=(replica,),
        notes=(*built.notes, *substitutions(loaded.scenario, options, facts)),
        engine={
            "model": model,
            "config": None if file is None else {"path": file.path, "sha256": file.sha256},
            "load_format": config.load_format,
            "vocab_size": runner.spec.vocab_size,
            **facts,
        },
    )


def _summary(
    outlet: Outlet, stopped: str | None, failure: Exception | None
) -> dict[str, Any] | None:
    """The summary; a run that broke may have left tables that make none."""
    if failure is None:
        return outlet.summary(stopped)
    with suppress(ValueError):
        return outlet.summary(stopped)
    return None


def _faults(driver: Driver) -> tuple[str, ...]:
    """What went wrong on the way, in sentences."""
    faults = [
        f"{_count(steps, 'step')} failed, what they had to do was computed again: {text}"
        for text, steps in driver.failed_steps.items()
    ]
    if driver.failed_requests:
        requests = _count(driver.failed_requests, "request")
        faults.append(f"{requests} ended with an error: their steps failed again and again")
    if driver.broken_requests:
        requests = _count(driver.broken_requests, "request")
        faults.append(f"{requests} ended with an error: the model gave logits that are no numbers")
    if driver.lost_requests:
        faults.append(f"{_count(driver.lost_requests, 'request')} ended with an error: device lost")
    return tuple(faults)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
