"""What a plan becomes on the host: rows, positions, and the pages the device has to be told of."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from core_harness import NO_FAULTS, Faults, Run, fresh_seeds, random_run

from engine.core.enums import RequestStatus
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.runtime.host_step import HostStep, StepBuilder
from engine.runtime.request_rows import RequestRows

UNKNOWN = -9


class PageTable:
    """A device that knows only what it is told: its page table is filled by the updates."""

    def __init__(self, run: Run) -> None:
        config = run.first_config
        self.size = config.page_size
        self.width = 1 + max(
            (len(ask.prompt) + ask.max_tokens) // self.size for ask in run.asks.values()
        )
        count = config.max_plans_in_flight * config.max_running_requests
        self.owners = [UNKNOWN] * count
        self.pages = np.full((count, self.width), UNKNOWN)
        rows = RequestRows(count, self.owners.__setitem__)
        self.builder = StepBuilder(rows, self.width, self.size)
        self.requests = run.requests
        self.told: set[tuple[int, int, int]] = set()  # (request, epoch, place)

    def take(self, plan: StepPlan) -> HostStep:
        """Build a step and write its pages; nothing is told twice."""
        step = self.builder.build(plan)
        for at, page in zip(step.new_at.tolist(), step.new_pages.tolist(), strict=True):
            row, place = divmod(at, self.width)
            request = self.requests[self.owners[row]]
            told = (request.request_id, request.epoch, place)
            assert told not in self.told
            self.told.add(told)
            self.pages[row, place] = page
        for array in (step.token_ids, step.positions, step.rows, step.logit_rows, step.new_at):
            assert array.dtype == np.int32
        return step

    def check_row(self, row: int, request: Request, tokens: int) -> None:
        """The device knows the page of each of a request's first `tokens` tokens."""
        count = -(-tokens // self.size)
        assert self.owners[row] == request.request_id
        assert self.pages[row, :count].tolist() == request.pages[:count]


def laws(world: dict[int, PageTable]):
    def law(run: Run, plan: StepPlan) -> None:
        if id(run) not in world:
            world[id(run)] = PageTable(run)
        table = world[id(run)]
        step = table.take(plan)
        members = plan.decode_members()
        at, ends = len(members) if plan.prefills else 0, []
        for index, item in enumerate(plan.prefills):
            stop = item.context_tokens + item.num_tokens
            part = slice(at, at + item.num_tokens)
            row = set(step.rows[part].tolist())
            assert row == {int(step.prefill.rows[index])}
            assert step.positions[part].tolist() == list(range(item.context_tokens, stop))
            ids = item.request.tokens.ids(item.context_tokens, stop)
            assert step.token_ids[part].tolist() == ids.tolist()
            table.check_row(row.pop(), item.request, stop)
            at += item.num_tokens
            ends += [at - 1] * item.samples
        decodes = slice(0, len(members))
        assert step.rows[decodes].tolist() == (-1 - step.token_ids[decodes]).tolist()
        for row, position, (request, _) in zip(
            step.rows[decodes], step.positions[decodes], members, strict=True
        ):
            assert position == request.offset + plan.decode_iteration - 1
            table.check_row(row, request, position + 1)
        assert len(step.rows) == max(at, len(members))
        assert step.logit_rows.tolist() == ends + list(range(len(members)))
        assert step.sampled == plan.sampling_requests()
        assert len(set(step.rows.tolist())) == len(plan.prefills) + len(members)
        check_prefill(plan, step)
        if not plan.prefills:  # at most one page each, so that they fit a graph's columns
            assert len(step.new_at) <= len(members)

    return law


def check_prefill(plan: StepPlan, step: HostStep) -> None:
    """The chunks' arrays say what the plan says."""
    if not plan.prefills:
        assert step.prefill is None
        return
    lengths = [item.num_tokens for item in plan.prefills]
    decodes = len(plan.decode_members())
    assert step.prefill.decodes == decodes
    assert step.prefill.starts.tolist() == np.cumsum([decodes, *lengths]).tolist()
    assert step.prefill.contexts.tolist() == [item.context_tokens for item in plan.prefills]


@pytest.mark.parametrize("faults", [NO_FAULTS, Faults(abort=0.03, fail=0.03, nan=0.01)])
def test_the_device_knows_every_page_that_a_step_reads(faults: Faults) -> None:
    """Over random runs: rows, positions, ids, and a page table that only the updates fill."""
    for seed in fresh_seeds(25):
        random_run(seed, faults, [laws({})], num_speculative_tokens=0)


def test_a_prompt_without_ids_is_an_error() -> None:
    """A request that has no token ids cannot be computed, and the message says whose it is."""
    plan = StepPlan(0)
    request = Request(7, 3, 1)
    request.pages = [0]
    plan.prefills = [type("Item", (), dict(
        request=request, epoch=0, num_tokens=3, context_tokens=0, samples=True
    ))]  # fmt: skip
    with pytest.raises(ValueError, match="request 7 has no token ids"):
        StepBuilder(RequestRows(2, lambda *_: None), 4, 4).build(plan)


def running(request_id: int) -> Request:
    request = Request(request_id, 2, 2)
    request.move_to(RequestStatus.PREFILLING)
    return request


def test_rows_are_swept_only_when_none_is_left() -> None:
    """A request that waits keeps its row until another needs it; a running one keeps it always."""
    told: list[tuple[int, int]] = []
    rows = RequestRows(3, lambda row, request_id: told.append((row, request_id)))
    first, second, third, fourth = (running(i) for i in range(4))
    known = [rows.of(r).index for r in (first, second, third)]
    assert sorted(known) == [0, 1, 2]
    second.move_to(RequestStatus.WAITING)
    assert rows.of(second).index == known[1]
    assert rows.of(fourth).index == known[1]
    assert [rows.of(r).index for r in (first, third)] == [known[0], known[2]]
    first.move_to(RequestStatus.FINISHED)
    assert rows.of(second).index == known[0]
    assert told == [*zip(known, range(3), strict=True), (known[1], 3), (known[0], 1)]


def test_another_epoch_has_other_pages() -> None:
    """After a retraction a row that was kept knows no page; another request of the id is new."""
    rows = RequestRows(2, lambda *_: None)
    request = running(5)
    row = rows.of(request)
    row.pages = 3
    assert rows.of(request).pages == 3
    request.epoch += 1
    assert (rows.of(request) is row, rows.of(request).pages) == (True, 0)
    row.pages = 2
    namesake = running(5)
    assert rows.of(namesake).pages == 0
    assert rows.of(namesake).request is namesake


def test_random_rows() -> None:
    """Whoever runs has a row of its own, however requests come and go."""
    rng = Random(4)
    rows, alive = RequestRows(6, lambda *_: None), []
    for request_id in range(300):
        if len(alive) == 6 or (alive and rng.random() < 0.3):
            gone = alive.pop(rng.randrange(len(alive)))
            gone.move_to(rng.choice([RequestStatus.WAITING, RequestStatus.FINISHED]))
        alive.append(running(request_id))
        held = {rows.of(request).index for request in alive}
        assert len(held) == len(alive)
        assert held <= set(range(6))
