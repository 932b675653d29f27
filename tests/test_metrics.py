"""Latencies, throughputs and replica metrics against hand counts and brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_builders import MS, Ask, Played, S, Server, asks, make_header, play, poisson, servers

from engine.core.enums import FinishReason
from engine.core.events import Detail, empty_columns
from workbench.metrics.latency import IterationTimes, MetricsError, itl
from workbench.metrics.percentiles import WeightedSamples
from workbench.metrics.run_metrics import SummaryTables, summarize
from workbench.metrics.throughput import peak_concurrent_requests, peak_output_throughput
from workbench.record.header import MeasureFacts, SloFacts

PERCENTS = (0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0)


def all_gaps_ms(played: Played) -> list[float]:
    """Every gap between two tokens, one by one."""
    return [(b - a) / MS for times in played.token_times.values() for a, b in pairwise(times)]


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 9)), min_size=1, max_size=40),
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
)
def test_weighted_percentiles_are_those_of_repeated_samples(
    pairs: list[tuple[int, int]], percents: list[float]
) -> None:
    """Weights and repetition are the same thing, to the last bit of numpy's interpolation."""
    values = np.array([value / 7 for value, _ in pairs])
    weights = np.array([weight for _, weight in pairs])
    samples = WeightedSamples.of(values, weights)
    repeated = np.repeat(values, weights)
    if not len(repeated):
        assert samples.percentiles(percents) == [None] * len(percents)
        assert samples.mean() is None
        assert samples.std() is None
        return
    assert samples.percentiles(percents) == list(np.percentile(repeated, percents))
    assert samples.count == len(repeated)
    assert samples.mean() == pytest.approx(repeated.mean(), abs=1e-12)
    assert samples.std() == pytest.approx(repeated.std(), abs=1e-9)


@given(asks(), servers())
def test_itl_is_every_gap_between_tokens(requests: list[Ask], server: Server) -> None:
    """Pooled gaps from spans and steps equal those listed token by token, retractions included."""
    played = play(requests, server)
    tables = played.tables
    samples = itl(tables["requests"], tables["decode_spans"], IterationTimes.of(tables["steps"]))
    brute = sorted(all_gaps_ms(played))
    assert list(np.repeat(samples.values, samples.weights)) == brute


