"""What if: a recorded run up to one of its steps, and from there on with other settings.

The run is simulated again from its start. Every decision before the step must be the recorded one;
a replay that decides otherwise (another version of the code, a damaged record) is an error.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.config import SchedulerConfig
from engine.core.memory_plan import MemoryPlanError
from simulator.roofline import NAME as ANALYTIC_NAME
from simulator.router import RouterConfig
from simulator.world import World
from workbench.record.header import ForkFacts, ReplicaFacts, RunHeader, scenario_digest
from workbench.record.provenance import input_file, place_now
from workbench.record.run_record import HEADER, JOURNAL, RunReader
from workbench.running.deployment import Deployment, memory_of, router_config, scheduler_config
from workbench.running.execution import DetailName, OnProgress, ShouldStop
from workbench.running.replay_check import ReplayError, check_replay
from workbench.running.simulate import Simulation, prepare
from workbench.scenario.errors import ScenarioErrors, listed
from workbench.scenario.schema import Scenario
from workbench.scenario.serving import ANALYTIC
from workbench.scenario.source import LoadedScenario, load_resolved

Int64 = NDArray[np.int64]
Resolved = dict[str, Any]

CHANGEABLE: Final = (
    "scheduler.policy",
    "scheduler.mode",
    "scheduler.chunked_prefill",
    "scheduler.max_prefill_tokens",
    "scheduler.admission",
    "scheduler.schedule_conservativeness",
    "deployment.pools.N.max_num_batched_tokens",
    "deployment.pools.N.max_running_requests",
    "deployment.pools.N.max_plans_in_flight",
    "deployment.pools.N.cuda_graph_batch_sizes",
    "deployment.router.policy",
    "deployment.router.imbalance_threshold",
)


class ForkError(Exception):
    """A run cannot be forked there; the message says why."""


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """The first step of a replica that is to be planned with other settings."""

    step: int
    replica: int = 0


@dataclass(frozen=True, slots=True)
class _Stage:
    """Settings that hold from a time on."""

    time_ns: int
    schedulers: list[SchedulerConfig]
    router: RouterConfig


def prepare_fork(
    parent: RunReader, point: ForkPoint, overrides: Sequence[str], detail: DetailName
) -> Simulation:
    """A simulation that repeats `parent` up to a step and goes on with `overrides`.

    Raises:
        ForkError: the record does not allow it, or a file that the run read has changed.
        ScenarioErrors: an override makes no sense, or changes what cannot change in a running
            deployment.
        RunRecordError: the record is damaged.

    Running it raises ReplayError where the replay does not decide what the record says.
    """
    header = _settled(parent.header)
    time_ns = _time_of(parent, point)
    recorded = _journals(parent)
    files = _unchanged_inputs(parent)
    label = str(parent.path / HEADER)
    loaded = load_resolved(header.scenario, label, overrides, files)
    changes = _changes(header.scenario, loaded)
    first = load_resolved(_scenarios(header)[0], label, (), files)
    simulation = prepare(first, detail)
    deployment = simulation.deployment
    _check_deployment(parent, deployment)
    scenarios = [load_resolved(data, label, (), files).scenario for data in _scenarios(header)[1:]]
    times = [fork.t_ns for fork in header.forks]
    stages = [
        _stage(*stage, deployment)
        for stage in zip([*times, time_ns], [*scenarios, loaded.scenario], strict=True)
    ]

    def replay(world: World, should_stop: ShouldStop, on_progress: OnProgress) -> None:
        for stage in stages:
            if not world.run_before(
                stage.time_ns, should_stop=should_stop, on_progress=on_progress
            ):
                raise KeyboardInterrupt
            if stage is stages[-1]:
                _check_journals(world, recorded, header)
            world.reconfigure(stage.schedulers, stage.router, stage.time_ns)

    fork = ForkFacts(
        run=parent.path.resolve().name,
        replica=point.replica,
        step=point.step,
        t_ns=time_ns,
        changes=changes,
    )
    forked = _header(simulation.header, header, loaded, stages[-1], fork)
    notes = (*forked.notes, *_memory_notes(loaded.scenario, deployment))
    forked = msgspec.structs.replace(forked, notes=notes)
    return replace(simulation, header=forked, replay=replay)


# What the record says


def _time_of(parent: RunReader, point: ForkPoint) -> int:
    """When the step was planned, in ns."""
    if parent.header.kind != "simulation":
        raise ForkError(f"{parent.path} is no simulation: only a simulation can be repeated")
    if not parent.recorded("steps"):
        raise ForkError(
            f"{parent.path} was recorded with --detail none; a fork needs a run that was recorded "
            "with --detail steps or higher"
        )
    steps = parent.table("steps", ("replica", "step", "plan_ns"))
    here = steps["replica"] == point.replica
    found = np.flatnonzero(here & (steps["step"] == point.step))
    if not len(found):
        count = int(here.sum())
        has = f"has steps 0 to {count - 1}" if count else "has no steps"
        raise ForkError(f"{parent.path}: replica {point.replica} {has}, not {point.step}")
    return int(steps["plan_ns"][found[0]])


def _journals(parent: RunReader) -> list[Int64]:
    """The recorded journal of each replica."""
    arrays = parent.arrays(JOURNAL)
    missing = [str(i) for i in range(len(parent.header.replicas)) if str(i) not in arrays]
    if missing:
        raise ForkError(f"{parent.path / JOURNAL} holds no journal of replica {missing[0]}")
    return [arrays[str(i)].astype(np.int64) for i in range(len(parent.header.replicas))]


def _unchanged_inputs(parent: RunReader) -> dict[str, str]:
    """Key -> path of each file that the run read; all of them are as they were."""
    found = {}
    for key, facts in parent.header.inputs.items():
        try:
            now = input_file(place_now(facts))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ForkError(f"cannot repeat {parent.path}: {facts.path}: {reason}") from error
        if now.sha256 != facts.sha256:
            raise ForkError(
                f"cannot repeat {parent.path}: {facts.path} ({key}) has changed since it was "
                f"recorded: put back the file whose sha256 begins with {facts.sha256[:12]}"
            )
        found[key] = now.path
    return found


def _settled(header: RunHeader) -> RunHeader:
    """With `analytic` written in a scenario of before shipped profiles, which did not say so."""
    hardware = header.scenario.get("hardware", {})
    if header.cost_model != ANALYTIC_NAME or hardware.get("profile") is not None:
        return header
    scenario = {**header.scenario, "hardware": {**hardware, "profile": ANALYTIC}}
    return msgspec.structs.replace(header, scenario=scenario)


def _scenarios(header: RunHeader) -> list[Resolved]:
    """The scenarios of a run's life, oldest first, the present one last."""
    scenarios = [header.scenario]
    for fork in reversed(header.forks):
        earlier = copy.deepcopy(scenarios[0])
        for key, (before, _) in fork.changes.items():
            _put(earlier, key, before)
        scenarios.insert(0, earlier)
    return scenarios


