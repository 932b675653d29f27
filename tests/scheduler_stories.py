"""Small stories of a scheduler, told by hand: a few requests, a step at a time."""

from __future__ import annotations

from typing import Any

from core_harness import Run

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan
from workbench.fuzz.fake_model import Ask

NEVER = 10**6  # stop_after of a text that only max_tokens ends


def config(**changes: Any) -> SchedulerConfig:
    """A small replica with one plan in flight and no prefix cache, unless said otherwise."""
    settled: dict[str, Any] = dict(
        num_pages=64, page_size=1, max_model_len=1000, max_num_batched_tokens=16,
        max_running_requests=4, prefix_cache=False, max_plans_in_flight=1, admission="reserve",
    )  # fmt: skip
    return SchedulerConfig(**settled | changes)


def ask(request_id: int, prompt: int = 4, max_tokens: int = 8, **facts: Any) -> Ask:
    """A request whose prompt nobody shares."""
    facts = {"stop_after": NEVER} | facts
    return Ask(request_id, (100 + request_id,) * prompt, max_tokens, **facts)


def story(settings: SchedulerConfig, asks: list[Ask]) -> Run:
    """A run that goes by hand; its requests have been sent."""
    run = Run(0, settings, asks)
    for one in asks:
        run.send(one)
    return run


def step(run: Run) -> StepPlan:
    """Plan and commit."""
    plan = run.plan()
    assert plan is not None
    run.commit()
    return plan


def ids(plan: StepPlan) -> list[int]:
    """The requests in a step."""
    return [item.request.request_id for item in plan.items()]
