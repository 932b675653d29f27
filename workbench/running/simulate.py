"""From a scenario to a summary: workload, deployment, simulated world; events go to sinks.

Whoever calls this decides where events go (a run record, a pipe) and when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core.scheduler import Scheduler
from engine.core.workload import Workload
from engine.native.cache_choice import injector
from simulator.world import Outcome, World
from workbench.metrics.latency import NS_PER_S
from workbench.record.header import RunHeader
from workbench.running.deployment import Deployment, profile_notes, resolve_deployment
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
from workbench.workload.workload import build_workload

Replay = Callable[[World, ShouldStop, OnProgress], None]


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

    def run(
        self,
        sinks: Sequence[Sink] = (),
        *,
        live: bool = False,
        journal: bool = False,
        should_stop: ShouldStop = lambda: False,
        on_progress: OnProgress = lambda _: None,
        equip: Callable[[Scheduler], object] | None = None,
    ) -> Ended:
        """Run to the end, or until `should_stop`, asked once a simulated second, says so.

        Schedulers get the prefix cache that was measured fastest, or what `equip` puts into them.

        Raises:
            MetricsError: the tables contradict each other, which is a defect.
        """
        outlet = Outlet(self.header, sinks, live, on_progress)
        deployment = self.deployment
        world = World(
            self.workload,
            [replica.config for replica in deployment.replicas],
            deployment.router,
            max_concurrency=self.max_concurrency,
            log=outlet.log,
            journal=journal or self.replay is not None,
            equip=equip or injector("simulation"),
        )
        if self.replay is not None:
            self.replay(world, should_stop, outlet.on_progress)
        result = world.run(should_stop=should_stop, on_progress=outlet.on_progress)
        stopped = None
        if result.outcome is Outcome.STOPPED:
            stopped = f"interrupted at {result.end_ns / NS_PER_S:,.1f} s of simulated time"
        return Ended(outlet.summary(stopped), stopped, result.journals)


def prepare(loaded: LoadedScenario, detail: DetailName) -> Simulation:
    """Resolve a scenario into a simulation.

    Raises:
        ScenarioErrors: the set-up is physically impossible.
        WorkloadError: its trace or the workload cannot be used.
    """
    deployment = resolve_deployment(loaded)
    capacity = deployment.capacity
    refuse_too_long(loaded, capacity)
    built = build_workload(
        loaded.scenario,
        vocab_size=deployment.model.vocab_size,
        max_context_tokens=capacity.max_context_tokens,
    )
    refuse_hopeless(loaded, capacity, built)
    settled = loaded.settled(deployment.profile)
    notes = (*built.notes, *profile_notes(loaded, deployment))
    header = _header(settled, detail, deployment, notes)
    load = loaded.scenario.load
    return Simulation(header, built.workload, deployment, load.max_concurrency)


def _header(
    loaded: LoadedScenario, detail: DetailName, deployment: Deployment, notes: tuple[str, ...]
) -> RunHeader:
    return scenario_header(
        loaded,
        detail,
        kind="simulation",
        model=deployment.model.name,
        gpu=deployment.gpu.name,
        cost_model=deployment.cost_model_name,
        replicas=tuple(replica.facts for replica in deployment.replicas),
        notes=notes,
        cost_model_notes=deployment.cost_model_notes,
    )
