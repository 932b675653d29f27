"""The store of the TUI: live is replay, latencies are those of the summary, rings and players."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import record, simulation_of

from engine.core.events import TABLES, Segment
from workbench.metrics import latency
from workbench.record.header import RunHeader
from workbench.record.run_record import RunReader
from workbench.record.stream import FrameWriter, MarkFrame, read_frames
from workbench.tui.store import SPEEDS, Player, RunStore
from workbench.tui.store.happenings import FILTERS, last_happenings
from workbench.tui.store.latency_window import itl_samples, latency_rows
from workbench.tui.store.request_trace import pages_of, steps_of
from workbench.tui.store.strip_window import window_at

CASES = [("synthetic", "one"), ("early ends", "three"), ("conversation", "serial")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], RunReader]:
    """Recorded runs with all details."""
    folder = tmp_path_factory.mktemp("runs")
    return {case: record(simulation_of(*case, "pages"), folder / "-".join(case)) for case in CASES}


def in_pieces(reader: RunReader, rows: int) -> list[Segment]:
    """The tables of a run as segments of a few rows each, cut at the same steps in all tables.

    A scheduler writes all rows of a call before anybody flushes, so rows of one step of the memory
    tables never come apart from each other.
    """
    tables = reader.tables()
    last = int(tables["steps"]["step"].max()) if len(tables["steps"]["step"]) else 0
    segments: list[Segment] = []
    bounds = [*range(0, last + 1, rows), last + 10**9]
    for low, high in zip([-1, *bounds[1:]], bounds[1:], strict=False):
        segment: Segment = {}
        for name, columns in tables.items():
            step = columns.get("step")
            if step is None:
                continue
            here = (step >= low) & (step < high)
            if here.any():
                segment[name] = {key: column[here] for key, column in columns.items()}
        segments.append(segment)
    ends = {name: tables[name] for name in ("requests", "lifecycle", "decode_spans")}
    for name, columns in ends.items():
        count = len(next(iter(columns.values())))
        for at, segment in enumerate(segments):
            part = slice(at * count // len(segments), (at + 1) * count // len(segments))
            segment[name] = {key: column[part] for key, column in columns.items()}
    return segments


@pytest.mark.parametrize("case", CASES)
def test_a_stream_gives_the_store_that_the_directory_gives(case, runs) -> None:
    """Frames of any size make the same tables, requests and memory as the record."""
    reader = runs[case]
    replay = RunStore.open(reader.path)
    file = io.BytesIO()
    writer = FrameWriter(file, reader.header)
    for segment in in_pieces(reader, 7):
        writer.write_segment(segment)
    writer.mark(MarkFrame(t_ns=5, severity="info", code="x", text="a mark"))
    writer.summary(reader.summary)
    file.seek(0)
    live = RunStore.from_frames(read_frames(file))
    assert live.status == "complete"
    assert live.summary == replay.summary
    assert [mark.text for mark in live.marks] == ["a mark"]
    for name in ("requests", "steps", "items", "decode_spans"):
        left, right = live.table(name), replay.table(name)
        for key in TABLES[name]:
            np.testing.assert_array_equal(left[key], right[key], f"{name}.{key}")
    for a, b in zip(live.replicas, replay.replicas, strict=True):
        for position in range(a.steps.first, a.steps.end, 11):
            np.testing.assert_array_equal(
                a.pages_after(position).owner, b.pages_after(position).owner
            )
            np.testing.assert_array_equal(
                a.tree_after(position).locks, b.tree_after(position).locks
            )


@pytest.mark.parametrize("case", CASES)
def test_requests_are_known_before_their_last_row_comes(case, runs) -> None:
    """What lifecycle events say of a request is what its final row says of the same facts."""
    reader = runs[case]
    early = RunStore(reader.header)
    early.append({"lifecycle": reader.table("lifecycle")})
    final = RunStore(reader.header)
    final.append(reader.tables())
    ids = np.flatnonzero(early.requests.seen)
    assert not early.requests.ended.any()
    for name in ("prompt_tokens", "max_tokens", "admitted_ns", "first_token_ns", "finish_ns",
                 "cached_tokens", "retractions", "finish_reason", "output_tokens"):  # fmt: skip
        np.testing.assert_array_equal(
            early.requests.column(name)[ids], final.requests.column(name)[ids], name
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 64, 10**6])
def test_windows_of_itl_are_together_the_itl_of_the_run(case, size: int, runs) -> None:
    """Gaps in consecutive windows are all gaps of the run by the definition of the summary."""
    store = RunStore.open(runs[case].path)
    tables = {name: store.table(name) for name in ("requests", "decode_spans", "steps")}
    whole = latency.itl(
        tables["requests"], tables["decode_spans"], latency.IterationTimes.of(tables["steps"])
    )
    values, weights = [], []
    for replica in store.replicas:
        for first in range(0, replica.steps.end, size):
            last = min(first + size, replica.steps.end) - 1
            samples = itl_samples(store, replica, first, last)
            values.append(samples.values)
            weights.append(samples.weights)
    found = latency.WeightedSamples.of(np.concatenate(values), np.concatenate(weights))
    assert found.count == whole.count
    assert found.percentiles((1, 50, 90, 99, 100)) == whole.percentiles((1, 50, 90, 99, 100))


def test_latencies_at_the_end_are_those_of_the_last_requests(runs) -> None:
    """TTFT, TPOT and E2E are numpy's percentiles of the last requests that started, or ended."""
    store = RunStore.open(runs["synthetic", "one"].path)
    rows = {
        row.name: row
        for row in latency_rows(store, store.replicas[0], store.replicas[0].steps.end - 1)
    }
    requests = store.requests.table()
    ended = {name: column[latency.successful(requests)] for name, column in requests.items()}
    assert rows["TTFT"].samples == len(requests["request_id"])
    for name, values in (("TTFT", latency.ttft_ms(ended)), ("E2E", latency.e2el_ms(ended))):
        expected = np.percentile(values, (50, 90, 99, 100))
        np.testing.assert_allclose(rows[name].percentiles_ms, expected)


