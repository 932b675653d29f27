"""The first decision in which two runs differ, as `workbench.analysis.compare` finds it."""

from __future__ import annotations

import msgspec
import pytest
from run_tables import MS, HandMadeRun, header, random_run

from engine.core.enums import RequestEvent
from workbench.analysis.compare import compare_runs, render
from workbench.analysis.divergence import first_divergence


def _batches(num_steps: int = 4) -> HandMadeRun:
    """Each step prefills one request, and r0 decodes from step 1 on."""
    run = HandMadeRun()
    for step in range(num_steps):
        run.add_step(
            step, 100 * step, 100 * step, 90, 100 * step + 100, prefill_tokens=8,
            prefill_requests=1, decode_requests=int(step > 0), decode_iteration=step - 1,
        )  # fmt: skip
        run.add_item(step, step, 8)
        run.add(
            "requests", request_id=step, prompt_tokens=8, max_tokens=1, output_tokens=1,
            arrival_ns=100 * step - min(step, 1) * 10, admitted_ns=100 * step,
            first_token_ns=100 * step + 100, finish_ns=100 * step + 100, finish_reason=2,
        )  # fmt: skip
        run.add("lifecycle", t_ns=100 * step, request_id=step, event=int(RequestEvent.ADMIT))
    run.rows["requests"][0].update(
        output_tokens=num_steps, max_tokens=num_steps, finish_ns=100 * num_steps
    )
    run.add_span(0, token=100, first=0, scheduled=num_steps - 1)
    return run


def test_another_chunk_is_a_divergence():
    """The step, both chunks and the request are named."""
    a, b = _batches(), _batches()
    b.rows["items"][2]["num_tokens"] = 4
    b.rows["steps"][2]["prefill_tokens"] = 4
    found = first_divergence(a, b)
    assert (found.where, found.replica, found.step, found.request_ids) == ("batch", 0, 2, (2,))
    assert found.sentences == ("A prefills r2 (8 tokens after 0), B r2 (4 tokens after 0)",)
    assert found.equal_steps == {0: 2}


def test_a_later_admission_says_when_it_comes():
    """A request that only A admits in the step is looked up in B."""
    a, b = _batches(), _batches()
    b.rows["items"][2].update(step=3)
    b.rows["steps"][2].update(prefill_tokens=0, prefill_requests=0, block_reason=2, waiting=1)
    b.rows["lifecycle"][2].update(t_ns=300)
    found = first_divergence(a, b)
    then = "there it has its next prefill in step 3 (block reason there: RUNNING_LIMIT)"
    assert found.sentences == (f"A admits r2 (8 tokens after 0), B does not: {then}",)
    assert found.a.admitted == {2}
    assert found.b.admitted == frozenset()


def test_a_request_that_had_not_come_yet_is_no_decision_of_the_scheduler():
    """The text says that the request comes later in the other run."""
    a, b = _batches(), _batches()
    b.rows["items"][2].update(step=3)
    b.rows["steps"][2].update(prefill_tokens=0, prefill_requests=0)
    b.rows["requests"][2].update(arrival_ns=200 + 3 * MS)
    (sentence,) = first_divergence(a, b).sentences
    assert sentence.endswith("B does not: it comes 3.000 ms later there")


def test_other_items_under_equal_counts_are_found():
    """Two steps with the same numbers of tokens and requests can still differ."""
    a, b = _batches(), _batches()
    b.rows["items"][1]["request_id"], b.rows["items"][2]["request_id"] = 2, 1
    found = first_divergence(a, b)
    assert (found.step, found.request_ids) == (1, (1, 2))


def test_other_decoding_requests_under_equal_counts_are_found():
    """The members of the decode batch are compared, not only their number."""
    a, b = _batches(), _batches()
    b.rows["decode_spans"][0]["scheduled"] = 1
    b.add_span(1, token=200, first=1, scheduled=2)
    found = first_divergence(a, b)
    assert (found.step, found.request_ids) == (2, (0, 1))
    assert "A decodes r0, B does not" in found.sentences
    assert "B decodes r1, A does not" in found.sentences


def test_a_retraction_is_a_divergence():
    """A request sent back in one run only is named."""
    a, b = _batches(), _batches()
    b.rows["steps"][2]["retracted"] = 1
    b.add("lifecycle", t_ns=200, request_id=0, event=int(RequestEvent.RETRACT))
    found = first_divergence(a, b)
    assert (found.step, found.request_ids) == (2, (0,))
    assert found.sentences == ("B sends back r0, A does not",)


