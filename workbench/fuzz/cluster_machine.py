"""A whole deployment in virtual time: clients, router and replicas that crash, hang and crawl."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import FinishReason
from engine.core.events import EventLog
from simulator.clock import FOREVER, Clock
from simulator.router import RouterConfig, RouterPolicy
from workbench.fuzz.draws import chance, draw
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.frontend import Client, Frontend
from workbench.fuzz.machine import Machine, Operation, Weights, swarm
from workbench.fuzz.node import Node, Weather
from workbench.fuzz.rig import require
from workbench.fuzz.tiny import (
    TICK_NS,
    ask_from_json,
    ask_to_json,
    config_from_json,
    config_to_json,
    random_asks,
    random_config,
    smaller_asks,
    squeezed,
)

FAULTS: Final = frozenset({
    "abort", "storm", "crash", "hang", "slow", "late", "fail", "shrink", "flush", "reconfigure",
})  # fmt: skip
_ENDS: Final = (
    FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.REJECTED
)  # fmt: skip
_MARKS: Final = frozenset(
    {f"fault {name}" for name in FAULTS}
    | {f"ended {reason.name}" for reason in _ENDS}
    | {
        "completed by a retry", "retried while it hangs", "stale tokens dropped", "restarted",
        "nobody was up", "at the same instant",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Settings of a run.

    Attributes:
        configs: of the replicas.
        policy: of the router.
        asks: what may be sent.
        rates: fault -> how often per operation.
        every: full recounts are made after each n-th event of a replica.
        patience_ticks: how long a replica may be silent before it is taken for dead.
    """

    configs: tuple[SchedulerConfig, ...]
    policy: RouterPolicy
    asks: tuple[Ask, ...]
    rates: dict[str, float]
    every: int
    patience_ticks: int


def draw_setup(rng: random.Random, faults: frozenset[str]) -> Setup:
    """One to four tiny replicas, alike or not."""
    fixed: dict[str, Any] = {"transfer_timeout_ns": _NEVER_NS}
    squeeze = rng.random() < 0.4
    if squeeze:
        fixed |= squeezed(rng)
    first = random_config(rng, **fixed)
    count = rng.randint(1, 4)
    alike = rng.random() < 0.5
    others = [first if alike else random_config(rng, **fixed) for _ in range(count - 1)]
    policy: RouterPolicy = rng.choice(["round_robin", "least_loaded", "cache_aware"])
    asks = random_asks(rng, first, rng.choice([8, 16, 40]), squeeze=squeeze)
    rates = swarm(rng, faults)
    every, patience = rng.choice([4, 16, 64]), rng.choice([5, 20, 60])
    return Setup((first, *others), policy, tuple(asks), rates, every, patience)


