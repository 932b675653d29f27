"""Random runs of the scheduler, with every law checked after every event."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_harness import (
    ALL_FAULTS,
    NO_FAULTS,
    Faults,
    Run,
    fresh_seeds,
    random_run,
)

from engine.core.config import Mode, SchedulerConfig
from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    RejectReason,
    RequestEvent,
    RetractReason,
    TransferStatus,
)
from engine.core.plan import StepPlan
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.plan_laws import PLAN_LAWS
from workbench.fuzz.record_laws import check_record, retract_reasons
from workbench.fuzz.tiny import fits, random_asks, random_config

KINDS = {
    "calm": (NO_FAULTS, False),
    "faults": (ALL_FAULTS, False),
    "handoffs": (ALL_FAULTS, True),
    "aborts": (Faults(abort=0.25), True),
}
ROUNDS = 60


def obey(seed: int, kind: str) -> Run:
    """A random run that obeys all laws."""
    faults, handoffs = KINDS[kind]
    run = random_run(seed, faults, PLAN_LAWS, handoffs)
    try:
        run.check_ends()
        check_record(run)
    except AssertionError as error:
        error.add_note(f"seed {seed}, {kind}: {run.first_config}")
        raise
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", range(4))
def test_random_runs_obey_all_laws(kind: str, block: int) -> None:
    """The books add up at any time, no page is misused, every request ends once, truthfully."""
    for seed in range(block * ROUNDS, (block + 1) * ROUNDS):
        obey(seed, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_nobody_has_seen_obey_all_laws(kind: str) -> None:
    """The same laws for new seeds."""
    for seed in fresh_seeds(15):
        obey(seed, kind)


VARIANTS: list[dict[str, object]] = [
    *({"max_plans_in_flight": depth} for depth in (1, 2, 3, 4)),
    *({"policy": policy} for policy in ("fcfs", "lpm", "priority")),
    {"mode": "mixed"}, {"mode": "prefill_first"},
    {"admission": "estimate", "schedule_conservativeness": 0.01}, {"admission": "reserve"},
    {"prefix_cache": False}, {"prefix_cache": True, "eviction": "lfu"},
    {"max_prefill_tokens": 3, "chunked_prefill": True},
    {"num_speculative_tokens": 0}, {"num_speculative_tokens": 3},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(24))
def test_no_setting_changes_a_token(seed: int) -> None:
    """Depth, policy, mode, admission, cache, chunks and speculation move time, never text."""
    rng = random.Random(seed)
    config = random_config(rng, page_size=(1, 2, 4, 16)[seed % 4])
    least = config.max_running_requests * 4
    config = replace(config, max_num_batched_tokens=max(least, config.max_num_batched_tokens))
    asks = fits(random_asks(rng, config, 16), config)
    expected = {ask.request_id: ask.text(ask.output_length) for ask in asks}
    for variant in VARIANTS:
        run = Run(seed, replace(config, **variant), asks)
        if variant.get("chunked_prefill", config.chunked_prefill):
            assert run.play().outputs() == expected
        else:
            outputs = run.play().outputs()
            assert all(outputs[i] == expected[i] for i, never in run.never.items() if not never)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fits_completes_alone(seed: int) -> None:
    """A request that is not rejected is served by an otherwise idle replica, without retraction."""
    rng = random.Random(seed)
    config = random_config(rng)
    slots = min(config.num_pages * config.page_size, config.max_model_len - 1)
    prompt = tuple(rng.randint(0, 1) for _ in range(rng.randint(1, slots)))
    most = slots + 1 - len(prompt)
    run = Run(seed, config, [Ask(0, prompt, most, rng.choice([1, most, most + 1]))]).play()
    run.check_ends()
    if not run.never[0]:
        assert run.requests[0].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert run.requests[0].retractions == 0


@pytest.mark.parametrize("seed", range(60))
def test_reserving_admission_never_retracts_for_pages(seed: int) -> None:
    """With `reserve`, memory never runs out under a running request."""
    faults = Faults(abort=0.03, fail=0.01, transfers=True)
    run = random_run(seed, faults, handoffs=seed % 2 == 0, admission="reserve")
    assert RetractReason.KV_PAGES not in retract_reasons(run)


def test_the_random_runs_reach_every_corner() -> None:
    """Every reason, event and outcome of the core happens in the runs that this file makes."""
    blocks: set[AdmissionBlock] = set()
    seen: dict[str, set[int]] = {
        "event": set(),
        "finish": set(),
        "reject": set(),
        "transfer": set(),
    }
    retracted: set[RetractReason] = set()
    marks: set[str] = set()

    def note(run: Run, plan: StepPlan) -> None:
        blocks.add(plan.block_reason)
        marks.update(
            name for name in ("feeds_from", "graph_batch", "evicted_pages", "hit_tokens")
            if getattr(plan, name) > 0
        )  # fmt: skip
        if run.scheduler.kv.has_deferred:
            marks.add("deferred")
        if run.scheduler.kv.pool.orphaned_pages:
            marks.add("orphaned")

    for seed in range(60):
        for faults, handoffs in KINDS.values():
            run = random_run(seed, faults, [note], handoffs)
            tables = run.log.tables()
            life = tables["lifecycle"]
            seen["event"].update(life["event"].tolist())
            done = life["event"] == RequestEvent.TRANSFER_DONE
            seen["transfer"].update(life["b"][done].tolist())
            seen["finish"].update(tables["requests"]["finish_reason"].tolist())
            seen["reject"].update(tables["requests"]["reject_reason"].tolist())
            retracted |= retract_reasons(run)
    assert blocks == set(AdmissionBlock)
    assert seen["event"] == set(RequestEvent)
    assert seen["finish"] == set(FinishReason) - {FinishReason.NONE}
    assert seen["reject"] == set(RejectReason)
    assert seen["transfer"] == set(TransferStatus)
    assert retracted == set(RetractReason)
    assert marks == {
        "feeds_from", "graph_batch", "evicted_pages", "hit_tokens", "deferred", "orphaned"
    }  # fmt: skip


def test_a_run_is_a_function_of_its_seed() -> None:
    """The same seed gives the same plans, events and tokens."""
    first, second = (random_run(5, ALL_FAULTS, handoffs=True) for _ in range(2))
    assert first.journal.to_array().tolist() == second.journal.to_array().tolist()
    assert first.outputs() == second.outputs()


@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
@pytest.mark.parametrize("page_size", [1, 2, 4])
def test_running_out_of_pages_teaches_admission(mode: Mode, page_size: int) -> None:
    """A step that retracts for pages computes something; nobody is sent back more than twice."""
    config = SchedulerConfig(
        num_pages=200 // page_size, page_size=page_size, max_model_len=100,
        max_num_batched_tokens=64, max_running_requests=16, prefix_cache=False,
        schedule_conservativeness=0.01, mode=mode,
    )  # fmt: skip

    def progresses(_: Run, plan: StepPlan) -> None:
        assert plan.items()

    asks = [Ask(i, (0, 1), 60, 61) for i in range(20)]
    run = Run(1, config, asks, laws=[progresses, *PLAN_LAWS]).play()
    run.check_ends()
    retractions = [request.retractions for request in run.requests.values()]
    assert 3 <= sum(retractions) <= 16
    assert max(retractions) <= 2
