"""Turns a plan into the integers that the device needs: one array, so that one copy brings all.

Decode members are the same from step to step except for their positions, so their rows are looked
up only when the batch has changed, and pages only for those that begin a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.runtime.request_rows import RequestRows

Int32 = NDArray[np.int32]
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class HostPrefill:
    """The chunks of a step; see `engine.models.step_inputs.PrefillInputs`."""

    starts: Int32
    rows: Int32
    contexts: Int32

    @property
    def decodes(self) -> int:
        """Decoding requests, whose tokens lie before the chunks."""
        return int(self.starts[0])


@dataclass(frozen=True, slots=True)
class HostStep:
    """A step as numbers on the host.

    Attributes:
        token_ids, positions, rows: int32[T]; see `engine.models.step_inputs.StepInputs`.
        prefill: the chunks, or None.
        logit_rows: int32[S], tokens whose logits are wanted, in the order of
            `StepPlan.sampling_requests`.
        new_at, new_pages: int32[U], places in the flat page table and the pages that go there.
        sampled: (request, epoch) of each logit row.
    """

    token_ids: Int32
    positions: Int32
    rows: Int32
    prefill: HostPrefill | None
    logit_rows: Int32
    new_at: Int32
    new_pages: Int32
    sampled: list[tuple[Request, int]]


class StepBuilder:
    """Makes host steps.

    Args:
        rows: of the requests.
        max_pages: places per row of the page table.
        page_size: tokens per page.
    """

    def __init__(self, rows: RequestRows, max_pages: int, page_size: int) -> None:
        self._rows = rows
        self._max_pages = max_pages
        self._page_size = page_size
        self._members: list[tuple[Request, int]] | None = None
        self._member_rows = self._member_offsets = _NONE

    def build(self, plan: StepPlan) -> HostStep:
        """The numbers of a plan; must be called before the scheduler is called again."""
        updates: list[tuple[int, list[int]]] = []  # (first place, pages)
        decode_rows, decode_positions = self._decodes(plan, updates)
        if not plan.prefills:
            count = len(decode_rows)
            return HostStep(
                -1 - decode_rows, decode_positions, decode_rows, None,
                np.arange(count, dtype=np.int32), *_flatten(updates), plan.sampling_requests(),
            )  # fmt: skip
        return self._with_prefills(plan, decode_rows, decode_positions, updates)

    def _with_prefills(
        self,
        plan: StepPlan,
        decode_rows: Int32,
        decode_positions: Int32,
        updates: list[tuple[int, list[int]]],
    ) -> HostStep:
        ids, positions, rows = [-1 - decode_rows], [decode_positions], []
        contexts, logit_rows, starts = [], [], [len(decode_rows)]
        for item in plan.prefills:
            request, stop = item.request, item.context_tokens + item.num_tokens
            if request.tokens is None:
                raise ValueError(f"request {request.request_id} has no token ids")
            row = self._rows.of(request)
            if len(request.pages) > row.pages:
                first = row.index * self._max_pages + row.pages
                updates.append((first, request.pages[row.pages :]))
                row.pages = len(request.pages)
            ids.append(request.tokens.ids(item.context_tokens, stop))
            positions.append(np.arange(item.context_tokens, stop, dtype=np.int32))
            rows.append(row.index)
            contexts.append(item.context_tokens)
            starts.append(starts[-1] + item.num_tokens)
            if item.samples:
                logit_rows.append(starts[-1] - 1)
        logit_rows += range(len(decode_rows))
        chunk_rows, edges = np.array(rows, np.int32), np.array(starts, np.int32)
        return HostStep(
            np.concatenate(ids).astype(np.int32, copy=False),
            np.concatenate(positions),
            np.concatenate([decode_rows, np.repeat(chunk_rows, np.diff(edges))]),
            HostPrefill(edges, chunk_rows, np.array(contexts, np.int32)),
            np.array(logit_rows, np.int32),
            *_flatten(updates),
            plan.sampling_requests(),
        )

    def _decodes(self, plan: StepPlan, updates: list[tuple[int, list[int]]]) -> tuple[Int32, Int32]:
        """Rows and positions of the decode members; adds the pages that they begin to fill."""
        members = plan.decode_members()
        if not members:
            return _NONE, _NONE
        if members is not self._members:  # the batch keeps one list until it changes
            self._members = members
            known = [self._rows.of(request) for request, _ in members]
            self._member_rows = np.array([row.index for row in known], np.int32)
            self._member_offsets = np.array([r.offset for r, _ in members], np.int64)
        positions = (self._member_offsets + (plan.decode_iteration - 1)).astype(np.int32)
        for index in np.flatnonzero(positions % self._page_size == 0).tolist():
            request = members[index][0]
            row = self._rows.of(request)
            place = int(positions[index]) // self._page_size
            updates.append((row.index * self._max_pages + place, [request.pages[place]]))
            row.pages = place + 1
        return self._member_rows, positions


def _flatten(updates: list[tuple[int, list[int]]]) -> tuple[Int32, Int32]:
    if not updates:
        return _NONE, _NONE
    at = [np.arange(first, first + len(pages), dtype=np.int32) for first, pages in updates]
    return np.concatenate(at), np.concatenate([np.array(p, np.int32) for _, p in updates])