def _put(data: Resolved, key: str, value: Any) -> None:
    target: Any = data
    *parents, last = key.split(".")
    for step in parents:
        target = target[int(step) if isinstance(target, list) else step]
    target[last] = value


def _check_deployment(parent: RunReader, deployment: Deployment) -> None:
    """The same scenario must give the same deployment as then."""
    for index, (then, now) in enumerate(
        zip(parent.header.replicas, deployment.replicas, strict=True)
    ):
        for name in ("num_pages", "page_size", "tensor_parallel_size", "max_model_len"):
            before, after = getattr(then, name), getattr(now.facts, name)
            if before != after:
                raise ForkError(
                    f"cannot repeat {parent.path}: replica {index} had {name} = {before}, this "
                    f"workbench gives it {after}{_versions(parent.header)}"
                )


def _check_journals(world: World, recorded: Sequence[Int64], header: RunHeader) -> None:
    for replica, (journal, record) in enumerate(zip(world.journals, recorded, strict=True)):
        try:
            check_replay(record, journal.to_array(), replica)
        except ReplayError as error:
            raise ReplayError(f"{error}{_versions(header)}") from None


def _versions(header: RunHeader) -> str:
    """Who recorded the run, for errors."""
    commit = f", commit {header.commit[:10]}" if header.commit else ""
    return (
        f" (recorded by workbench {header.version}{commit}, Python {header.python_version}, "
        f"numpy {header.numpy_version})"
    )


