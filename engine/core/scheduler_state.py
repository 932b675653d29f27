"""What the parts of a scheduler share."""

from __future__ import annotations

import bisect
from collections import deque

from engine.core.admission import NewTokenRatio
from engine.core.config import SchedulerConfig
from engine.core.events import EventLog
from engine.core.kv_memory import KvMemory
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.request_book import RequestBook
from engine.core.transfers import TransferDesk


class SchedulerState:
    """Requests, memory and plans of one replica, and the settings in force.

    Attributes:
        config: may be replaced while running; see `Scheduler.reconfigure`.
        kv, book, transfers: memory, requests, open KV transfers.
        in_flight: plans not committed, oldest first.
        next_plan_id: id of the plan to come.
        newest_sampling_plan: newest plan that brings tokens.
        ratio: how much of their max_tokens running requests are expected to use.
        commits: plans committed.
        to_send: requests whose computed KV must leave.
        ended: requests that ended inside `plan` and have not been told of.
        memory_ran_out: whether requests were retracted in this call of `plan`.
    """

    def __init__(self, config: SchedulerConfig, events: EventLog | None, replica: int) -> None:
        self.config = config
        self.replica = replica
        self.next_plan_id = 0
        self.kv = KvMemory(
            config.num_pages,
            config.page_size,
            prefix_cache=config.prefix_cache,
            eviction=config.eviction,
            events=events,
            replica=replica,
            next_plan_id=lambda: self.next_plan_id,
        )
        self.book = RequestBook(config, self.kv, events, replica)
        self.transfers = TransferDesk(self.kv, config.transfer_timeout_ns)
        self.in_flight: deque[StepPlan] = deque()
        self.newest_sampling_plan = -1
        self.ratio = NewTokenRatio(config.schedule_conservativeness)
        self.commits = 0
        self.to_send: list[Request] = []
        self.ended: list[Request] = []
        self.memory_ran_out = False
        self._graph_buckets = _graph_buckets(config.cuda_graph_batch_sizes)

    def configure(self, config: SchedulerConfig) -> None:
        """Put other settings in force."""
        self.config = config
        self._graph_buckets = _graph_buckets(config.cuda_graph_batch_sizes)

    def graph_batch(self, num_requests: int) -> int:
        """The CUDA Graph bucket of a pure decode step, 0 if it is too large for all of them."""
        buckets = self._graph_buckets
        return buckets[num_requests] if num_requests < len(buckets) else 0


def _graph_buckets(sizes: tuple[int, ...]) -> list[int]:
    """The bucket of each batch size from 0 to the largest."""
    return [sizes[bisect.bisect_left(sizes, n)] for n in range(sizes[-1] + 1)] if sizes else []
