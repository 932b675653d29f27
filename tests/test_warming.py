"""Steps beside those that are measured have requests and pages of their own, of the engine's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_engine import MadeUpStep

from engine.core.config import MAX_PLANS_IN_FLIGHT
from engine.core.enums import RequestStatus
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.profiling import warming
from engine.profiling.made_plans import PlanMaker
from engine.profiling.step_shapes import EngineLimits, design_steps
from engine.profiling.warming import SideSteps, measure_hot, measure_warming
from engine.runtime.host_step import StepBuilder
from engine.runtime.request_rows import RequestRows

LARGE = EngineLimits(
    num_pages=20_000, page_size=16, max_model_len=32_768, max_num_batched_tokens=8192,
    max_running_requests=256, graph_batch_sizes=(1, 8, 16, 32, 64, 128, 256),
)  # fmt: skip


class Rows:
    """An executor that builds each step as the engine does, and notes who holds what in it."""

    def __init__(self, limits: EngineLimits) -> None:
        count = MAX_PLANS_IN_FLIGHT * limits.max_running_requests
        self.rows = RequestRows(count, lambda _row, _request: None)
        for number in range(count - 5):  # what serving left, all but a few
            served = Request(10_000 + number, 1, 1)
            served.move_to(RequestStatus.FINISHED)
            self.rows.of(served)
        pages = -(-limits.max_model_len // limits.page_size)
        self.builder = StepBuilder(self.rows, pages, limits.page_size)
        self.requests: dict[int, int] = {}
        self.pages: dict[int, set[int]] = {}
        self.launched = 0

    def launch(self, plan: StepPlan) -> MadeUpStep:
        self.launched += 1
        built = self.builder.build(plan)
        requests = [item.request for item in plan.prefills]
        requests += [request for request, _ in plan.decode_members()]
        chunks = built.prefill.rows.tolist() if built.prefill is not None else []
        held = [*chunks, *built.rows[: plan.decode_requests].tolist()]
        assert len(held) == len(set(held)) == len(requests), "a row each"
        for request in requests:
            assert self.requests.setdefault(request.request_id, id(request)) == id(request)
            self.pages.setdefault(request.request_id, set()).update(request.pages)
        return MadeUpStep(plan, 1.0)


@st.composite
def limits(draw):
    """Engines of any size, some of which have no room for steps beside others."""
    roomy = draw(st.booleans())
    page_size = draw(st.sampled_from([1, 16, 64]))
    return EngineLimits(
        num_pages=draw(st.integers(130_000 if roomy else 1, 260_000)) // page_size + 1,
        page_size=page_size,
        max_model_len=draw(st.integers(1500 if roomy else 2, 20_000)),
        max_num_batched_tokens=draw(st.integers(512 if roomy else 1, 9000)),
        max_running_requests=draw(st.integers(16 if roomy else 1, 300)),
        graph_batch_sizes=draw(st.sampled_from([(), (1, 2, 4), (1, 16, 256)])),
    )


def run_all(engine: EngineLimits) -> tuple[Rows, SideSteps]:
    """Everything that calibration runs; of the many designs of steps, some."""
    executor = Rows(engine)
    side = SideSteps(executor, engine, 1000)  # type: ignore[arg-type]
    maker = PlanMaker(side.limits, 1000)
    for design in design_steps(side.limits)[::17]:
        for plan in maker.make(design):
            if plan is not None:
                executor.launch(plan)
        for plan in side.rest[:2]:
            executor.launch(plan)
    measure_warming(executor, side)  # type: ignore[arg-type]
    measure_hot(executor, side, maker)  # type: ignore[arg-type]
    return executor, side


@settings(max_examples=25, deadline=None)
@given(limits())
@example(LARGE)
@example(replace(LARGE, max_running_requests=16))
def test_no_two_makers_share_a_request_or_a_page(engine):
    """And all are the engine's: rows for all requests, and pages that it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warming, "PATTERN_NS", 30_000_000)
        patch.setattr(warming, "_HEAT_NS", 30_000_000)
        executor, side = run_all(engine)
    main = range(engine.max_running_requests)
    own = [pages for number, pages in executor.pages.items() if number not in main]
    others = [pages for number, pages in executor.pages.items() if number in main]
    every = set().union(*own, *others)
    assert all(0 <= page < engine.num_pages for page in every)
    assert sum(map(len, own)) == len(set().union(*own)), "each has its own"
    assert not set().union(*own) & set().union(*others)
    assert len(executor.requests) <= MAX_PLANS_IN_FLIGHT * engine.max_running_requests
    assert bool(side.rest) == bool(side.heat) == bool(own)


def test_the_shortest_prompt_that_computes_as_much_heats():
    """Of an engine whose short prompts wait for weights, a longer one; a small engine has none."""
    side = SideSteps(Rows(LARGE), LARGE, 1000)  # type: ignore[arg-type]
    assert len(set(map(id, side.heat))) == 1
    assert side.heat[0].prefill_tokens == 512
    assert 7 < side.seconds < 60
    tiny = replace(LARGE, num_pages=900)
    executor = Rows(tiny)
    side = SideSteps(executor, tiny, 1000)  # type: ignore[arg-type]
    assert (side.heat, side.rest, side.limits, executor.launched) == ([], [], tiny, 0)
    assert side.seconds == 0
    assert not measure_hot(executor, side, PlanMaker(tiny, 1000)).shapes  # type: ignore[arg-type]
    assert np.sum(measure_warming(executor, side).tokens) == 0  # type: ignore[arg-type]
