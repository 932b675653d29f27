"""The simulated deployment: clients, a router and replicas, from the first request to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from simpy.events import Event

from engine.core.config import SchedulerConfig
from engine.core.events import EventLog, Segment
from engine.core.journal import Journal
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenSource
from engine.core.workload import Workload
from simulator.behaviour import OutputLengths
from simulator.client import Clients
from simulator.clock import CLIENT_RANK, FOREVER, Clock
from simulator.cost_model import CostModel
from simulator.replica import Replica
from simulator.router import Router, RouterConfig

HEARTBEAT_NS = 1_000_000_000  # of virtual time: how often progress is told and a stop is noticed


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """One replica: how it schedules, and what its steps cost."""

    scheduler: SchedulerConfig
    cost_model: CostModel


class Outcome(Enum):
    """How a run ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # asked to, before all requests had ended


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running simulation is."""

    now_ns: int
    sent: int
    ended: int
    total: int
    steps: int


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation leaves behind.

    Attributes:
        outcome: whether it ran to the end.
        end_ns: virtual time of the end.
        steps: steps of all replicas.
        tables: what the log kept (nothing if it had a sink).
        journals: one per replica, if they were asked for.
    """

    outcome: Outcome
    end_ns: int
    steps: int
    tables: Segment
    journals: list[Journal]


