"""Filtering, ordering, lives and breakdowns of requests."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import recorded

from engine.core.events import TABLES, Columns
from workbench.analysis.explain import RequestExplainer, explain_request, explain_run
from workbench.record.run_record import RunReader
from workbench.tui.requests.breakdown import breakdown, tenths_of_percents, token_gaps_ms
from workbench.tui.requests.figures import FIGURES, STATES, state_codes
from workbench.tui.requests.filter_language import FilterError, parse_filter
from workbench.tui.requests.gantt import LogTime, Phase, Phases
from workbench.tui.requests.order import Order, listed
from workbench.tui.store import RunStore
from workbench.tui.store.request_book import RequestBook
from workbench.tui.why.lines import explanation_lines

PRESSURE = ("workload.num_requests=120", "load.max_concurrency=60")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run with retractions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("requests"))
        return RunStore.open(Path(recorded(*PRESSURE, name="kv_pressure").path).absolute())


def book_of(**columns: list[int]) -> RequestBook:
    """A book of ended requests; columns that are not given are 0."""
    n = len(next(iter(columns.values())))
    rows: Columns = {name: np.zeros(n, dtype) for name, dtype in TABLES["requests"].items()}
    rows["request_id"] = np.arange(n)
    for name, values in columns.items():
        rows[name] = np.array(values, TABLES["requests"][name])
    book = RequestBook()
    book.add_finished(rows)
    return book


def ids(book: RequestBook, text: str) -> list[int]:
    return np.flatnonzero(parse_filter(text)(book)).tolist()


MS = 1_000_000
BOOK = dict(
    first_token_ns=[100 * MS, 300 * MS, 250 * MS, -1],
    finish_ns=[200 * MS, 4000 * MS, 260 * MS, 50 * MS],
    cached_tokens=[0, 0, 64, 0],
    prompt_tokens=[10, 20, 128, 40],
    output_tokens=[11, 2, 1, 0],
    finish_reason=[1, 2, 1, 3],
    retractions=[0, 2, 0, 0],
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", [0, 1, 2, 3]),
        ("ttft>200 & hit=0", [1]),
        ("ttft>200", [1, 2]),
        ("ttft<=0.25s", [0, 2]),
        ("!(ttft>200)", [0, 3]),
        ("ttft>200 & !(hit=0) | r0", [0, 2]),
        ("not ttft > 200 and out > 5", [0]),
        ("e2e>1s", [1]),
        ("e2e>=3999ms && prompt<0.1k", [1]),
        ("retracted", [1]),
        ("finished", [0, 1, 2]),
        ("aborted || length", [1, 3]),
        ("failed", [3]),
        ("hitpct=50", [2]),
        ("tpot=10", [0]),
        ("((id!=1))", [0, 2, 3]),
        ("ttft>0 | ttft<=0", [0, 1, 2]),
    ],
)
def test_a_filter_keeps_what_it_says(text: str, kept: list[int]) -> None:
    """Comparisons, units, states, and, or, not and parentheses; no figure, no match."""
    assert ids(book_of(**BOOK), text) == kept


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("ttft>", 5, "a number is missing"),
        ("tttf>3", 0, "did you mean ttft?"),
        ("ttft>3kg", 5, "us, ms, s, min"),
        ("(ttft>3", 7, "a ) is missing"),
        ("ttft>3 hit=0", 7, "join tests by & or |"),
        ("ttft > 3 & %", 11, "means nothing"),
        ("&", 0, "a figure is missing"),
        ("hit 3", 4, "needs < > = and a number"),
    ],
)
def test_a_wrong_filter_says_where_and_what_would_do(text: str, position: int, said: str) -> None:
    """Each mistake is named at its place."""
    with pytest.raises(
        FilterError, match=said.replace("|", r"\|").replace("?", r"\?").replace(")", r"\)")
    ) as caught:
        parse_filter(text)
    assert caught.value.position == position


@given(st.text(alphabet="tfhio<>=!&|() 0123456789.rms", max_size=30))
def test_any_text_is_a_filter_or_an_error(text: str) -> None:
    """Nothing else comes out of the parser, and the place of an error lies in the text."""
    try:
        kept = parse_filter(text)(book_of(**BOOK))
    except FilterError as error:
        wrong = error.position
    else:
        wrong = 0
        assert kept.dtype == np.bool_
    assert 0 <= wrong <= len(text)


def test_an_order_puts_the_unknown_last_both_ways() -> None:
    """Requests without a TTFT come after all others, whichever way it is sorted."""
    book, everyone = book_of(**BOOK), parse_filter("")
    assert listed(book, everyone, Order("ttft")).tolist() == [0, 2, 1, 3]
    assert listed(book, everyone, Order("ttft", descending=True)).tolist() == [1, 2, 0, 3]
    assert Order.parse("-ttft") == Order("ttft", descending=True)
    assert Order.parse("nonsense") == Order("arrival")


def test_a_million_requests_are_listed_in_a_second() -> None:
    """Filtering and sorting a million rows takes less than a second of the processor."""
    n, rng = 1_000_000, np.random.default_rng(0)
    first = rng.integers(MS, 1000 * MS, n)
    rows: Columns = {name: np.zeros(n, dtype) for name, dtype in TABLES["requests"].items()}
    rows["request_id"], rows["first_token_ns"], rows["finish_ns"] = np.arange(n), first, 2 * first
    book = RequestBook()
    book.add_finished(rows)
    began = time.thread_time()
    found = listed(book, parse_filter("ttft>200 & hit=0"), Order("ttft", descending=True))
    assert time.thread_time() - began < 1.0
    assert 790_000 < len(found) < 810_000
    assert first[found[0]] == first.max()


def test_parts_of_a_ttft_sum_to_it_and_to_100_percent(store: RunStore) -> None:
    """For every request: the parts sum to the TTFT exactly, their percents to 100.0."""
    explainer = RequestExplainer(store)
    for request_id in range(0, 120, 7):
        explanation = explainer.explain(request_id, 1000)
        found = breakdown(explanation)
        assert sum(part.ns for part in found.parts) == explanation.ttft_ns == found.whole_ns
        assert sum(part.tenths for part in found.parts) == 1000
        assert all(part.step >= 0 for part in found.parts if part.ns > MS)


def test_others_are_blamed_by_name(store: RunStore) -> None:
    """Where prefill of others took time, the requests to blame are named with step and tokens."""
    explainer = RequestExplainer(store)
    parts = [
        part
        for request_id in range(0, 120, 6)
        for part in breakdown(explainer.explain(request_id, 1000)).parts
        if part.cause == "prefill_others" and part.ns > MS
    ]
    assert parts
    assert all(part.blame.startswith("r") and "tok, step" in part.blame for part in parts)


def test_one_explainer_explains_as_the_function_does(store: RunStore) -> None:
    """Explaining request after request gives what explaining each alone gives."""
    explainer = RequestExplainer(store)
    for request_id in (3, 50):
        assert explainer.explain(request_id) == explain_request(store, request_id)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=12))
def test_rounded_percents_sum_to_100(amounts: list[int]) -> None:
    """Largest remainders: the sum is 100.0 %, and no part is off by a tenth or more."""
    tenths, whole = tenths_of_percents(amounts), sum(amounts)
    if whole == 0:
        assert tenths == [0] * len(amounts)
        return
    assert sum(tenths) == 1000
    assert all(abs(t - 1000 * a / whole) < 1 for t, a in zip(tenths, amounts, strict=True))


def test_gaps_between_tokens_sum_to_the_time_of_decoding(store: RunStore) -> None:
    """One gap fewer than tokens; together they span from the first token to the last."""
    checked = 0
    for request_id in range(120):
        row = store.requests.row(request_id)
        gaps = token_gaps_ms(store, request_id)
        if not row["retractions"]:
            assert len(gaps) == row["output_tokens"] - 1
            assert gaps.sum() * 1e6 == pytest.approx(row["finish_ns"] - row["first_token_ns"])
            checked += 1
    assert checked > 10


def test_lives_are_without_gaps(store: RunStore) -> None:
    """The phases of a request follow each other from its arrival to its end."""
    phases, retracted = Phases(store), 0
    for request_id in range(120):
        row, spans = store.requests.row(request_id), phases.spans(request_id, store.end_ns)
        assert spans[0][0] == 0
        assert spans[-1][1] == row["finish_ns"] - row["arrival_ns"]
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        again = sum(phase == Phase.QUEUED_AGAIN for _, _, phase in spans)
        assert again == row["retractions"]
        retracted += again
    assert retracted > 5


def test_cells_of_log_time_show_what_takes_most_of_them(store: RunStore) -> None:
    """Each cell shows a phase that overlaps it; after the end there is nothing."""
    axis, phases = LogTime.up_to(3e10, 50), Phases(store)
    edges = axis.edges_ns()
    for request_id in range(0, 120, 11):
        spans = phases.spans(request_id, store.end_ns)
        for cell, code in enumerate(phases.cells(request_id, axis, store.end_ns).tolist()):
            inside = {
                phase
                for start, end, phase in spans
                if start < edges[cell + 1] and end > edges[cell]
            }
            assert code in inside or (code == Phase.NOTHING and not inside)


def test_axis_labels_stand_at_powers_of_ten() -> None:
    """10 ms is where a time of 10 ms is drawn."""
    axis = LogTime.up_to(2e9, 60)
    ticks = {label: cell for cell, label in axis.ticks()}
    assert ticks["1ms"] == 0
    assert abs(ticks["10ms"] - axis.cell_of(1e7)) <= 1
    assert list(ticks) == ["1ms", "10ms", "100ms", "1s"]


def test_states_follow_the_life_of_a_request(store: RunStore) -> None:
    """In a run that ended well all requests end with a state that says so."""
    names = {STATES[code] for code in state_codes(store.requests).tolist()}
    assert names <= {"stop", "length"}


@pytest.mark.parametrize("name", list(FIGURES))
def test_figures_agree_with_the_record(store: RunStore, name: str) -> None:
    """Every figure has a finite value for requests that ended well."""
    values: Any = FIGURES[name].of(store.requests)
    assert len(values) == len(store.requests)
    assert np.isfinite(values).sum() >= len(values) - 1


@pytest.mark.parametrize("text", ["(" * 1200, "!" * 5000, "&".join(["hit=0"] * 900)])
def test_a_filter_has_an_end(text: str) -> None:
    """What would recurse without one is refused with its place."""
    with pytest.raises(FilterError, match="at most"):
        parse_filter(text)


def test_what_a_cause_weighs_stands_before_what_may_be_wrapped(store: RunStore) -> None:
    """On the why screen the ms and % of a cause never wrap to a line of their own."""
    assert store.path is not None
    lines = [line.text for line in explanation_lines(explain_run(RunReader(store.path)))]
    begin = next(i for i, text in enumerate(lines) if text.startswith("Mean TTFT"))
    causes = lines[begin + 1 : lines.index("", begin)]
    assert len(causes) > 2
    for text in causes:
        assert re.match(r" +[\d,.]+ ms +\d+%  \S", text), text
