"""What a person reads after a run."""

from __future__ import annotations

import json

import pytest
from table_builders import Ask, Server, play, poisson

from engine.core.enums import AdmissionBlock
from workbench.metrics.run_metrics import WAIT_REASONS, Summary, summarize
from workbench.metrics.summary_text import _WAIT_LABELS, headlines, render
from workbench.record.header import LoadFacts, MeasureFacts, SloFacts


@pytest.mark.parametrize("style", ["table", "md"])
def test_a_run_stopped_before_anything_ended_is_one_line(summary: Summary, style: str) -> None:
    """Without a figure there is no table, only why; with one there is."""
    early = summary | {"stopped_early": "interrupted at 0.1 s"}
    assert len(render(early, style).splitlines()) > 20
    line = "STOPPED EARLY: interrupted at 0.1 s; nothing had been measured yet\n"
    assert render(early | {"completed": 0}, style) == line


@pytest.fixture
def summary() -> Summary:
    """One slot, two requests; the figures are worked out in test_metrics."""
    played = play([Ask(0, prompt=10, output=3), Ask(500_000, prompt=10, output=1)], Server(slots=1))
    load = LoadFacts(kind="poisson", request_rate=2.5, max_concurrency=4)
    measure = MeasureFacts(percentiles=(50.0, 99.9))
    return summarize(played.tables, played.header(measure, SloFacts(ttft_ms=3), load))


VLLM_BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     2
Failed requests:                         0
Maximum request concurrency:             4
Request rate configured (RPS):           2.50
Benchmark duration (s):                  0.00
Total input tokens:                      20
Total generated tokens:                  4
Request throughput (req/s):              434.59
Request goodput (req/s):                 217.30
Output token throughput (tok/s):         869.19
Peak output token throughput (tok/s):    4.00
Peak concurrent requests:                2.00
Total token throughput (tok/s):          5215.12
---------------Time to First Token----------------
Mean TTFT (ms):                          2.65
Median TTFT (ms):                        2.65
P50 TTFT (ms):                           2.65
P99.9 TTFT (ms):                         4.10
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          1.10
Median TPOT (ms):                        1.10
P50 TPOT (ms):                           1.10
P99.9 TPOT (ms):                         1.10
---------------Inter-token Latency----------------
Mean ITL (ms):                           1.10
Median ITL (ms):                         1.10
P50 ITL (ms):                            1.10
P99.9 ITL (ms):                          1.10
----------------End-to-end Latency----------------
Mean E2EL (ms):                          3.75
Median E2EL (ms):                        3.75
P50 E2EL (ms):                           3.75
P99.9 E2EL (ms):                         4.10
"""


def test_the_first_block_is_that_of_vllm_bench_serve(summary: Summary) -> None:
    """Labels, order, widths and number formats are vLLM's."""
    shown = [line.rstrip() for line in render(summary).splitlines()]
    block = VLLM_BLOCK.splitlines()
    assert shown[1 : 1 + len(block)] == block


def test_our_own_sections_follow_in_the_same_layout(summary: Summary) -> None:
    """Every further figure stands at column 42, under a 50-column rule, largest wait first."""
    lines = render(summary).splitlines()
    own = lines[lines.index("SLO".center(50, "-")) : lines.index("=" * 50)]
    for line in own:
        assert len(line) <= 50
        assert (line[0] == line[-1] == "-") or line[40] == " " != line[41]
    at = own.index("Why Requests Waited".center(50, "-"))
    assert [line.split(":")[0] for line in own[at + 1 :]] == [
        "Time in queue (request-s)",
        "Running limit (%)",
        "Came during a step (%)",
    ]
    assert lines[-2:] == ["tiny: tiny-model on 1 x tiny-gpu, seed 7", "Step times: by hand"]


def test_what_did_not_happen_takes_no_line(summary: Summary) -> None:
    """No goodput without an SLO, no rate without one, no failures without any."""
    played = play([Ask(0)])
    plain = render(summarize(played.tables, played.header(load=LoadFacts(kind="trace"))))
    for label in ("Request goodput", "RPS", "Maximum request concurrency", "SLO", "Other Requests"):
        assert label not in plain
    assert "Request goodput" in render(summary)


def test_overload_is_the_first_thing_said() -> None:
    """A figure of an overloaded run is never shown before the warning, in any form."""
    played = play(poisson(200, 2000, output=9), Server(slots=1))
    summary = summarize(played.tables, played.header())
    assert render(summary).startswith("OVERLOADED: offered load exceeds capacity")
    assert render(summary, "md").startswith("**OVERLOADED: offered load exceeds capacity")


def test_a_partial_run_says_so_before_all_else(summary: Summary) -> None:
    """Interrupted results cannot be taken for whole ones."""
    lines = headlines(summary | {"stopped_early": "interrupted by Ctrl-C", "overloaded": True})
    assert lines[0].startswith("STOPPED EARLY: interrupted by Ctrl-C")
    assert lines[1].startswith("OVERLOADED")


def test_a_stable_run_has_no_headline() -> None:
    """Nothing to warn of, nothing above the block."""
    played = play(poisson(300, 20))
    summary = summarize(played.tables, played.header())
    assert headlines(summary) == []
    assert render(summary).startswith("=" * 12)


def test_missing_figures_read_na() -> None:
    """A latency that no request had is n/a, not 0."""
    played = play([Ask(0, output=1)])
    text = render(summarize(played.tables, played.header()))
    assert f"{'Mean TPOT (ms):':<40} n/a" in text


def test_json_is_the_summary(summary: Summary) -> None:
    """The JSON form is the flat dict, with nothing lost and no NaN."""
    assert json.loads(render(summary, "json")) == summary
    assert all(not isinstance(value, dict | list) for value in summary.values())


def test_markdown_holds_every_latency_in_one_table(summary: Summary) -> None:
    """One row per latency, one column per statistic; the rest as name and value."""
    text = render(summary, "md")
    assert "| ms | mean | median | p50 | p99.9 |\n| --- | ---: | ---: | ---: | ---: |\n" in text
    assert "| TTFT | 2.65 | 2.65 | 2.65 | 4.10 |\n" in text
    assert "| Successful requests | 2 |\n" in text
    assert "Mean TTFT" not in text


def test_the_beyond_range_share_is_told(summary: Summary) -> None:
    """Steps outside what the cost model measured are confessed beside its name."""
    text = render(summary | {"extrapolated_steps_percent": 12.5})
    assert "Step times: by hand (12.5 % of steps outside its measured range)\n" in text


@pytest.mark.parametrize("style", ["table", "md"])
def test_what_restricts_step_times_stands_below_them(summary: Summary, style: str) -> None:
    """In the last line; a summary of an older version knows of nothing."""
    note = "calibration not complete: 24 of 125 steps measured"
    assert summary["cost_model_notes"] is None
    told = render(summary | {"cost_model_notes": note}, style)
    assert told.rstrip().splitlines()[-1] == note
    older = {key: value for key, value in summary.items() if key != "cost_model_notes"}
    assert render(older, style) == render(summary, style)


def test_every_reason_to_wait_has_a_label() -> None:
    """A new AdmissionBlock cannot be forgotten in the table."""
    assert set(_WAIT_LABELS) == set(WAIT_REASONS)
    assert len(WAIT_REASONS) == len(AdmissionBlock) + 1
    assert all(len(label) <= 40 for label in _WAIT_LABELS.values())
