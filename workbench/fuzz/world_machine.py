"""The simulator itself: skipping and running ahead change nothing, and its record is true.

The operations are rows of a workload and changes of settings; the run happens at their end, once
with all shortcuts and once step by step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import FinishReason, RequestEvent
from engine.core.events import Detail, EventLog, Segment
from engine.core.invariants import check
from engine.core.journal import Op, read_calls, replay
from engine.core.scheduler import Scheduler
from engine.core.workload import NEVER, PromptSegments, Workload
from simulator.router import RouterConfig, RouterPolicy
from simulator.world import Outcome, ReplicaConfig, World, synthetic_tokens
from workbench.fuzz.hashed_costs import LEAST_HOST_NS, HashedCosts
from workbench.fuzz.machine import Machine, Operation, swarm
from workbench.fuzz.rig import require
from workbench.fuzz.tiny import config_from_json, config_to_json, random_config, squeezed

FAULTS: Final = frozenset({"abort", "reconfigure", "straggler", "turns", "cap", "at_once"})
_MARKS: Final = frozenset({
    "fault abort", "fault reconfigure", "fault straggler", "fault turns", "fault cap",
    "fault at_once", "steps were skipped", "several replicas", "prefix hit", "retracted",
    "ended STOP", "ended LENGTH", "ended ABORT", "ended REJECTED", "never sent", "own texts reused",
})  # fmt: skip
_MS: Final = 1_000_000


class Row(NamedTuple):
    """One request of the workload; `parent` is the number of an earlier row, or NEVER."""

    wait_ns: int
    text: int
    prompt: int
    output: int
    limit: int
    priority: int
    tenant: int
    parent: int
    think_ns: int
    patience_ns: int


@dataclass(frozen=True)
class Setup:
    """Settings of a run.

    Attributes:
        configs: of the replicas.
        policy: of the router.
        cap: requests with the deployment at most, or None.
        straggler: factor on the step times of the last replica.
        rows: what may be asked.
        with_ids: whether requests have token ids; without, each can reuse its own text only.
    """

    configs: tuple[SchedulerConfig, ...]
    policy: RouterPolicy
    cap: int | None
    straggler: int
    rows: tuple[Row, ...]
    rates: dict[str, float]
    with_ids: bool


def draw_setup(rng: random.Random, faults: frozenset[str]) -> Setup:
    """A few replicas and a few dozen requests."""
    rates = swarm(rng, faults)
    fixed: dict[str, Any] = {"num_speculative_tokens": 0, "transfer_timeout_ns": 10**18}
    fixed["check_every"] = rng.choice([0, 0, 5])
    if rng.random() < 0.3:
        fixed |= squeezed(rng)
    first = random_config(rng, **fixed)
    count = rng.randint(1, 3)
    configs = tuple(
        first if rng.random() < 0.5 else random_config(rng, **fixed) for _ in range(count)
    )
    policy: RouterPolicy = rng.choice(["round_robin", "least_loaded", "cache_aware"])
    gap = 0 if "at_once" in rates else rng.choice([0, 1, 5, 40]) * _MS
    rows = [_draw_row(rng, first, number, gap, rates) for number in range(rng.randint(3, 40))]
    cap = rng.randint(1, 8) if "cap" in rates else None
    straggler = rng.randint(2, 10) if "straggler" in rates else 1
    with_ids = rng.random() < 0.7
    return Setup(tuple(configs), policy, cap, straggler, tuple(rows), rates, with_ids)


def _draw_row(
    rng: random.Random, config: SchedulerConfig, number: int, gap: int, rates: dict[str, float]
) -> Row:
    slots = config.num_pages * config.page_size
    prompt, output = rng.randint(1, min(slots, 60)), rng.choice([1, 2, rng.randint(1, 80)])
    child = number > 0 and "turns" in rates and rng.random() < 0.4
    gives_up = "abort" in rates and rng.random() < 0.3
    return Row(
        wait_ns=rng.choice([0, gap, rng.randint(0, gap)]),
        text=rng.randint(0, 2),
        prompt=prompt,
        output=output,
        limit=rng.choice([output, rng.randint(1, 100)]),
        priority=rng.randint(0, 2),
        tenant=rng.randint(0, 1),
        parent=rng.randrange(number) if child else NEVER,
        think_ns=rng.choice([0, _MS, 50 * _MS]),
        patience_ns=rng.choice([0, _MS, rng.randint(0, 200) * _MS]) if gives_up else NEVER,
    )


class WorldTrial:
    """Collects a workload, then simulates it twice."""

    def __init__(self, seed: int, setup: Setup, log: EventLog | None = None) -> None:
        self.marks: set[str] = set()
        self.checks = 0
        self._seed, self._setup, self._log = seed, setup, log
        self._rows: list[int] = []
        self._changes: list[tuple[int, int]] = []
        self._worlds: list[World] = []

    def choose(self, rng: random.Random) -> Operation:
        left = [i for i in range(len(self._setup.rows)) if i not in self._rows]
        if "reconfigure" in self._setup.rates and rng.random() < 0.1:
            return "reconfigure", rng.randint(1, 400), rng.getrandbits(16)
        return ("row", left[0]) if left else ("nothing",)

    def apply(self, operation: Operation) -> None:
        name, *numbers = operation
        if name == "row" and numbers[0] not in self._rows and numbers[0] < len(self._setup.rows):
            self._rows.append(numbers[0])
        elif name == "reconfigure":
            self._changes.append((numbers[0] * _MS, numbers[1]))

    def finish(self) -> None:
        if not self._rows:
            return
        workload = self._workload()
        log = self._log or EventLog(Detail.PAGES)
        fast, skipping = self._simulate(workload, log, fast_forward=True)
        slow, _ = self._simulate(workload, EventLog(Detail.PAGES), fast_forward=False)
        self._same(fast, slow)
        self._check_requests(workload, fast["requests"])
        self._check_steps(fast["steps"])
        self._check_little(fast)
        self._check_rest(skipping, workload)
        self._note(fast, skipping)

    def write_unfinished(self) -> None:
        """A simulation that came to its end has no unfinished requests."""

    def _workload(self) -> Workload:
        """The chosen rows as a workload; who lost his parent comes by himself."""
        place = {number: at for at, number in enumerate(sorted(self._rows))}
        rows = [self._setup.rows[number] for number in sorted(self._rows)]
        n = len(rows)
        columns = {name: np.array([getattr(r, name) for r in rows]) for name in Row._fields}
        common = np.minimum(columns["prompt"], 24)
        keys, lengths = np.empty(2 * n, np.int64), np.empty(2 * n, np.int32)
        keys[0::2], keys[1::2] = columns["text"], 1000 + np.arange(n)
        lengths[0::2], lengths[1::2] = common, columns["prompt"] - common
        segments = PromptSegments(np.arange(n + 1) * 2, keys, lengths, 10**5 + np.arange(n), 1000)
        workload = Workload.from_lengths(
            np.cumsum(columns["wait_ns"]), columns["prompt"], columns["output"], columns["limit"],
            segments if self._setup.with_ids else None,
        )  # fmt: skip
        workload = replace(
            workload,
            priority=columns["priority"].astype(np.int32),
            tenant=columns["tenant"].astype(np.int32),
            parent=np.array([place.get(r.parent, NEVER) for r in rows], np.int32),
            think_ns=columns["think_ns"].astype(np.int64),
            abort_after_ns=columns["patience_ns"].astype(np.int64),
        )
        workload.validate()
        return workload

    def _simulate(
        self, workload: Workload, log: EventLog, *, fast_forward: bool
    ) -> tuple[Segment, World]:
        setup, last = self._setup, len(self._setup.configs) - 1
        replicas = [
            ReplicaConfig(
                config, HashedCosts(self._seed + at, setup.straggler if at == last else 1)
            )
            for at, config in enumerate(setup.configs)
        ]
        world = World(
            workload, replicas, RouterConfig(setup.policy, 2), max_concurrency=setup.cap, log=log,
            journal=True, fast_forward=fast_forward,
        )  # fmt: skip
        for time_ns, choice in sorted(self._changes):
            world.run_before(time_ns)
            rng = random.Random(choice)  # noqa: S311 - a seed, no secret
            changed = [_other(rng, r.scheduler.config) for r in world.replicas]
            world.reconfigure(changed, world.router.config, time_ns)
        result = world.run()
        require(result.outcome is Outcome.COMPLETE, "a simulation comes to its end")
        self.checks += result.steps
        return result.tables, world

    def _same(self, fast: Segment, slow: Segment) -> None:
        for table, columns in fast.items():
            for name, column in columns.items():
                other = slow[table][name]
                same = len(column) == len(other) and bool((column == other).all())
                require(same, f"skipping changes nothing, not {table}.{name} either")

    def _check_requests(self, workload: Workload, table: dict[str, Any]) -> None:
        ids = table["request_id"].tolist()
        require(sorted(ids) == list(range(len(workload))), "each request has one row", ids)
        for at, request_id in enumerate(ids):
            reason, outputs = FinishReason(table["finish_reason"][at]), table["output_tokens"][at]
            natural, limit = workload.output_tokens[request_id], workload.max_tokens[request_id]
            if table["arrival_ns"][at] < 0:
                require(reason == FinishReason.NONE, "who was never sent never ended", request_id)
                self.marks.add("never sent")
            elif reason == FinishReason.STOP:
                require(outputs == natural < limit, "a text ends where it ends", request_id)
            elif reason == FinishReason.LENGTH:
                require(outputs == limit <= natural, "a text ends at max_tokens", request_id)
            else:
                known = reason in (FinishReason.ABORT, FinishReason.REJECTED)
                require(known, "without faults nothing fails", request_id, reason)
            if reason:
                self.marks.add(f"ended {reason.name}")

    def _check_steps(self, steps: dict[str, Any]) -> None:
        """On each replica steps run one after the other, and none before it was planned."""
        for replica in np.unique(steps["replica"]):
            mine = steps["replica"] == replica
            start, end, gpu = (steps[f"{name}_ns"][mine] for name in ("start", "end", "gpu"))
            plan, host = steps["plan_ns"][mine], steps["host_ns"][mine]
            law = "steps are numbered"
            require(bool((steps["step"][mine] == np.arange(len(start))).all()), law)
            busy = (start + gpu)[:-1] >= plan[1:]
            least = np.minimum(host, LEAST_HOST_NS)[1:] * busy
            require(bool((start >= plan).all()), "no step starts before it is planned")
            law = "on a busy GPU no step starts before enough of it is launched"
            require(bool((start[1:] >= plan[1:] + least).all()), law)
            require(bool((end >= start + gpu).all()), "no step is committed before it is done")
            law = "steps run one after the other"
            require(bool((start[1:] >= start[:-1] + gpu[:-1]).all()), law)

    def _check_little(self, tables: Segment) -> None:
        """Little's law, exactly: requests present, summed over time, are their times there."""
        life, requests = tables["lifecycle"], tables["requests"]
        came = life["t_ns"][life["event"] == RequestEvent.ARRIVE].sum()
        left = life["t_ns"][life["event"] == RequestEvent.FINISH].sum()
        served = requests["arrival_ns"] >= 0
        served &= requests["finish_reason"] != FinishReason.REJECTED
        stays = (requests["finish_ns"] - requests["arrival_ns"])[served]
        require(bool((stays >= 0).all()), "nobody leaves before he comes")
        require(int(left - came) == int(stays.sum()), "Little's law", left - came, stays.sum())

    def _check_rest(self, world: World, workload: Workload) -> None:
        """Nothing is left, and the journals tell the same story to fresh schedulers."""
        with_ids = any(config.prefix_cache for config in self._setup.configs)
        tokens = (synthetic_tokens(workload) if with_ids else None) or _no_ids
        for replica, config, journal in zip(
            world.replicas, self._setup.configs, world.journals, strict=True
        ):
            scheduler = replica.scheduler
            check(scheduler)
            free = scheduler.kv.pool.free_pages + scheduler.kv.cached_pages
            at_rest = free == config.num_pages and not scheduler.has_work
            require(at_rest, "at the end all is free", free)
            calls = list(read_calls(journal.to_array()))
            replay(iter(calls), Scheduler(config), tokens)
            if any(call.op == Op.ADVANCE for call in calls):
                self.marks.add("steps were skipped")

    def _note(self, tables: Segment, world: World) -> None:
        marks, steps = self.marks, tables["steps"]
        if len(world.replicas) > 1:
            marks.add("several replicas")
        if steps["hit_tokens"].any():
            marks.add("prefix hit" if self._setup.with_ids else "own texts reused")
        if steps["retracted"].any():
            marks.add("retracted")
        marks.update(f"fault {name}" for name in self._setup.rates if name != "reconfigure")
        if self._changes:
            marks.add("fault reconfigure")