# What changes


def _changes(before: Resolved, loaded: LoadedScenario) -> dict[str, tuple[Any, Any]]:
    """Key -> (before, after) of everything that the overrides change.

    Raises:
        ScenarioErrors: some of it cannot change in a running deployment.
    """
    changes = {key: (a, b) for key, a, b in _differences("", before, loaded.resolved)}
    fixed = [key for key in changes if re.sub(r"\.\d+\.", ".N.", key) not in CHANGEABLE]
    if fixed:
        help_ = f"a fork may change {listed(CHANGEABLE)}"
        raise ScenarioErrors(
            loaded.error(
                tuple(int(step) if step.isdecimal() else step for step in key.split(".")),
                "S207",
                f"`{key}` cannot change while a deployment runs",
                help_,
            )
            for key in fixed
        )
    return changes


def _differences(key: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, before, after) of the leaves that differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = [*before, *(name for name in after if name not in before)]
        pairs = [(str(name), before.get(name), after.get(name)) for name in names]
    elif _are_mappings(before) and _are_mappings(after) and len(before) == len(after):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(before, after, strict=True))]
    else:
        if before != after:
            yield key, before, after
        return
    for name, a, b in pairs:
        yield from _differences(f"{key}.{name}" if key else name, a, b)


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _stage(time_ns: int, scenario: Scenario, deployment: Deployment) -> _Stage:
    """The settings of a scenario for replicas whose memory is as it is."""
    pools = [pool for pool in scenario.deployment.pools for _ in range(pool.replicas)]
    schedulers = [
        scheduler_config(
            scenario,
            pool,
            num_pages=replica.config.scheduler.num_pages,
            max_model_len=replica.config.scheduler.max_model_len,
            host_is_device=replica.host_is_device,
        )
        for pool, replica in zip(pools, deployment.replicas, strict=True)
    ]
    return _Stage(time_ns, schedulers, router_config(scenario))


def _header(
    base: RunHeader, parent: RunHeader, loaded: LoadedScenario, stage: _Stage, fork: ForkFacts
) -> RunHeader:
    """The header of the fork: that of the first run, with the settings in force at the end."""
    replicas: tuple[ReplicaFacts, ...] = tuple(
        msgspec.structs.replace(
            facts,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_running_requests=config.max_running_requests,
        )
        for facts, config in zip(base.replicas, stage.schedulers, strict=True)
    )
    return msgspec.structs.replace(
        base,
        replicas=replicas,
        scenario=loaded.resolved,
        scenario_sha256=scenario_digest(loaded.resolved),
        forks=(*parent.forks, fork),
    )


def _memory_notes(scenario: Scenario, deployment: Deployment) -> Iterator[str]:
    """Where other settings would have left less memory for pages than there are."""
    pools = [pool for pool in scenario.deployment.pools for _ in range(pool.replicas)]
    for index, (pool, replica) in enumerate(zip(pools, deployment.replicas, strict=True)):
        try:
            room = memory_of(scenario, deployment.model, deployment.gpu, pool).num_pages
        except MemoryPlanError:
            room = 0
        if room < min(replica.facts.num_pages, replica.memory.num_pages):
            yield (
                f"replica {index} keeps its {replica.facts.num_pages:,} KV pages; started with "
                f"these settings it would have {room:,}"
            )