def test_another_replica_is_a_divergence_of_the_router():
    """A request routed elsewhere comes before what follows from it."""
    a, b = _batches(), _batches()
    for run in (a, b):
        run.header = header(num_replicas=2)
    b.rows["requests"][1]["replica"] = 1
    b.rows["items"][1]["replica"] = 1
    b.rows["steps"][1]["replica"] = 1
    found = first_divergence(a, b)
    assert (found.where, found.request_ids, found.t_a_ns) == ("routing", (1,), 90)
    assert found.sentences == ("r1 goes to replica 0 in A, to replica 1 in B",)


def test_the_state_before_a_divergence_is_told():
    """A queue or pages that differ while batches are still equal are a hint of their own."""
    a, b = _batches(), _batches()
    b.rows["steps"][1]["evicted_pages"] = 7
    b.rows["items"][3]["num_tokens"] = 4
    found = first_divergence(a, b)
    assert found.step == 3
    assert (found.state.step, found.state.what) == (1, "evicted_pages")
    assert (found.state.a, found.state.b) == (0, 7)


def test_a_larger_pool_is_no_difference_of_state():
    """Pages are compared by how many are held, so more free ones alone do not count."""
    a, b = _batches(), _batches()
    facts = msgspec.structs.replace(b.header.replicas[0], num_pages=140)
    b.header = msgspec.structs.replace(b.header, replicas=(facts,))
    for row in b.rows["steps"]:
        row["free_pages"] = 40
    assert first_divergence(a, b).state is None


def test_times_are_no_decisions():
    """An engine whose steps take three times as long decides the same."""
    a, b = _batches(), _batches()
    for row in b.rows["steps"]:
        row.update({name: 3 * row[name] for name in ("plan_ns", "start_ns", "end_ns", "gpu_ns")})
    for row in b.rows["lifecycle"]:
        row["t_ns"] *= 3
    assert first_divergence(a, b).where == "equal"


def test_a_shorter_run_is_equal_as_far_as_it_goes():
    """An interrupted run is compared up to its end, and the text says where that is."""
    a, b = _batches(6), _batches(6)
    for name in ("steps", "items", "requests", "lifecycle"):
        del b.rows[name][4:]
    b.rows["decode_spans"][0]["scheduled"] = 3
    b.rows["requests"][0].update(finish_ns=-1, finish_reason=0)
    b.header = header(status="interrupted")
    comparison = compare_runs(a, b)
    assert comparison.divergence.where == "length"
    assert comparison.divergence.sentences == (
        "B (interrupted) ends after 4 steps of replica 0, all equal",
    )
    assert "equal as far as the shorter run goes" in render(comparison)


def test_without_items_counts_are_compared():
    """At detail `steps`, batches are compared by size, and the text says so."""
    a, b = _batches(), _batches()
    b.rows["items"][1]["request_id"], b.rows["items"][2]["request_id"] = 2, 1
    a.header = header(detail="steps")
    found = first_divergence(a, b)
    assert found.where == "equal"
    assert found.by_counts_only
    b.rows["steps"][3]["prefill_tokens"] = 4
    assert first_divergence(a, b).sentences == ("prefill_tokens: A 8, B 4",)


def test_without_steps_decisions_are_unknown():
    """A record of detail `none` still compares metrics."""
    a, b = _batches(), _batches()
    b.header = header(detail="none")
    comparison = compare_runs(a, b)
    assert comparison.divergence.where == "unknown"
    verdicts = {metric.name: metric.verdict for metric in comparison.metrics}
    assert verdicts["mean_ttft_ms"] == "equal"
    assert "both runs need --detail steps" in render(comparison)


@pytest.mark.parametrize("seed", range(30))
def test_a_random_run_diverges_from_itself_exactly_where_it_is_changed(seed):
    """Changing one step's batch moves the first difference to that very step."""
    a, b = random_run(seed), random_run(seed)
    assert first_divergence(a, b).where == "equal"
    row = b.rows["items"][seed % len(b.rows["items"])]
    row["num_tokens"] += 1
    found = first_divergence(a, b)
    assert (found.where, found.replica, found.step) == ("batch", row["replica"], row["step"])
