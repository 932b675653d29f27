"""What a run is to whoever watches it, simulated or real: events out, a summary at the end.

ready = workbench.running.simulate.prepare(...)      # or workbench.running.engine_run.prepare(...)
ended = ready.run(sinks, on_progress=...)
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from engine.core.events import Detail, EventLog, Segment
from engine.core.journal import Journal
from simulator.world import Progress
from workbench.metrics.run_metrics import SummaryTables, summarize
from workbench.record.header import LoadFacts, MeasureFacts, ReplicaFacts, RunHeader, SloFacts
from workbench.record.provenance import input_files, source_commit, workbench_version
from workbench.scenario.schema import Scenario
from workbench.scenario.source import LoadedScenario

Sink = Callable[[Segment], None]
ShouldStop = Callable[[], bool]
OnProgress = Callable[[Progress], None]
DetailName = Literal["none", "steps", "items", "pages"]

_SEGMENT_ROWS: Final = 1 << 17
_LIVE_SEGMENT_ROWS: Final = 10_000
_LIVE_FLUSH_S: Final = 0.05
KEPT_EVERY_S: Final = 10.0  # how often the events of an engine leave memory


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a run.

    Attributes:
        summary: by `workbench.metrics.run_metrics.summarize`; None if the run broke in such a way
            that its tables make none.
        stopped_early: why it ended before its workload did; None if it did not.
        journals: inputs of each replica's scheduler, if they were asked for.
        failure: what broke the run, if something did; `stopped_early` says it in words.
        faults: what went wrong although the run went on, a sentence each.
        errors: requests that ended with an error.
    """

    summary: dict[str, Any] | None
    stopped_early: str | None
    journals: Sequence[Journal]
    failure: Exception | None = None
    faults: tuple[str, ...] = ()
    errors: int = 0


class Runnable(Protocol):
    """A run that is ready: everything is resolved, nothing has happened."""

    @property
    def header(self) -> RunHeader:
        """Facts of the run."""
        ...

    def run(
        self,
        sinks: Sequence[Sink] = (),
        *,
        live: bool = False,
        journal: bool = False,
        should_stop: ShouldStop = lambda: False,
        on_progress: OnProgress = lambda _: None,
    ) -> Ended:
        """Run to the end, or until `should_stop` says so.

        Args:
            sinks: get the segments of events, in order.
            live: somebody watches, so segments come soon.
            journal: keep the inputs of the schedulers.
            should_stop: asked every now and then.
            on_progress: told as often.
        """
        ...


class Outlet:
    """Hands the events of a run to sinks, and keeps what the summary needs.

    Args:
        header: of the run.
        sinks: get the segments of events, in order.
        live: segments come at least every 10,000 rows, and every 50 ms as far as `on_progress` is
            called by then.
        on_progress: told how far the run is.

    Attributes:
        log: for the run to write to.
        on_progress: for the run to call.
    """

    def __init__(
        self, header: RunHeader, sinks: Sequence[Sink], live: bool, on_progress: OnProgress
    ) -> None:
        self._header = header
        self._sinks = sinks
        self._kept = SummaryTables()
        rows = _LIVE_SEGMENT_ROWS if live else _SEGMENT_ROWS
        self.log = EventLog(Detail[header.detail.upper()], self._hand_out, rows)
        self.on_progress = on_progress
        if live or header.kind == "engine":
            seconds = _LIVE_FLUSH_S if live else KEPT_EVERY_S
            self.on_progress = _flushing(self.log, on_progress, seconds)

    def summary(self, stopped_early: str | None) -> dict[str, Any]:
        """The summary of everything written to the log.

        Raises:
            MetricsError: the tables contradict each other, which is a defect.
        """
        self.log.flush()
        return summarize(self._kept.tables(), self._header, stopped_early)

    def _hand_out(self, segment: Segment) -> None:
        self._kept.add(segment)
        for sink in self._sinks:
            sink(segment)


def _flushing(log: EventLog, on_progress: OnProgress, seconds: float) -> OnProgress:
    """`on_progress` that also hands out what the log holds, every so many seconds."""
    next_s = 0.0

    def flush_and_tell(progress: Progress) -> None:
        nonlocal next_s
        on_progress(progress)
        if time.monotonic() >= next_s:
            log.flush()
            next_s = time.monotonic() + seconds

    return flush_and_tell


def scenario_header(
    loaded: LoadedScenario,
    detail: DetailName,
    *,
    kind: Literal["simulation", "engine"],
    model: str,
    gpu: str,
    cost_model: str,
    replicas: tuple[ReplicaFacts, ...],
    notes: tuple[str, ...],
    cost_model_notes: tuple[str, ...] = (),
    engine: dict[str, Any] | None = None,
) -> RunHeader:
    """The header of a scenario's run; the arguments are those of `RunHeader`."""
    scenario = loaded.scenario
    return RunHeader(
        name=scenario.name,
        kind=kind,
        detail=detail,
        seed=scenario.seed,
        model=model,
        gpu=gpu,
        cost_model=cost_model,
        replicas=replicas,
        load=_load_facts(scenario),
        measure=_measure_facts(scenario),
        slo=slo_facts(scenario),
        scenario=loaded.resolved,
        scenario_sha256=loaded.sha256,
        commit=source_commit(),
        version=workbench_version(),
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        inputs=input_files(scenario),
        notes=notes,
        cost_model_notes=cost_model_notes,
        engine=engine or {},
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


def slo_facts(scenario: Scenario) -> SloFacts:
    """The objective of a scenario."""
    limits = scenario.slo.limits_ms() if scenario.slo else {}
    return SloFacts(**{f"{name}_ms": limit for name, limit in limits.items()})
