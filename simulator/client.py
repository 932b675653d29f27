"""The clients: when requests are sent, held back, followed up and given up."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from engine.core.enums import FinishReason
from engine.core.request import Request
from engine.core.token_ids import TokenSource
from engine.core.workload import NEVER, Workload
from simulator.clock import FOREVER


class Wish(IntEnum):
    """What a client wants to do at a time."""

    SEND = 0
    GIVE_UP = 1


class Clients:
    """Turns a workload into sends and aborts in order of time.

    At most `max_concurrency` requests are with the deployment; the others wait at the client. A
    conversation's next turn follows `think_ns` after the previous one ended, and not at all if that
    one was rejected, aborted or failed.

    Args:
        workload: what to ask.
        max_concurrency: cap on requests sent and not ended, or None.
        tokens_of: called with a request id when it is sent, gives its token ids; None: no request
            has any.
        send: called with a request and the time.
        give_up: called with a request id and the time.

    Attributes:
        due_ns: when the next wish is due, as far as is known now; FOREVER if never.
        sent: requests sent so far.
        reacts: whether the end of a request can cause another to be sent.
    """

    def __init__(
        self,
        workload: Workload,
        max_concurrency: int | None,
        tokens_of: Callable[[int], TokenSource] | None,
        send: Callable[[Request, int], None],
        give_up: Callable[[int, int], None],
    ) -> None:
        self._workload = workload
        self._cap = max_concurrency
        self._tokens_of = tokens_of
        self._send = send
        self._give_up = give_up
        self._prompt, self._limit = workload.prompt_tokens.tolist(), workload.max_tokens.tolist()
        self._priority, self._tenant = workload.priority.tolist(), workload.tenant.tolist()
        self._parent = workload.parent.tolist()
        self._think = workload.think_ns.tolist()
        patience = workload.abort_after_ns
        self._patience = patience.tolist() if (patience != NEVER).any() else None
        first = [i for i, parent in enumerate(self._parent) if parent == NEVER]
        self._arrivals = list(zip(workload.arrival_ns[first].tolist(), first, strict=True))
        self._next_arrival = 0
        self._children: dict[int, list[int]] = {}
        for child, parent in enumerate(self._parent):
            if parent != NEVER:
                self._children.setdefault(parent, []).append(child)
        self.reacts = max_concurrency is not None or bool(self._children)
        self._wishes: list[tuple[int, Wish, int]] = []
        self._held: deque[tuple[int, int]] = deque()  # (wanted at, request id)
        self._with_deployment = 0
        self._was_sent = [False] * len(workload)
        self.sent = 0
        self.due_ns = self._arrivals[0][0] if self._arrivals else FOREVER

    @property
    def last_arrival_ns(self) -> int:
        """The last arrival time that the workload fixes."""
        return self._arrivals[-1][0] if self._arrivals else 0

    def due_ns_after(self, requests: int) -> int:
        """When the next wish is due, not counting that many requests to be sent before.

        Only for clients that do not react.
        """
        at = self._next_arrival + requests
        due = self._arrivals[at][0] if at < len(self._arrivals) else FOREVER
        wishes = self._wishes
        return wishes[0][0] if wishes and wishes[0][0] < due else due

    def act(self, now: int) -> None:
        """Do everything that is due."""
        while self._next_arrival < len(self._arrivals):
            due, request_id = self._arrivals[self._next_arrival]
            if due > now:
                break
            self._next_arrival += 1
            self._want_to_send(request_id, now)
        while self._wishes and self._wishes[0][0] <= now:
            _, wish, request_id = heapq.heappop(self._wishes)
            if wish == Wish.SEND:
                self._want_to_send(request_id, now)
            else:
                self._give_up(request_id, now)
        self._look_ahead()

    def ended(self, request: Request, now: int) -> None:
        """A request ended: its slot is free, and its conversation may go on."""
        self._with_deployment -= 1
        if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            for child in self._children.get(request.request_id, ()):
                heapq.heappush(self._wishes, (now + self._think[child], Wish.SEND, child))
        if self._held:
            heapq.heappush(self._wishes, (now, Wish.SEND, NEVER))
        if self._wishes:
            self._look_ahead()

    def never_sent(self) -> list[int]:
        """Ids of requests that were held back, or whose turn in a conversation did not come."""
        return [request_id for request_id, sent in enumerate(self._was_sent) if not sent]

    def _look_ahead(self) -> None:
        self.due_ns = FOREVER
        if self._next_arrival < len(self._arrivals):
            self.due_ns = self._arrivals[self._next_arrival][0]
        if self._wishes and self._wishes[0][0] < self.due_ns:
            self.due_ns = self._wishes[0][0]

    def _want_to_send(self, request_id: int, now: int) -> None:
        """Send, or queue at the client; request_id NEVER only means that a slot became free."""
        if request_id != NEVER:
            self._held.append((now, request_id))
        while self._held and (self._cap is None or self._with_deployment < self._cap):
            wanted, next_id = self._held.popleft()
            self._send_now(next_id, now, now - wanted)

    def _send_now(self, request_id: int, now: int, waited_ns: int) -> None:
        tokens = None if self._tokens_of is None else self._tokens_of(request_id)
        request = Request(
            request_id,
            self._prompt[request_id],
            self._limit[request_id],
            priority=self._priority[request_id],
            tenant=self._tenant[request_id],
            tokens=tokens,
            parent=self._parent[request_id],
            client_wait_ns=waited_ns,
        )
        self._with_deployment += 1
        self.sent += 1
        self._was_sent[request_id] = True
        if self._patience is not None and self._patience[request_id] != NEVER:
            due = now + self._patience[request_id]
            heapq.heappush(self._wishes, (due, Wish.GIVE_UP, request_id))
        self._send(request, now)
