"""From a scenario to a summary: workload, deployment, simulated world; events go to sinks.

Whoever calls this decides where events go (a run record, a pipe) and when to stop.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from engine.core.events import Detail, EventLog, Segment
from engine.core.journal import Journal
from engine.core.workload import Workload
from simulator.world import Outcome, Progress, World
from workbench.deployment import Deployment, resolve_deployment
from workbench.feasibility import refuse_hopeless, refuse_too_long
from workbench.latency import NS_PER_S
from workbench.metrics import SummaryTables, summarize
from workbench.provenance import input_files, source_commit, workbench_version
from workbench.run_header import LoadFacts, MeasureFacts, RunHeader, SloFacts
from workbench.scenario import Scenario
from workbench.scenario_source import LoadedScenario
from workbench.workload import BuiltWorkload, build_workload

Sink = Callable[[Segment], None]
ShouldStop = Callable[[], bool]
OnProgress = Callable[[Progress], None]
Replay = Callable[[World, ShouldStop, OnProgress], None]
DetailName = Literal["none", "steps", "items", "pages"]

_LIVE_SEGMENT_ROWS: Final = 10_000
_LIVE_FLUSH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulation that is ready to run: everything is resolved, nothing has happened.

    Attributes:
        header: of its record.
        workload: what is asked.
        deployment: of whom.
        max_concurrency: the clients' own cap, or None.
        replay: brings a fresh world to the point from which it goes on; it has a journal then.
    """

    header: RunHeader
    workload: Workload
    deployment: Deployment
    max_concurrency: int | None
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a simulation.

    Attributes:
        summary: by `workbench.metrics.summarize`.
        stopped_early: why it ended before its workload did; None if it did not.
        journals: inputs of each replica's scheduler, if they were asked for.
    """

    summary: dict[str, Any]
    stopped_early: str | None
    journals: Sequence[Journal]


def prepare(loaded: LoadedScenario, detail: DetailName) -> Simulation:
    """Resolve a scenario into a simulation.

    Raises:
        ScenarioErrors: the set-up is physically impossible.
        WorkloadError: its trace or the workload cannot be used.
    """
    deployment = resolve_deployment(loaded)
    refuse_too_long(loaded, deployment)
    built = build_workload(
        loaded.scenario,
        vocab_size=deployment.model.vocab_size,
        max_context_tokens=deployment.max_context_tokens,
    )
    refuse_hopeless(loaded, deployment, built)
    header = _header(loaded, detail, deployment, built)
    load = loaded.scenario.load
    return Simulation(header, built.workload, deployment, load.max_concurrency)


def run(
    simulation: Simulation,
    sinks: Sequence[Sink] = (),
    *,
    live: bool = False,
    journal: bool = False,
    should_stop: ShouldStop = lambda: False,
    on_progress: OnProgress = lambda _: None,
) -> Simulated:
    """Run a simulation to its end, or until `should_stop` says so.

    Args:
        simulation: what to run.
        sinks: get the segments of events, in order.
        live: somebody watches: segments come at least every 10,000 rows, and every 50 ms as far as
            a simulated second is over by then.
        journal: keep the inputs of the schedulers.
        should_stop: asked about once a simulated second.
        on_progress: told as often.

    Raises:
        MetricsError: the tables contradict each other, which is a defect.
    """
    kept = SummaryTables()

    def hand_out(segment: Segment) -> None:
        kept.add(segment)
        for sink in sinks:
            sink(segment)

    deployment, header = simulation.deployment, simulation.header
    log = EventLog(Detail[header.detail.upper()], hand_out)
    if live:
        log = EventLog(Detail[header.detail.upper()], hand_out, _LIVE_SEGMENT_ROWS)
        on_progress = _flushing(log, on_progress)
    world = World(
        simulation.workload,
        [replica.config for replica in deployment.replicas],
        deployment.router,
        max_concurrency=simulation.max_concurrency,
        log=log,
        journal=journal or simulation.replay is not None,
    )
    if simulation.replay is not None:
        simulation.replay(world, should_stop, on_progress)
    result = world.run(should_stop=should_stop, on_progress=on_progress)
    stopped = None
    if result.outcome is Outcome.STOPPED:
        stopped = f"interrupted at {result.end_ns / NS_PER_S:,.1f} s of simulated time"
    return Simulated(summarize(kept.tables(), header, stopped), stopped, result.journals)


def _flushing(log: EventLog, on_progress: OnProgress) -> OnProgress:
    """`on_progress` that also hands out what the log holds, every now and then."""
    next_s = 0.0

    def flush_and_tell(progress: Progress) -> None:
        nonlocal next_s
        on_progress(progress)
        if time.monotonic() >= next_s:
            log.flush()
            next_s = time.monotonic() + _LIVE_FLUSH_S

    return flush_and_tell


def _header(
    loaded: LoadedScenario, detail: DetailName, deployment: Deployment, built: BuiltWorkload
) -> RunHeader:
    scenario = loaded.scenario
    return RunHeader(
        name=scenario.name,
        kind="simulation",
        detail=detail,
        seed=scenario.seed,
        model=deployment.model.name,
        gpu=deployment.gpu.name,
        cost_model=deployment.cost_model_name,
        replicas=tuple(replica.facts for replica in deployment.replicas),
        load=_load_facts(scenario),
        measure=_measure_facts(scenario),
        slo=_slo_facts(scenario),
        scenario=loaded.resolved,
        scenario_sha256=loaded.sha256,
        commit=source_commit(),
        version=workbench_version(),
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        inputs=input_files(scenario),
        notes=built.notes,
    )


def _load_facts(scenario: Scenario) -> LoadFacts:
    load = scenario.load
    return LoadFacts(
        kind=load.kind,
        request_rate=getattr(load, "request_rate", None),
        burstiness=getattr(load, "burstiness", None),
        max_concurrency=load.max_concurrency,
    )


def _measure_facts(scenario: Scenario) -> MeasureFacts:
    load = scenario.load
    return MeasureFacts(
        warmup_requests=load.warmup_requests,
        window_start_s=load.measure_from_s or None,
        window_end_s=load.measure_until_s,
        percentiles=scenario.report.percentiles,
    )


def _slo_facts(scenario: Scenario) -> SloFacts:
    limits = scenario.slo.limits_ms() if scenario.slo else {}
    return SloFacts(**{f"{name}_ms": limit for name, limit in limits.items()})