class ClusterTrial:
    """Drives a deployment."""

    def __init__(self, seed: int, setup: Setup, log: EventLog | None = None) -> None:
        self.marks: set[str] = set()
        self._seed, self._setup = seed, setup
        self._clock = Clock()
        self._ties = 0
        self._last_ns = -1
        self._nodes = [
            Node(seed, index, config, setup.every, log, self._on_tokens)
            for index, config in enumerate(setup.configs)
        ]
        self._frontend = Frontend(RouterConfig(setup.policy, 2), self._nodes, self._wake)
        self._asks = {ask.request_id: ask for ask in setup.asks}
        self._unsent = [ask.request_id for ask in setup.asks]
        self._weights = Weights({"send": 0.3, "run": 0.6} | setup.rates)
        self._calls: dict[str, Callable[..., None]] = {
            "send": self._send, "run": self._run, "abort": self._abort, "storm": self._storm,
            "crash": self._crash, "restart": self._restart, "hang": self._hang,
            "slow": self._slow, "late": self._late, "fail": self._fail, "shrink": self._shrink,
            "flush": self._flush, "reconfigure": self._reconfigure,
        }  # fmt: skip

    @property
    def checks(self) -> int:
        return sum(node.checks + node.rig.events for node in self._nodes)

    def choose(self, rng: random.Random) -> Operation:
        name = self._weights.draw(rng)
        if name == "send":
            return (name, self._unsent[0]) if self._unsent else ("run", rng.getrandbits(4))
        down = [node.index for node in self._nodes if not node.is_up]
        if down and rng.random() < 0.1:
            return "restart", rng.choice(down)
        return name, rng.getrandbits(16)

    def apply(self, operation: Operation) -> None:
        name, choice = operation
        self._calls[name](choice)

    def finish(self) -> None:
        for node in self._nodes:
            node.weather = Weather()
            node.hog.let_go()
            node.hangs_until = 0
            if not node.is_up:
                self._restart(node.index)
            self._wake(node)
        self._frontend.place_waiting(self._clock.now)
        live = [c for c in self._frontend.clients.values() if c.ended is None]
        most = 200 + 40 * sum(len(c.ask.prompt) + c.ask.max_tokens for c in live)
        for _ in range(most):
            if self._clock.next_event_ns() >= FOREVER:
                break
            self._clock.step()
        for client in self._frontend.clients.values():
            require(client.ended is not None, f"all ends within {most} events", client)
            if client.ended in _ENDS:
                self.marks.add(f"ended {client.ended.name}")
        for node in self._nodes:
            node.quiesce()
            self.marks |= node.marks
        self.marks |= self._frontend.marks

    def write_unfinished(self) -> None:
        for node in self._nodes:
            if node.is_up:
                node.scheduler.book.write_unfinished()

    def _on_tokens(self, node: Node, request: Any) -> None:
        self._frontend.on_tokens(node, request)

    def _wake(self, node: Node) -> None:
        self._at(max(self._clock.now, node.hangs_until), node)

    def _at(self, time_ns: int, node: Node) -> None:
        """Let a node act then; among those that act at once, the seed decides who goes first."""
        if time_ns >= node.alarm_ns:
            return  # it acts before, and looks then what is next
        node.alarm_ns = time_ns
        self._ties += 1
        self._clock.at(time_ns, draw(self._seed, self._ties), lambda _: self._act(node, time_ns))

    def _act(self, node: Node, time_ns: int) -> None:
        if node.alarm_ns != time_ns:
            return  # an earlier alarm has taken its place
        node.alarm_ns = FOREVER
        now = self._clock.now
        if now == self._last_ns:
            self.marks.add("at the same instant")
        self._last_ns = now
        if not node.is_up:
            return
        if now < node.hangs_until:
            self._at(node.hangs_until, node)
        elif (due := node.turn(now)) is not None:
            self._at(max(due, now + 1), node)

    def _send(self, request_id: int) -> None:
        ask = self._asks.get(request_id)
        if ask is None or request_id in self._frontend.clients:
            return
        self._unsent = [i for i in self._unsent if i != request_id]
        self._frontend.send(ask, self._clock.now)
        if not any(node.is_up for node in self._nodes):
            self.marks.add("nobody was up")

    def _run(self, count: int) -> None:
        for _ in range(1 + count % 16):
            if self._clock.next_event_ns() >= FOREVER:
                break
            self._clock.step()

    def _live(self) -> list[Client]:
        return [client for client in self._frontend.clients.values() if client.ended is None]

    def _abort(self, choice: int) -> None:
        live = self._live()
        if live:
            self.marks.add("fault abort")
            self._frontend.abort(live[choice % len(live)], self._clock.now)

    def _storm(self, choice: int) -> None:
        share = (0.5, 0.7, 0.9)[choice % 3]
        for client in self._live():
            if chance(share, self._seed, choice, client.ask.request_id):
                self.marks.add("fault storm")
                self._frontend.abort(client, self._clock.now)

    def _node(self, choice: int) -> Node:
        return self._nodes[choice % len(self._nodes)]

    def _crash(self, choice: int) -> None:
        node = self._node(choice)
        if node.is_up:
            self.marks.add("fault crash")
            node.crash()
            self._frontend.lost(node, self._clock.now)

    def _restart(self, index: int) -> None:
        node = self._node(index)
        if not node.is_up:
            self.marks.add("restarted")
            node.restart()
            self._frontend.place_waiting(self._clock.now)

    def _hang(self, choice: int) -> None:
        """A replica stops for a while; if that is longer than anybody waits, others take over."""
        node = self._node(choice)
        if not node.is_up:
            return
        ticks = 1 + (choice >> 4) % 100
        node.hangs_until = max(node.hangs_until, self._clock.now + ticks * TICK_NS)
        self.marks.add("fault hang")
        if ticks > self._setup.patience_ticks:
            self._frontend.lost(node, self._clock.now)

    def _slow(self, choice: int) -> None:
        self._node(choice).weather.slow = 1 + (choice >> 4) % 10

    def _late(self, choice: int) -> None:
        self._node(choice).weather.late += 1 + (choice >> 4) % 4

    def _fail(self, choice: int) -> None:
        self._node(choice).weather.fails += 1 + (choice >> 4) % 3

    def _shrink(self, choice: int) -> None:
        """Somebody takes pages, or gives them back."""
        node = self._node(choice)
        if not node.is_up:
            return
        if node.hog.holds and choice & 64:
            node.hog.let_go()
        else:
            node.hog.take(1 + (choice >> 7) % 8)
            self.marks.add("fault shrink")
        self._wake(node)

    def _flush(self, choice: int) -> None:
        node = self._node(choice)
        if node.is_up and node.scheduler.kv.cached_pages:
            node.scheduler.kv.evict(node.scheduler.kv.cached_pages)
            self.marks.add("fault flush")

    def _reconfigure(self, choice: int) -> None:
        node = self._node(choice)
        if not node.is_up:
            return
        config = node.rig.config
        kept = {name: getattr(config, name) for name in UNCHANGEABLE}
        rng = random.Random(choice)  # noqa: S311 - a seed, no secret
        if node.rig.reconfigure(random_config(rng, **kept)):
            self.marks.add("fault reconfigure")
            self._wake(node)


