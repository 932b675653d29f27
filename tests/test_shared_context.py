"""What a plan and a calibrated step say of KV that several requests hold."""

from __future__ import annotations

from core_harness import Run

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.step_shapes import EngineLimits, StepDesign, design_steps
from workbench.fuzz.fake_model import Ask

TEXT = tuple(range(100, 110))
CONFIG = SchedulerConfig(
    num_pages=64, page_size=2, max_model_len=100, max_num_batched_tokens=64,
    max_running_requests=8, prefix_cache=True, max_plans_in_flight=1,
)  # fmt: skip


def step(run: Run) -> StepPlan:
    """Plan and commit."""
    plan = run.plan()
    assert plan is not None
    run.commit()
    return plan


def test_a_plan_counts_shared_tokens_once_for_each_but_one() -> None:
    """Of three requests with a prefix of four pages: nothing, two, one times eight tokens."""
    asks = [
        Ask(0, TEXT, 20, stop_after=100),
        Ask(1, (*TEXT[:9], 7, 7), 3, stop_after=100),
        Ask(2, (*TEXT[:9], 8), 6, stop_after=100),
    ]
    run = Run(0, CONFIG, asks)
    run.send(asks[0])
    assert step(run).shared_context == 0
    assert step(run).shared_context == 0
    run.send(asks[1])
    run.send(asks[2])
    plan = step(run)
    assert [item.context_tokens for item in plan.prefills] == [8, 8]
    counts = [plan.shared_context]
    while run.scheduler.has_work:
        counts.append(step(run).shared_context)
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {16, 8, 0}


def test_a_made_plan_shares_pages_as_its_design_says() -> None:
    """Groups hold the same first pages, all others are their own, and the plan counts them."""
    limits = EngineLimits(
        num_pages=200, page_size=16, max_model_len=1000, max_num_batched_tokens=256,
        max_running_requests=16, graph_batch_sizes=(4, 8),
    )  # fmt: skip
    design = StepDesign((), (100, 90, 80, 70, 66), shared=64, groups=2)
    _, plan = PlanMaker(limits, 50).make(design)
    tables = [request.pages for request, _ in plan.decode_members()]
    assert [len(table) for table in tables] == [7, 6, 5, 5, 5]
    for one, other in ((0, 2), (0, 4), (1, 3)):
        assert tables[one][:4] == tables[other][:4]
    distinct = {page for table in tables for page in table}
    assert len(distinct) == sum(map(len, tables)) - 3 * 4
    assert plan.shared_context == 3 * 64
    assert plan.decode_context == 406


def test_a_calibration_measures_what_sharing_saves() -> None:
    """Alone and beside a chunk, in one group and in four, but never more than a text can share."""
    limits = EngineLimits(
        num_pages=60_000, page_size=16, max_model_len=32_768, max_num_batched_tokens=8192,
        max_running_requests=256, graph_batch_sizes=(8, 32, 128),
    )  # fmt: skip
    shared = [design for design in design_steps(limits) if design.shared]
    assert {(bool(d.chunks), d.groups) for d in shared} == {
        (False, 1), (False, 4), (True, 1), (True, 4)
    }  # fmt: skip
    assert all(d.shared < min(d.decodes) for d in shared)