def _no_ids(_request_id: int) -> None:
    return None


def _other(rng: random.Random, config: SchedulerConfig) -> SchedulerConfig:
    kept = {name: getattr(config, name) for name in UNCHANGEABLE}
    return random_config(rng, **kept)


def _encode(setup: Setup) -> dict[str, Any]:
    return {
        "configs": [config_to_json(config) for config in setup.configs],
        "policy": setup.policy, "cap": setup.cap, "straggler": setup.straggler,
        "rows": [list(row) for row in setup.rows], "rates": setup.rates,
        "with_ids": setup.with_ids,
    }  # fmt: skip


def _decode(values: dict[str, Any]) -> Setup:
    configs = tuple(config_from_json(config) for config in values["configs"])
    return Setup(**(values | {"configs": configs, "rows": tuple(Row(*r) for r in values["rows"])}))


def _needed(setup: Setup, operations: list[Operation]) -> Setup:
    """All rows stay, because their numbers are their names."""
    del operations
    return setup


def _simpler(setup: Setup) -> Iterator[Setup]:
    if len(setup.configs) > 1:
        yield replace(setup, configs=setup.configs[:-1])
    if setup.policy != "round_robin":
        yield replace(setup, policy="round_robin")
    if not setup.with_ids:
        yield replace(setup, with_ids=True)
    if setup.cap is not None:
        yield replace(setup, cap=None)


MACHINE: Final = Machine(
    name="world",
    faults=FAULTS,
    marks=_MARKS,
    takes={"row": 1, "reconfigure": 2, "nothing": 0},
    operations=(3, 45),
    is_system=True,
    draw=draw_setup,
    open=WorldTrial,
    encode=_encode,
    decode=_decode,
    needed=_needed,
    simpler=_simpler,
)
