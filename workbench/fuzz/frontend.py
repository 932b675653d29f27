"""Clients and whoever stands between them and the replicas: retries, fences, exactly-once streams.

A request whose replica crashed, or hangs for longer than anybody waits, is sent again from its
beginning under a new *attempt*, with an id that no other attempt has. Only the present attempt may
add to the client's text; whatever an older one still brings is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from engine.core.enums import FinishReason, RequestStatus
from engine.core.request import Request
from simulator.replica import Replica
from simulator.router import Router, RouterConfig
from workbench.fuzz.fake_model import Ask, Story
from workbench.fuzz.node import Node
from workbench.fuzz.rig import require

ATTEMPT: Final = 1000  # request id = attempt * ATTEMPT + the ask's own id
MOST_ATTEMPTS: Final = 8  # then the client is told that it failed


@dataclass
class Client:
    """One who asked.

    Attributes:
        story: the text that he must get.
        received: the tokens that he got.
        attempt: number of the present attempt.
        home: its replica and that replica's incarnation; None: it is nowhere.
        ended: how it ended, or None.
    """

    ask: Ask
    story: Story
    received: list[int] = field(default_factory=list)
    attempt: int = 0
    home: tuple[Node, int] | None = None
    ended: FinishReason | None = None

    @property
    def request_id(self) -> int:
        """Of the present attempt."""
        return self.attempt * ATTEMPT + self.ask.request_id


class Frontend:
    """Sends requests through the router and streams tokens back.

    Attributes:
        clients: by the id of their ask.
        stale: tokens of old attempts that were dropped.
        marks: what has happened at least once.
    """

    def __init__(
        self, config: RouterConfig, nodes: Sequence[Node], wake: Callable[[Node], None]
    ) -> None:
        self.clients: dict[int, Client] = {}
        self.stale = 0
        self.marks: set[str] = set()
        self._nodes = nodes
        self._wake = wake
        # The router looks at nothing of a replica but its load, its number and its scheduler.
        self._router = Router(config, cast("Sequence[Replica]", nodes))

    def send(self, ask: Ask, now: int) -> None:
        """A client asks."""
        client = self.clients[ask.request_id] = Client(ask, Story(ask))
        self._place(client, now)

    def abort(self, client: Client, now: int) -> None:
        """A client gives up."""
        if client.ended is not None:
            return
        client.ended = FinishReason.ABORT
        if client.home is not None:
            node, _ = client.home
            node.abort(client.request_id, now)
            self._wake(node)
        client.home = None

    def lost(self, node: Node, now: int) -> None:
        """A replica is down, or taken for dead: its requests are sent again."""
        for client in self.clients.values():
            if client.ended is None and client.home is not None and client.home[0] is node:
                if node.is_up:  # it may still be there, and do what was asked
                    node.abort(client.request_id, now)
                    self.marks.add("retried while it hangs")
                client.attempt += 1
                client.home = None
                if client.attempt > MOST_ATTEMPTS:
                    client.ended = FinishReason.ERROR
                else:
                    self._place(client, now)

    def place_waiting(self, now: int) -> None:
        """Send those that had nowhere to go."""
        for client in self.clients.values():
            if client.ended is None and client.home is None:
                self._place(client, now)

    def on_tokens(self, node: Node, request: Request) -> None:
        """A replica has new tokens of a request, or its end."""
        attempt, ask_id = divmod(request.request_id, ATTEMPT)
        client = self.clients[ask_id]
        if client.ended is not None or attempt != client.attempt:
            self.stale += 1
            self.marks.add("stale tokens dropped")
            return
        require(client.home == (node, node.incarnation), "tokens come from where it was sent")
        outputs = node.outputs(request)
        known = len(client.received)
        story, first = client.story, client.story.prompt_tokens
        story.grow_to(first + len(outputs))
        same = outputs == story.tokens[first : first + len(outputs)]
        require(same, "a client gets the text of an undisturbed run", request, outputs)
        client.received += outputs[known:]
        if request.status is RequestStatus.FINISHED:
            self._end(client, request, outputs)

    def _end(self, client: Client, request: Request, outputs: list[int]) -> None:
        client.ended, client.home = request.finish_reason, None
        if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            whole = len(client.received) == len(outputs) == client.ask.output_length
            require(whole, "a text arrives whole and once", request, client.received)
        if client.attempt:
            self.marks.add("completed by a retry")

    def _place(self, client: Client, now: int) -> None:
        """Ask the router until it names a replica that is up."""
        for _ in self._nodes:
            node = cast("Node", self._router.choose(self._attempt(client).request()))
            if node.is_up:
                break
        else:
            return
        client.home = (node, node.incarnation)
        if not node.send(self._attempt(client), now):
            client.ended, client.home = FinishReason.REJECTED, None
        self._wake(node)

    def _attempt(self, client: Client) -> Ask:
        return replace(client.ask, request_id=client.request_id)