@given(asks(), servers())
def test_peak_output_is_the_fullest_second(requests: list[Ask], server: Server) -> None:
    """Tokens counted by iteration and tokens counted one by one fill seconds alike."""
    slow = Server(**{**vars(server), "step_ns": 150 * MS})
    played = play(requests, slow)
    tables = played.tables
    start = min(ask.arrival_ns for ask in requests)
    seconds = [(t - start) // S for times in played.token_times.values() for t in times]
    peak = peak_output_throughput(
        tables["requests"], tables["decode_spans"], IterationTimes.of(tables["steps"])
    )
    assert peak == max(np.bincount(seconds))


@given(asks(), servers())
def test_summary_follows_the_formulas_request_by_request(
    requests: list[Ask], server: Server
) -> None:
    """TTFT, TPOT, E2EL, throughputs and goodput equal a plain loop over token times."""
    played = play(requests, server)
    slo = SloFacts(ttft_ms=5.0, tpot_ms=1.2)
    summary = summarize(played.tables, played.header(MeasureFacts(percentiles=PERCENTS), slo))
    times = played.token_times
    ttft = [(times[i][0] - ask.arrival_ns) / MS for i, ask in enumerate(requests)]
    e2el = [(times[i][-1] - ask.arrival_ns) / MS for i, ask in enumerate(requests)]
    per_token = [
        (times[i][-1] - times[i][0]) / MS / max(len(times[i]) - 1, 1) for i in range(len(requests))
    ]
    tpot = [value for i, value in enumerate(per_token) if len(times[i]) > 1]
    for name, samples in (("ttft", ttft), ("tpot", tpot), ("e2el", e2el)):
        if not samples:
            assert summary[f"mean_{name}_ms"] is None
            continue
        assert summary[f"mean_{name}_ms"] == pytest.approx(np.mean(samples))
        assert summary[f"std_{name}_ms"] == pytest.approx(np.std(samples), abs=1e-6)
        for percent in PERCENTS:
            expected = np.percentile(samples, percent)
            assert summary[f"p{percent:g}_{name}_ms"] == pytest.approx(expected)
    duration = (max(t[-1] for t in times.values()) - min(a.arrival_ns for a in requests)) / S
    good = sum(a <= 5.0 and b <= 1.2 for a, b in zip(ttft, per_token, strict=True))
    assert summary["duration_s"] == duration
    assert summary["request_throughput"] == pytest.approx(len(requests) / duration)
    assert summary["request_goodput"] == pytest.approx(good / duration)
    assert summary["slo_attainment_percent"] == pytest.approx(100 * good / len(requests))
    outputs = sum(ask.output for ask in requests)
    assert summary["output_throughput"] == pytest.approx(outputs / duration)
    inputs = sum(ask.prompt for ask in requests)
    assert summary["total_token_throughput"] == pytest.approx((inputs + outputs) / duration)


@given(asks(), servers())
def test_shares_of_time_and_waits_add_up(requests: list[Ask], server: Server) -> None:
    """GPU, host and idle shares sum to 100 %; without retraction all queue time has a reason."""
    played = play(requests, server)
    summary = summarize(played.tables, played.header())
    shares = [summary[f"{name}_percent"] for name in ("gpu_busy", "host_bound", "idle")]
    assert sum(shares) == pytest.approx(100)
    assert min(shares) >= 0
    assert 0 <= summary["kv_used_mean_percent"] <= summary["kv_used_max_percent"] + 1e-9
    assert summary["kv_used_max_percent"] <= 100
    rows = played.tables["requests"]
    queued_s = float((rows["admitted_ns"] - rows["arrival_ns"]).sum()) / S
    if summary["retractions"] == 0:
        assert summary["wait_total_request_s"] == pytest.approx(queued_s, abs=1e-9)
    else:
        assert summary["wait_total_request_s"] > queued_s


def test_two_requests_by_hand() -> None:
    """One slot, two requests: every figure of the queue is computed on paper.

    A step takes 1 ms + 10 us per prefill token + 1 us per decode, plus 0.1 ms of host time before.
    """
    played = play([Ask(0, prompt=10, output=3), Ask(500_000, prompt=10, output=1)], Server(slots=1))
    summary = summarize(played.tables, played.header())
    first = 100_000 + 1_100_000  # prefill of the first: host, then GPU
    decode = 100_000 + 1_001_000
    second_start = first + 2 * decode
    second = second_start + first
    assert played.token_times == {0: [first, first + decode, second_start], 1: [second]}
    assert summary["mean_itl_ms"] == pytest.approx(decode / MS)
    assert summary["mean_ttft_ms"] == pytest.approx((first + second - 500_000) / 2 / MS)
    waited_ns = second_start - 500_000
    assert summary["wait_total_request_s"] == pytest.approx(waited_ns / S)
    assert summary["wait_next_step_request_s"] == pytest.approx((first - 500_000) / S)
    assert summary["wait_running_limit_request_s"] == pytest.approx(2 * decode / S)
    assert summary["wait_running_limit_percent"] == pytest.approx(100 * 2 * decode / waited_ns)
    assert summary["idle_percent"] == pytest.approx(0)
    assert summary["host_bound_percent"] == pytest.approx(100 * 4 * 100_000 / second)
    assert summary["steps"] == 4
    assert summary["mean_decode_batch"] == 1
    assert summary["mean_tokens_per_step"] == pytest.approx(22 / 4)
    assert summary["mean_running"] == pytest.approx(1)
    assert summary["max_running"] == 1
    assert summary["max_waiting"] == 1


def test_an_idle_pause_is_idle_and_holds_no_pages() -> None:
    """Between two far-off requests nothing runs, and KV pages in use average over the pause too."""
    played = play([Ask(0, prompt=8, output=1), Ask(10 * S, prompt=8, output=1)])
    summary = summarize(played.tables, played.header())
    busy_s = 2 * (100_000 + 1_080_000) / S
    assert summary["idle_percent"] == pytest.approx(100 * (1 - busy_s / summary["duration_s"]))
    pages = 2  # 8 tokens on pages of 4
    share = 100 * pages / 1000 * busy_s / summary["duration_s"]
    assert summary["kv_used_mean_percent"] == pytest.approx(share)
    assert summary["kv_used_max_percent"] == pytest.approx(100 * pages / 1000)


def test_cached_pages_outlive_an_idle_pause() -> None:
    """The prefix cache keeps its pages while nothing runs."""
    played = play([Ask(0, prompt=8, output=1), Ask(10 * S, prompt=8, output=1)])
    played.tables["steps"]["cached_pages"][:] = 100
    summary = summarize(played.tables, played.header())
    assert summary["kv_cached_mean_percent"] == pytest.approx(10)


def test_prefix_hit_rate_counts_admitted_prompt_tokens() -> None:
    """Hit rate = cached / prompt tokens of admitted requests."""
    played = play([Ask(0, prompt=20, cached=16), Ask(0, prompt=12)])
    summary = summarize(played.tables, played.header())
    assert summary["prefix_hit_rate_percent"] == pytest.approx(100 * 16 / 32)


def test_retractions_and_recomputed_tokens_are_summed() -> None:
    """A pool too small for three makes the builder retract, and the summary says how much."""
    played = play([Ask(0, prompt=8, output=20) for _ in range(3)], Server(num_pages=10))
    summary = summarize(played.tables, played.header())
    rows = played.tables["requests"]
    assert summary["retractions"] == rows["retractions"].sum() > 0
    assert summary["retracted_requests"] == (rows["retractions"] > 0).sum()
    assert summary["recomputed_tokens"] == rows["recomputed_tokens"].sum() > 0
    assert summary["wait_retraction_request_s"] > 0


def test_warm_up_and_window_leave_requests_out() -> None:
    """Warm-up drops the first by arrival whatever their ids; the window goes by arrival time."""
    requests = [Ask(i * S, output=2) for i in (5, 0, 1, 2, 3, 4)]
    measure = MeasureFacts(warmup_requests=2, window_start_s=2.5, window_end_s=5.0)
    played = play(requests)
    summary = summarize(played.tables, played.header(measure))
    assert summary["completed"] == 2  # those that came at 3 s and 4 s
    assert summary["not_measured"] == 4
    last = played.token_times[5][-1]
    assert summary["duration_s"] == pytest.approx((last - 3 * S) / S)
    assert summary["steps"] == 4
    everything = summarize(played.tables, played.header())
    assert everything["completed"] == 6
    assert everything["steps"] == 12


def test_aborted_rejected_and_unfinished_requests_are_failed_not_slow() -> None:
    """Only STOP and LENGTH enter latencies; the others are counted by how they ended."""
    played = play([Ask(0), Ask(0), Ask(0), Ask(0, output=9)], Server(slots=4))
    rows = played.tables["requests"]
    reasons = {0: FinishReason.ABORT, 1: FinishReason.REJECTED, 2: FinishReason.NONE}
    for request, reason in reasons.items():
        row = rows["request_id"] == request
        rows["finish_reason"][row] = reason
        rows["finish_ns"][row] = -1 if reason == FinishReason.NONE else rows["finish_ns"][row]
    summary = summarize(played.tables, played.header(slo=SloFacts(e2el_ms=1e9)), "cut off")
    assert (summary["completed"], summary["failed"]) == (1, 3)
    assert (summary["aborted"], summary["rejected"], summary["unfinished"]) == (1, 1, 1)
    assert summary["slo_attainment_percent"] == 25
    assert summary["mean_ttft_ms"] == summary["p99.9_ttft_ms"]
    assert summary["stopped_early"] == "cut off"


def test_requests_that_were_never_sent_are_told_apart() -> None:
    """A run that stops early leaves requests unsent; they are neither measured nor failed."""
    played = play([Ask(0), Ask(0)])
    rows = played.tables["requests"]
    for column in ("arrival_ns", "admitted_ns", "first_token_ns", "finish_ns", "replica"):
        rows[column][1] = -1
    rows["finish_reason"][1] = FinishReason.NONE
    summary = summarize(played.tables, played.header())
    assert (summary["completed"], summary["failed"], summary["not_sent"]) == (1, 0, 1)


def test_peak_concurrency_counts_requests_that_touch_a_second() -> None:
    """Two short requests within one second both count, as they do for vLLM."""
    played = play([Ask(0), Ask(S // 2), Ask(3 * S)])
    assert peak_concurrent_requests(played.tables["requests"]) == 2


def test_no_requests_give_no_figures() -> None:
    """An empty run has no latency, rate or share: None, never 0 or NaN."""
    tables = {name: empty_columns(name) for name in ("requests", "decode_spans", "steps")}
    summary = summarize(tables, make_header(Server()))
    for key in ("mean_ttft_ms", "p99_itl_ms", "request_throughput", "gpu_busy_percent"):
        assert summary[key] is None
    assert summary["completed"] == 0


def test_without_steps_only_what_needs_them_is_missing() -> None:
    """A record of detail none keeps TTFT and E2EL; ITL and utilisation are None."""
    played = play([Ask(0, output=5)])
    played.tables["steps"] = empty_columns("steps")
    summary = summarize(played.tables, played.header())
    assert summary["mean_ttft_ms"] is not None
    for key in ("mean_itl_ms", "gpu_busy_percent", "mean_running", "steps", "wait_total_request_s"):
        assert summary[key] is None


def test_contradicting_tables_are_errors() -> None:
    """Spans that have tokens of no iteration, iterations that appear twice, unknown replicas."""
    played = play([Ask(0, output=5)])
    header = played.header()
    steps, spans = played.tables["steps"], played.tables["decode_spans"]
    spans["first_iteration"] += 100
    with pytest.raises(MetricsError, match="decode_spans name decode iterations"):
        summarize(played.tables, header)
    spans["first_iteration"] -= 100
    for change, refusal in ((1, "decode_spans name decode iterations"), (-1, "appears twice")):
        steps["decode_iteration"][-1] += change
        with pytest.raises(MetricsError, match=refusal):
            summarize(played.tables, header)
        steps["decode_iteration"][-1] -= change
    decoding = np.flatnonzero(steps["decode_iteration"] >= 0)
    lost = {name: np.delete(column, decoding[1]) for name, column in steps.items()}
    with pytest.raises(MetricsError, match="decode_spans name decode iterations"):
        summarize({**played.tables, "steps": lost}, header)
    steps["replica"][:] = 3
    with pytest.raises(MetricsError, match="replica 3"):
        summarize(played.tables, header)


def test_a_failed_iteration_leaves_a_gap_that_no_token_came_from() -> None:
    """An iteration without a step changes no latency as long as no span has a token of it."""
    played = play([Ask(0, output=5), Ask(10**9, output=5)])
    before = summarize(played.tables, played.header())
    steps, spans = played.tables["steps"], played.tables["decode_spans"]
    assert spans["first_iteration"].tolist() == [0, 4]
    steps["decode_iteration"][steps["decode_iteration"] >= 4] += 1
    spans["first_iteration"][1] += 1
    assert summarize(played.tables, played.header()) == before


def test_a_run_recorded_from_the_middle_still_has_its_gaps() -> None:
    """Iterations need not start at 0, as long as the spans refer to those that are there."""
    played = play(poisson(20, 200, output=6))
    before = summarize(played.tables, played.header())
    decoding = played.tables["steps"]["decode_iteration"] >= 0
    played.tables["steps"]["decode_iteration"][decoding] += 1000
    played.tables["decode_spans"]["first_iteration"] += 1000
    assert summarize(played.tables, played.header()) == before


def test_summary_tables_keep_what_a_sink_lets_go() -> None:
    """Segments handed to a sink and collected give the same summary as one kept in memory."""
    played = play(poisson(40, 300, output=6), Server(num_pages=20))
    kept = SummaryTables()
    half = {name: {k: c[: len(c) // 2] for k, c in t.items()} for name, t in played.tables.items()}
    rest = {name: {k: c[len(c) // 2 :] for k, c in t.items()} for name, t in played.tables.items()}
    kept.add(half)
    kept.add(rest)
    header = played.header()
    assert summarize(kept.tables(), header) == summarize(played.tables, header)


def test_detail_none_gives_the_same_summary_as_detail_pages() -> None:
    """What is recorded beyond the summary's own tables does not change the summary."""
    requests = poisson(30, 300, output=5)
    fine, coarse = play(requests, detail=Detail.PAGES), play(requests, detail=Detail.NONE)
    assert summarize(fine.tables, fine.header()) == summarize(coarse.tables, coarse.header())
