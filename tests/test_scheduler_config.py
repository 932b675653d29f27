"""Settings of a scheduler: what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.config import SchedulerConfig

LEAST: dict[str, Any] = {"num_pages": 1, "max_model_len": 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1")
            for name in (
                "num_pages", "max_model_len", "page_size", "max_num_batched_tokens",
                "max_running_requests", "max_prefill_tokens", "transfer_timeout_ns",
            )
        ),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens must not be negative"),
        ({"check_every": -1}, "check_every must not be negative"),
        ({"max_plans_in_flight": 0}, "must be 1 to 4"),
        ({"max_plans_in_flight": 5}, "must be 1 to 4"),
        ({"schedule_conservativeness": 0.0}, "must be positive"),
        ({"schedule_conservativeness": float("nan")}, "must be positive"),
        ({"cuda_graph_batch_sizes": (2, 1)}, "ascending"),
        ({"cuda_graph_batch_sizes": (1, 1)}, "ascending"),
        ({"cuda_graph_batch_sizes": (0, 1)}, "positive"),
        ({"max_num_batched_tokens": 255}, "raise it to 256 or lower max_running_requests"),
        ({"max_num_batched_tokens": 1023, "num_speculative_tokens": 3}, "raise it to 1024"),
        ({"policy": "fcsf"}, "policy must be one of fcfs, lpm, priority, got 'fcsf'"),
        ({"mode": "mix"}, "mode must be one of mixed, prefill_first"),
        ({"admission": "estimated"}, "admission must be one of estimate, reserve"),
        ({"eviction": "fifo"}, "eviction must be one of lru, lfu"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    """Each limit has an error that names the setting and what is allowed."""
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**LEAST | wrong)


@pytest.mark.parametrize(
    ("changes", "budget"),
    [({}, 8192), ({"max_prefill_tokens": 512}, 512), ({"max_prefill_tokens": 9000}, 8192)],
)
def test_prefill_has_the_smaller_of_two_budgets(changes: dict[str, Any], budget: int) -> None:
    """`prefill_budget` is what one step may prefill when nothing decodes."""
    assert SchedulerConfig(**LEAST | changes).prefill_budget == budget