class World:
    """Simulates a workload on replicas behind a router.

    Args:
        workload: what is asked.
        replicas: the deployment.
        router: how requests are spread.
        max_concurrency: the clients' own cap, or None.
        log: takes the events; a new one by default.
        journal: keep an input journal per replica.
        fast_forward: False goes step by step; the results are the same.
        equip: given each new scheduler, may put another prefix cache into it.
    """

    def __init__(
        self,
        workload: Workload,
        replicas: Sequence[ReplicaConfig],
        router: RouterConfig | None = None,
        *,
        max_concurrency: int | None = None,
        log: EventLog | None = None,
        journal: bool = False,
        fast_forward: bool = True,
        equip: Callable[[Scheduler], object] = lambda _: None,
    ) -> None:
        if not replicas:
            raise ValueError("a deployment needs at least one replica")
        self.clock = Clock()
        self.log = log if log is not None else EventLog()
        self.journals = [Journal() for _ in replicas] if journal else []
        self.clients = Clients(
            workload,
            max_concurrency,
            synthetic_tokens(workload) if any(r.scheduler.prefix_cache for r in replicas) else None,
            send=self._send,
            give_up=self._give_up,
        )
        self._workload, self._equip = workload, equip
        self._ended = 0
        self._client_alarm_ns = FOREVER
        self._home: dict[int, Replica] = {}
        self._pulse_ns = HEARTBEAT_NS
        self.replicas = [
            self._replica(index, config, fast_forward) for index, config in enumerate(replicas)
        ]
        self.router = Router(router or RouterConfig(), self.replicas)

    def run_before(
        self,
        time_ns: int,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> bool:
        """Do all that happens before `time_ns` and nothing of what happens then or later.

        `run` goes on from there. Returns False if `should_stop` ended it early.
        """
        self._arm_clients()
        self._pulse_ns = min(_next_heartbeat(self.clock.now), time_ns)  # nobody runs ahead of it
        while (next_ns := self.clock.next_event_ns()) < time_ns:
            if next_ns >= self._pulse_ns:
                self._pulse_ns = min(_next_heartbeat(next_ns), time_ns)
                on_progress(self.progress())
                if should_stop():
                    return False
            self.clock.step()
        return True

    def reconfigure(
        self, schedulers: Sequence[SchedulerConfig], router: RouterConfig, now: int
    ) -> None:
        """Go on with other settings from `now` on, the time of the last `run_before`.

        Raises:
            ValueError: a scheduler cannot change to its new settings while it runs.
        """
        self.router.config = router
        for replica, config in zip(self.replicas, schedulers, strict=True):
            if config != replica.scheduler.config:
                replica.scheduler.reconfigure(config, now)
                replica.wake(now)

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> SimulationResult:
        """Run until every request has ended or `should_stop` says so."""
        self._arm_clients()
        outcome = Outcome.COMPLETE
        while (next_ns := self.clock.next_event_ns()) < FOREVER:
            if next_ns >= self._pulse_ns:
                self._pulse_ns = _next_heartbeat(next_ns)
                on_progress(self.progress())
                if should_stop():
                    outcome = Outcome.STOPPED
                    break
            self.clock.step()
        return self._close(outcome)

    def progress(self) -> Progress:
        """Where the simulation is now."""
        steps = sum(replica.steps for replica in self.replicas)
        return Progress(self.clock.now, self.clients.sent, self._ended, len(self._workload), steps)

    def _replica(self, index: int, config: ReplicaConfig, fast_forward: bool) -> Replica:
        journal = self.journals[index] if self.journals else None
        scheduler = Scheduler(config.scheduler, self.log, index, journal)
        self._equip(scheduler)
        return Replica(
            self.clock,
            index,
            scheduler,
            config.cost_model,
            OutputLengths(self._workload),
            self.log,
            lambda: self._horizon(index),
            self._request_ended,
            fast_forward,
        )

    def _horizon(self, index: int) -> int:
        """Time before which nothing but replica `index` itself can change that replica."""
        clients = self.clients
        if clients.reacts:
            return min(clients.due_ns, self._pulse_ns, self.clock.next_event_ns())
        due = clients.due_ns
        if ahead := self.router.sent_elsewhere(index):
            due = clients.due_ns_after(ahead)
        return due if due < self._pulse_ns else self._pulse_ns

    def _arm_clients(self) -> None:
        due = self.clients.due_ns
        if due < self._client_alarm_ns:
            self._client_alarm_ns = due
            self.clock.at(due, CLIENT_RANK, self._on_client_alarm)

    def _on_client_alarm(self, _: Event) -> None:
        now = self.clock.now
        if now == self._client_alarm_ns:
            self._client_alarm_ns = FOREVER
            self.clients.act(now)
            self._arm_clients()

    def _send(self, request: Request, now: int) -> None:
        replica = self.router.choose(request)
        if replica.scheduler.add(request, now):
            self._request_ended(request, now)
            return
        self._home[request.request_id] = replica
        replica.wake(now)

    def _give_up(self, request_id: int, now: int) -> None:
        replica = self._home.get(request_id)
        if replica is None:
            return
        request = replica.scheduler.abort(request_id, now)
        if request is not None:
            self._request_ended(request, now)
            replica.wake(now)

    def _request_ended(self, request: Request, now: int) -> None:
        self._ended += 1
        self._home.pop(request.request_id, None)
        self.clients.ended(request, now)
        if self.clients.reacts:
            self._arm_clients()

    def _close(self, outcome: Outcome) -> SimulationResult:
        """Record what is unfinished and gather the results."""
        for replica in self.replicas:
            replica.scheduler.book.write_unfinished()
        write = self.log.write("requests")
        if write is not None:
            for request_id in self.clients.never_sent():
                write(unsent_row(self._workload, request_id))
        end_ns = max([self.clock.now, *(replica.last_commit_ns for replica in self.replicas)])
        steps = sum(replica.steps for replica in self.replicas)
        return SimulationResult(outcome, end_ns, steps, self.log.tables(), self.journals)


def unsent_row(workload: Workload, request_id: int) -> tuple[int, ...]:
    """The row of the `requests` table of a request that was never sent."""
    w = workload
    return (
        request_id, -1, int(w.tenant[request_id]), int(w.priority[request_id]),
        int(w.parent[request_id]), int(w.prompt_tokens[request_id]),
        int(w.max_tokens[request_id]), 0, 0, 0, 0, 0, -1, -1, -1, -1, 0, 0,
    )  # fmt: skip


def synthetic_tokens(workload: Workload) -> Callable[[int], TokenSource] | None:
    """Gives requests the ids of their segments; None if no two share text."""
    segments = workload.segments
    if segments is None:
        return None
    output_tokens = workload.output_tokens.tolist()

    def tokens_of(request_id: int) -> TokenSource:
        return segments.tokens(request_id, output_tokens[request_id])

    return tokens_of


def _next_heartbeat(time_ns: float) -> int:
    return (int(time_ns) // HEARTBEAT_NS + 1) * HEARTBEAT_NS
