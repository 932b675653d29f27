"""The waiting queue against sorting, for every policy."""

from __future__ import annotations

from core_harness import machine_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.request import Request
from engine.core.waiting_queue import LPM_WINDOW, MAX_BYPASS, Policy, WaitingQueue


def waiting(number: int, priority: int = 0) -> Request:
    """A request that arrived as the `number`-th."""
    request = Request(number, 1, 1, priority=priority)
    request.sequence = number
    return request


class QueueMachine(RuleBasedStateMachine):
    """Requests arrive, are admitted, end, and come back with their old place."""

    @initialize(policy=st.sampled_from(["fcfs", "lpm", "priority"]))
    def start(self, policy: Policy) -> None:
        self.policy = policy
        self.cached: dict[int, int] = {}
        self.queue = WaitingQueue(policy, lambda request: self.cached[request.request_id])
        self.inside: dict[int, Request] = {}
        self.outside: list[Request] = []
        self.arrived = 0

    @rule(priority=st.integers(-1, 2), cached=st.integers(0, 3))
    def arrive(self, priority: int, cached: int) -> None:
        self.cached[self.arrived] = cached
        self._push(waiting(self.arrived, priority))
        self.arrived += 1

    @precondition(lambda self: self.outside)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self._push(self.outside.pop(data.draw(st.integers(0, len(self.outside) - 1))))

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), admitted=st.booleans())
    def go(self, data: st.DataObject, admitted: bool) -> None:
        request = self.inside[data.draw(st.sampled_from(sorted(self.inside)))]
        oldest = min(self.inside.values(), key=lambda r: r.sequence)
        bypassed = oldest.bypassed + (admitted and self.policy == "lpm" and oldest is not request)
        (self.queue.admitted if admitted else self.queue.remove)(request)
        assert oldest.bypassed == bypassed
        self.outside.append(self.inside.pop(request.request_id))

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), cached=st.integers(0, 3))
    def cache_changes(self, data: st.DataObject, cached: int) -> None:
        self.cached[data.draw(st.sampled_from(sorted(self.inside)))] = cached

    def _push(self, request: Request) -> None:
        self.queue.push(request)
        self.inside[request.request_id] = request

    @invariant()
    def equal_to_sorting(self) -> None:
        assert len(self.queue) == len(self.inside)
        assert {r.request_id for r in self.queue} == set(self.inside)
        orders = {
            "fcfs": lambda r: r.sequence,
            "priority": lambda r: (-r.priority, r.sequence),
            "lpm": lambda r: (-self.cached[r.request_id], r.sequence),
        }
        expected = min(self.inside.values(), key=orders[self.policy], default=None)
        assert self.queue.head() is expected


class TestQueue(QueueMachine.TestCase):
    """The head is the first of all requests inside, sorted by the policy."""

    settings = machine_settings(100, steps=30)


def test_longest_prefix_looks_at_the_oldest_only() -> None:
    """A better prefix behind the window waits until it is within the window."""
    best = LPM_WINDOW + 1
    queue = WaitingQueue("lpm", lambda request: int(request.request_id == best))
    for number in range(best + 1):
        queue.push(waiting(number))
    assert queue.head().request_id == 0
    queue.admitted(queue.head())
    assert queue.head().request_id == 1
    queue.admitted(queue.head())
    assert queue.head().request_id == best


def test_the_oldest_is_passed_a_bounded_number_of_times() -> None:
    """After MAX_BYPASS later admissions the oldest goes first, whatever is cached."""
    queue = WaitingQueue("lpm", lambda request: request.request_id)
    for number in range(MAX_BYPASS + 5):
        queue.push(waiting(number))
    admitted = []
    while len(queue):
        head = queue.head()
        queue.admitted(head)
        admitted.append(head.request_id)
    assert admitted.index(0) == MAX_BYPASS
    assert admitted[:2] == [LPM_WINDOW - 1, LPM_WINDOW]
