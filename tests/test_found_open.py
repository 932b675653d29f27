"""Found by the fuzzer and not mended yet; docs/found_by_fuzz.md says why. It fails, as it must.

Whoever mends one takes its mark away, and the exemption in `workbench/fuzz` that goes with it.
"""

from __future__ import annotations

import pytest

from engine.core.config import SchedulerConfig
from engine.core.plan import OK
from engine.core.scheduler import Scheduler
from workbench.fuzz.fake_model import Ask

CONFIG = SchedulerConfig(
    num_pages=16, page_size=4, max_model_len=99, max_num_batched_tokens=8, max_running_requests=4,
    max_plans_in_flight=1, transfer_timeout_ns=10,
)  # fmt: skip


@pytest.mark.xfail(reason="chunks are shared as soon as they are committed and their request left")
def test_chunks_that_nobody_has_seen_a_token_of_are_not_shared() -> None:
    """A prompt's KV may hold no numbers, which shows with its first token (FakeDevice._lose)."""
    scheduler = Scheduler(CONFIG)
    scheduler.add(Ask(0, tuple(range(16)), 9, 99).request(), 0)
    scheduler.commit(scheduler.plan(1).plan_id, OK, 2)  # half of the prompt
    scheduler.abort(0, 3)
    assert scheduler.kv.cached_pages == 0