def test_a_ring_keeps_the_last_steps_as_they_were(runs) -> None:
    """With a ring the steps that are kept have the same rows, pages and trees as without it."""
    reader = runs["synthetic", "one"]
    whole, ring = RunStore.open(reader.path), RunStore(reader.header, ring_steps=60)
    for segment in in_pieces(reader, 13):
        ring.append(segment)
    a, b = whole.replicas[0], ring.replicas[0]
    assert b.steps.end == a.steps.end
    assert 60 <= len(b.steps) <= 60 * 1.25 + 13
    assert Player(ring).position == b.steps.first
    for position in range(b.steps.first, b.steps.end):
        assert a.steps.at(position) == b.steps.at(position)
        left, right = a.pages_after(position), b.pages_after(position)
        for name in ("owner", "node", "writer", "since_step"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), name)
        np.testing.assert_array_equal(a.tree_after(position).tokens, b.tree_after(position).tokens)
    window = window_at(b.steps, b.steps.end - 1, 200, 2)
    expected = window_at(a.steps, a.steps.end - 1, len(window), 2)
    np.testing.assert_array_equal(window.mean["running"][1:], expected.mean["running"][1:])


@pytest.mark.parametrize("zoom", [0, 1, 3, 7])
def test_columns_of_time_and_of_steps_hold_the_same_steps(zoom: int, runs) -> None:
    """Both kinds of columns add up to the same totals, and no step is in two columns."""
    steps = RunStore.open(runs["synthetic", "one"].path).replicas[0].steps
    for by_time in (False, True):
        window = window_at(steps, steps.end - 1, 10**5, zoom, by_time)
        assert int((window.last - window.first).sum()) == len(steps)
        assert (window.first[1:] >= window.last[:-1]).all()
        total = (window.mean["prefill_tokens"] * (window.last - window.first)).sum()
        assert round(total) == int(steps.column("prefill_tokens").sum())
        filled = window.last > window.first
        heaviest = window.heaviest[filled]
        tokens = steps.column("tokens")
        ranges = zip(window.first[filled].tolist(), window.last[filled].tolist(), strict=True)
        most = [tokens[first:last].max() for first, last in ranges]
        np.testing.assert_array_equal(tokens[heaviest], most)


def test_what_happened_is_told_in_order_and_no_later_than_the_cursor(runs) -> None:
    """Each filter gives at most as many lines as asked for, in order, of its kinds only."""
    store = RunStore.open(runs["early ends", "three"].path)
    for replica in store.replicas:
        for position in range(0, replica.steps.end, 17):
            end_ns = replica.steps.at(position)["end_ns"]
            for kinds in FILTERS.values():
                found = last_happenings(store, replica, position, 8, kinds)
                assert len(found) <= 8
                times = [happening.t_ns for happening in found]
                assert times == sorted(times)
                assert all(t_ns <= end_ns for t_ns in times)
                assert {happening.kind for happening in found} <= kinds


