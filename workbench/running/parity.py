"""Does the simulator decide as a recorded engine run did? The same load, at the recorded times.

The simulator's own clients, behaviour and scheduler get only the workload and the times at which
the engine sent, planned and committed. Every request must then be sent in the recorded order, every
text end in the recorded step, and every plan be the recorded one: what is left between a simulation
and a run are durations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.config import SchedulerConfig
from engine.core.journal import Call, Op, read_calls
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.workload import Workload
from engine.native.cache_choice import inject
from simulator.behaviour import OutputLengths
from simulator.client import Clients
from simulator.world import synthetic_tokens
from workbench.record.header import RunHeader
from workbench.record.provenance import input_file, place_now
from workbench.record.run_record import JOURNAL, RunReader
from workbench.running.capacity import Capacity
from workbench.running.deployment import scheduler_config
from workbench.scenario.source import LoadedScenario, load_resolved
from workbench.workload.workload import build_workload

_SHOWN: Final = 24  # numbers of a decision that an error shows


class ParityError(Exception):
    """The simulator decides otherwise, or the record cannot be asked; says where and how."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What was found equal: requests sent, plans made, texts ended early, requests aborted."""

    requests: int
    steps: int
    stops: int
    aborts: int


def check_parity(run: RunReader) -> Parity:
    """Compare a recorded engine run with what the simulator decides.

    Raises:
        ParityError: at the first difference, or because the record does not allow it.
        RunRecordError: the record is damaged.
    """
    header, journal = run.header, run.arrays(JOURNAL).get("0")
    if header.kind != "engine":
        raise ParityError(f"{run.path} is a simulation: it decides as the simulator does")
    if journal is None:
        raise ParityError(
            f"{run.path / JOURNAL} holds no journal: record the run with --detail steps or higher"
        )
    return follow(header, journal.astype(np.int64), _inputs(run))


def follow(header: RunHeader, journal: NDArray[np.int64], files: Mapping[str, str]) -> Parity:
    """Compare a journal of an engine with what the simulator decides.

    Args:
        header: of its run.
        journal: as `engine.core.journal.Journal.to_array`.
        files: key of the scenario -> where the file that it names is now.

    Raises:
        ParityError: at the first difference.
    """
    loaded = load_resolved(header.scenario, header.name, (), files)
    workload, config = _workload(loaded, header), _config(loaded, header)
    simulator = _Paced(workload, config, loaded.scenario.load.max_concurrency)
    return simulator.follow(journal)