_NEVER_NS: Final = 10**18


def _encode(setup: Setup) -> dict[str, Any]:
    return {
        "configs": [config_to_json(config) for config in setup.configs],
        "policy": setup.policy,
        "asks": [ask_to_json(ask) for ask in setup.asks],
        "rates": setup.rates,
        "every": setup.every,
        "patience_ticks": setup.patience_ticks,
    }


def _decode(values: dict[str, Any]) -> Setup:
    configs = tuple(config_from_json(config) for config in values["configs"])
    asks = tuple(ask_from_json(ask) for ask in values["asks"])
    return Setup(**(values | {"configs": configs, "asks": asks}))


def _needed(setup: Setup, operations: list[Operation]) -> Setup:
    sent = {operation[1] for operation in operations if operation[0] == "send"}
    return replace(setup, asks=tuple(ask for ask in setup.asks if ask.request_id in sent), every=1)


def _simpler(setup: Setup) -> Iterator[Setup]:
    if len(setup.configs) > 1:
        yield replace(setup, configs=setup.configs[:-1])
    if setup.policy != "round_robin":
        yield replace(setup, policy="round_robin")
    for at, ask in enumerate(setup.asks):
        for smaller in smaller_asks(ask):
            yield replace(setup, asks=(*setup.asks[:at], smaller, *setup.asks[at + 1 :]))


MACHINE: Final = Machine(
    name="cluster",
    faults=FAULTS,
    marks=_MARKS,
    takes=dict.fromkeys(FAULTS | {"send", "run", "restart"}, 1),
    operations=(20, 160),
    is_system=True,
    draw=draw_setup,
    open=ClusterTrial,
    encode=_encode,
    decode=_decode,
    needed=_needed,
    simpler=_simpler,
)