def test_a_request_holds_its_pages_while_it_runs_and_its_steps_are_those_of_the_record(
    runs,
) -> None:
    """In every step of a request it has pages; outside of its life it holds none itself."""
    reader = runs["synthetic", "one"]
    store = RunStore.open(reader.path)
    log = store.replicas[0]
    for request in range(0, len(store.requests), 7):
        steps = steps_of(request, log)
        expected = set(store.items_of_request(request)["step"].tolist())
        assert set(steps.prefill.tolist()) == expected
        for first, last in steps.decode:
            batch = reader.items_of_step(0, first)["request_id"]
            assert request in batch.tolist()
            assert request in reader.items_of_step(0, last)["request_id"].tolist()
            pages = pages_of(request, log.pages_after(first), log.tree_after(first))
            assert pages.pages.any()
        end = max((last for _, last in steps.decode), default=int(steps.prefill[-1]))
        if end + 2 < log.steps.end:
            assert not (log.pages_after(end + 2).owner == request).any()


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(-5, 500)),
        st.tuples(st.just("step"), st.integers(-9, 9)),
        st.tuples(st.just("seek_time"), st.floats(-1e9, 1e10)),
        st.tuples(st.just("seek_share"), st.floats(-0.5, 1.5)),
        st.tuples(st.just("tick"), st.floats(0, 2)),
        st.tuples(st.just("faster"), st.integers(-4, 4)),
        st.tuples(st.sampled_from(["toggle", "follow", "mark", "next_mark", "cycle_loop"])),
    ),
    max_size=30,
)


@given(MOVES)
def test_a_cursor_never_leaves_the_run(moves) -> None:
    """After any moves the cursor is on a step that is there, and its time is that step's end."""
    player = Player(_SMALL)
    for name, *arguments in moves:
        getattr(player, name)(*arguments)
        assert 0 <= player.position <= player.head
        assert player.t_ns == player.steps.at(player.position)["end_ns"]
        assert player.speed in SPEEDS
        if player.loop is not None:
            assert player.loop[0] < player.loop[1]


@given(st.integers(0, 200), st.floats(0.001, 0.4), st.sampled_from(SPEEDS[:-1]))
def test_playing_moves_through_the_time_of_the_run(start, seconds, speed) -> None:
    """After s seconds at speed v the cursor is on the last step that had ended v * s later."""
    player = Player(_SMALL)
    player.seek(start)
    before_ns = player.t_ns
    player.speed = speed
    player.play()
    player.tick(seconds)
    if player.playing and start < player.head:
        expected = player.steps.position_at(before_ns + seconds * speed * 1e9)
        assert player.position == expected


def test_a_follower_stays_at_the_end_and_a_paused_cursor_stays_put() -> None:
    """While a run grows, following goes with it, and pausing counts how far it is behind."""
    simulation = simulation_of("synthetic", "one", "steps")
    segments: list[Segment] = []
    simulation.run([segments.append], live=True)
    store = RunStore(simulation.header)
    follower, paused = Player(store), Player(store)
    assert follower.empty
    assert not follower.tick(0.1)
    follower.follow()
    for segment in segments:
        store.append(segment)
        follower.tick(0.03)
        paused.tick(0.03)
        assert follower.empty or follower.position == follower.head
        assert paused.behind == max(paused.head, 0)


def _small() -> RunStore:
    simulation = simulation_of("synthetic", "one", "steps")
    store = RunStore(simulation.header)
    simulation.run([store.append])
    store.end("complete", None)
    return store


_SMALL = _small()


def test_a_store_of_no_run_says_what_it_needs(tmp_path: Path) -> None:
    """A stream without its header, and a directory without one, are refused with a sentence."""
    with pytest.raises(Exception, match="does not start with a header"):
        RunStore.from_frames([])
    with pytest.raises(Exception, match=r"has no header\.json"):
        RunStore.open(tmp_path)


def test_a_header_may_come_again(runs) -> None:
    """The last header counts: a run may learn more of itself when it ends."""
    reader = runs["synthetic", "one"]
    store = RunStore(reader.header)
    store.end("failed", None, "the disk is full")
    assert isinstance(store.header, RunHeader)
    assert store.header.status_reason == "the disk is full"


@pytest.mark.parametrize("budget", [1, 50, 3000])
@pytest.mark.parametrize("case", CASES)
def test_catching_up_in_small_parts_ends_where_folding_at_once_does(case, budget, runs) -> None:
    """Whatever a frame folds of what has come, owners and all tokens of the tree are the same."""
    reader = runs[case]
    whole, live = RunStore.open(reader.path), RunStore(reader.header)
    for segment in in_pieces(reader, 20):
        live.append(segment)
        for replica in live.replicas:
            replica.kv.fold(budget)
    for a, b in zip(whole.replicas, live.replicas, strict=True):
        while b.kv.backlog:
            b.kv.fold(budget)
        for position in range(a.steps.first, a.steps.end, 9):
            left, right = a.pages_after(position), b.pages_after(position)
            np.testing.assert_array_equal(left.owner, right.owner)
            np.testing.assert_array_equal(left.writer, right.writer)
            assert int(a.tree_after(position).tokens.sum()) == int(
                b.tree_after(position).tokens.sum()
            )