class _Paced:
    """The simulator's parts, driven by recorded times."""

    def __init__(
        self, workload: Workload, config: SchedulerConfig, max_concurrency: int | None
    ) -> None:
        self._scheduler = Scheduler(config)
        inject(self._scheduler, "simulation")
        self._lengths = OutputLengths(workload)
        self._flying: deque[StepPlan] = deque()
        self._wishes: deque[Request | int] = deque()  # requests to send, ids to abort
        self._clients = Clients(
            workload,
            max_concurrency,
            synthetic_tokens(workload),
            send=lambda request, _: self._wishes.append(request),
            give_up=lambda request_id, _: self._wishes.append(request_id),
        )
        self._sent = self._steps = self._stops = self._aborts = 0

    def follow(self, journal: NDArray[np.int64]) -> Parity:
        """Everything that a journal says, in its order."""
        follow = {
            Op.ADD: self._add, Op.ABORT: self._abort, Op.PLAN: self._plan,
            Op.COMMIT: self._commit, Op.COMMIT_BROKEN: self._commit,
        }  # fmt: skip
        for call in read_calls(journal):
            if call.op not in follow:
                raise ParityError(f"a record with {call.op.name} in its journal is not an engine's")
            follow[call.op](call)
        return Parity(self._sent, self._steps, self._stops, self._aborts)

    def _add(self, call: Call) -> None:
        wish = self._wish(call)
        if not isinstance(wish, Request) or wish.request_id != call.args[0]:
            raise self._other(call, f"sends r{call.args[0]}", _said(wish))
        self._sent += 1
        if self._scheduler.add(wish, call.now):
            self._clients.ended(wish, call.now)

    def _abort(self, call: Call) -> None:
        wish = self._wish(call)
        if wish != call.args[0]:
            raise self._other(call, f"aborts r{call.args[0]}", _said(wish))
        self._aborts += 1
        request = self._scheduler.abort(call.args[0], call.now)
        if request is not None:
            self._clients.ended(request, call.now)

    def _wish(self, call: Call) -> Request | int | None:
        """What the clients want next, if they want anything by then."""
        while not self._wishes and self._clients.due_ns <= call.now:
            self._clients.act(self._clients.due_ns)
        return self._wishes.popleft() if self._wishes else None

    def _plan(self, call: Call) -> None:
        plan = self._scheduler.plan(call.now)
        signature = plan.signature() if plan is not None else ()
        if signature != call.args:
            at = next((i for i, pair in enumerate(zip(signature, call.args, strict=False))
                       if pair[0] != pair[1]), 0)  # fmt: skip
            before = max(0, at - 4)
            raise self._other(
                call,
                f"plans {call.args[before:][:_SHOWN]}",
                f"plans {signature[before:][:_SHOWN]} (numbers {before} and on)",
            )
        if plan is not None:
            self._steps += 1
            self._flying.append(plan)
            if self._lengths.active:
                self._lengths.planned(plan, self._scheduler.book)

    def _commit(self, call: Call) -> None:
        broken, args = _broken(call)
        plan_id, failed, _, count = args[:4]
        plan = self._flying.popleft()
        stopped = list(args[7 : 7 + count])
        own = [] if failed or not self._lengths.active else self._lengths.stopped(plan)
        if plan.plan_id != plan_id or own != stopped:
            raise self._other(
                call, f"ends {stopped} in plan {plan_id}", f"ends {own} in plan {plan.plan_id}"
            )
        self._stops += len(own)
        # That a step fails or gives no number is for the device to decide, so it is taken over.
        result = StepResult(stopped=own, failed=bool(failed), broken=broken)
        for request in self._scheduler.commit(plan_id, result, call.now):
            self._clients.ended(request, call.now)

    def _other(self, call: Call, recorded: str, own: str) -> ParityError:
        return ParityError(
            f"after {self._steps:,} equal steps, at {call.now / 1e9:.6f} s, the engine {recorded}; "
            f"the simulator {own}"
        )


def _said(wish: Request | int | None) -> str:
    if wish is None:
        return "has nobody who wants anything yet"
    return f"sends r{wish.request_id}" if isinstance(wish, Request) else f"aborts r{wish}"


def _broken(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of requests whose token was no number, and the rest of a commit."""
    if call.op is Op.COMMIT:
        return (), call.args
    count = call.args[0]
    return call.args[1 : 1 + count], call.args[1 + count :]


def _inputs(run: RunReader) -> dict[str, str]:
    """Key -> path of each file that the run read; a changed one would change the workload."""
    found = {}
    for key, facts in run.header.inputs.items():
        now = input_file(place_now(facts))
        if now.sha256 != facts.sha256:
            raise ParityError(f"{facts.path} ({key}) has changed since {run.path} was recorded")
        found[key] = now.path
    return found


def _workload(loaded: LoadedScenario, header: RunHeader) -> Workload:
    (facts,) = header.replicas
    capacity = Capacity(header.model, facts.max_model_len or 0, (facts,), 1)
    return build_workload(
        loaded.scenario,
        vocab_size=header.engine["vocab_size"],
        max_context_tokens=capacity.max_context_tokens,
    ).workload


def _config(loaded: LoadedScenario, header: RunHeader) -> SchedulerConfig:
    """As the engine's, with what it found out about itself."""
    (facts,), (pool,) = header.replicas, loaded.scenario.deployment.pools
    sizes = tuple(header.engine["cuda_graph_batch_sizes"])
    return scheduler_config(
        loaded.scenario,
        pool.model_copy(update={"cuda_graph_batch_sizes": sizes}),
        num_pages=facts.num_pages,
        max_model_len=facts.max_model_len or 0,
    )
