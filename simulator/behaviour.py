"""What a model would have done: where each text ends. The scheduler never sees it beforehand."""

from __future__ import annotations

import heapq

from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.request_book import RequestBook
from engine.core.workload import Workload


class OutputLengths:
    """Ends texts at the workload's output lengths, one instance per replica.

    A text that ends at its max_tokens is ended by the scheduler itself.

    Attributes:
        active: whether any text ends before its max_tokens; if not, there is nothing to ask.
    """

    def __init__(self, workload: Workload) -> None:
        natural = workload.output_tokens < workload.max_tokens
        self._output_tokens = workload.output_tokens.tolist()
        self.active = bool(natural.any())
        self._ends_by_itself = natural.tolist()
        self._ends: list[tuple[int, int, Request, int]] = []  # (iteration, request id, ., epoch)
        self._at_prefill: dict[int, list[tuple[Request, int]]] = {}

    def planned(self, plan: StepPlan, book: RequestBook) -> None:
        """Note for each prompt that `plan` completes when its text will end."""
        for item in plan.prefills:
            request = item.request
            if not item.samples or not self._ends_by_itself[request.request_id]:
                continue
            left = self._output_tokens[request.request_id] - request.committed_outputs - 1
            if left <= 0:
                self._at_prefill.setdefault(plan.plan_id, []).append((request, item.epoch))
            else:
                last = book.batch.iteration + left
                heapq.heappush(self._ends, (last, request.request_id, request, item.epoch))

    def steps_until_end(self, iteration: int) -> int | None:
        """Decode iterations after `iteration` up to the one in which the next text ends."""
        ends = self._ends
        while ends and ends[0][2].epoch != ends[0][3]:
            heapq.heappop(ends)
        return ends[0][0] - iteration if ends else None

    def stopped(self, plan: StepPlan) -> list[int]:
        """Ids of the requests whose text ends with this plan's tokens."""
        done = self._at_prefill.pop(plan.plan_id, [])
        stopped = [request.request_id for request, epoch in done if request.epoch == epoch]
        ends = self._ends
        while ends and ends[0][0] <= plan.decode_iteration:
            _, request_id, request, epoch = heapq.heappop(ends)
            if request.epoch == epoch:
                stopped.append(request_id)
        return stopped
