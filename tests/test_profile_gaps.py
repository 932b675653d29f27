"""Gaps of a trace: busy and idle time sum to the whole, and each gap has a cause."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_traces import call, copied, kernel, op, ranged

from workbench.profile.gaps import BINS, DEVICE_CAUSE, occupation
from workbench.profile.trace import TraceFileError, kernel_name, parse_events, read_trace


def test_overlapping_kernels_are_busy_once() -> None:
    """A kernel that starts before the one before it has ended adds only what comes after."""
    spent = occupation(parse_events([kernel("a", 0, 10), kernel("b", 5, 10), kernel("c", 20, 5)]))
    assert (spent.total_us, spent.busy_us, spent.idle_us) == (25, 20, 5)
    assert spent.added_us == (10, 5, 5)
    (gap,) = spent.gaps
    assert (gap.before, gap.after, gap.duration_us) == ("b", "c", 5)


def test_a_kernel_inside_of_another_hides_no_gap() -> None:
    """What ends last before a gap is what stands before it."""
    spent = occupation(parse_events([kernel("long", 0, 30), kernel("short", 5, 2),
                                     kernel("after", 40, 1)]))  # fmt: skip
    assert [(gap.before, gap.after) for gap in spent.gaps] == [("long", "after")]
    assert spent.added_us == (30, 0, 1)


spans = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 100), st.integers(0, 3)), min_size=1, max_size=40
)


@given(spans)
def test_busy_and_idle_sum_to_the_whole(work: list[tuple[int, int, int]]) -> None:
    """On any streams, in any order; what kernels add sums to the busy time."""
    events = [kernel("k", start, length, stream=stream) for start, length, stream in work]
    spent = occupation(parse_events(events))
    moments = {moment for start, length, _ in work for moment in range(start, start + length)}
    assert spent.busy_us == pytest.approx(len(moments))
    assert spent.busy_us + spent.idle_us == pytest.approx(spent.total_us)
    assert sum(spent.added_us) == pytest.approx(spent.busy_us)
    assert sum(us for _, _, us in spent.histogram()) == pytest.approx(spent.idle_us)
    assert sum(count for _, count, _ in spent.histogram()) == len(spent.gaps)


def test_gaps_fall_into_their_bins() -> None:
    """Below 1 us, 1 to 5, 5 to 20 and above, an edge belonging to the larger."""
    events, at = [], 0.0
    for gap in (0.5, 1.0, 4.5, 5.0, 19.0, 20.0, 300.0):
        events.append(kernel("k", at, 2.0))
        at += 2.0 + gap
    counts = [
        count for _, count, _ in occupation(parse_events([*events, kernel("k", at, 1)])).histogram()
    ]
    assert dict(zip(BINS, counts, strict=True)) == {
        "< 1 us": 1, "1-5 us": 2, "5-20 us": 2, "> 20 us": 2
    }  # fmt: skip


def test_a_launch_that_came_in_time_is_not_to_blame() -> None:
    """If the launch had returned before the gap began, the device itself is the cause."""
    events = [kernel("a", 100, 10, 1), kernel("b", 112, 5, 2),
              call("cudaLaunchKernel", 20, 5, 1), call("cudaLaunchKernel", 30, 5, 2)]  # fmt: skip
    (gap,) = occupation(parse_events(events)).gaps
    assert gap.cause == DEVICE_CAUSE


def test_what_the_launching_thread_did_most_is_to_blame() -> None:
    """Of all that it did between the start of the gap and the launch, by its own time."""
    events = [
        kernel("a", 100, 10, 1), kernel("b", 160, 5, 2),
        call("cudaLaunchKernel", 90, 5, 1),
        ranged("step", 105, 60), op("aten::sort", 112, 30), op("aten::empty", 113, 2),
        call("cudaLaunchKernel", 150, 5, 2),
    ]  # fmt: skip
    (gap,) = occupation(parse_events(events)).gaps
    assert gap.cause == "the host, in aten::sort of step"


def test_a_range_is_named_with_what_is_inside() -> None:
    """Where it calls nothing, Python is."""
    events = [kernel("a", 100, 10, 1), kernel("b", 160, 5, 2), ranged("step", 90, 80),
              call("cudaLaunchKernel", 95, 2, 1), call("cudaLaunchKernel", 150, 5, 2)]  # fmt: skip
    (gap,) = occupation(parse_events(events)).gaps
    assert gap.cause == "the host, in Python of step"


def test_python_between_calls_is_named_as_such() -> None:
    """Where the thread was in no call and no range, Python was."""
    events = [kernel("a", 100, 10, 1), kernel("b", 160, 5, 2),
              call("cudaLaunchKernel", 90, 5, 1), call("cudaLaunchKernel", 150, 5, 2)]  # fmt: skip
    (gap,) = occupation(parse_events(events)).gaps
    assert gap.cause == "the host, in Python between calls"


def test_a_slow_launch_is_to_blame_itself() -> None:
    """If the host was inside of the launch when the gap began."""
    events = [kernel("a", 100, 10, 1), kernel("b", 160, 5, 2),
              call("cudaLaunchKernel", 80, 5, 1), call("cudaGraphLaunch", 105, 50, 2)]  # fmt: skip
    (gap,) = occupation(parse_events(events)).gaps
    assert gap.cause == "the host, inside cudaGraphLaunch"


def test_a_kernel_without_its_launch_has_an_unknown_cause() -> None:
    """Nothing is guessed."""
    (gap,) = occupation(parse_events([kernel("a", 0, 1), copied(5, 1)])).gaps
    assert gap.cause.startswith("unknown")


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void at::native::add<int, 2>(int*, int)", "at::native::add<int, 2>"),
        ("_rotary_kernel", "_rotary_kernel"),
        (
            "void (anonymous namespace)::softmax<float>(float*)",
            "(anonymous namespace)::softmax<float>",
        ),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH (Device -> Pinned)"),
    ],
)
def test_names_lose_their_arguments(signature: str, name: str) -> None:
    """And nothing else."""
    assert kernel_name(signature) == name


def test_traces_are_read_compressed_or_not(tmp_path: Path) -> None:
    """With what was said about them."""
    whole = {"traceEvents": [kernel("a", 0, 1)], "workbench": {"model": "x"}}
    plain, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    plain.write_text(json.dumps(whole))
    packed.write_bytes(gzip.compress(json.dumps(whole).encode()))
    assert read_trace(plain) == read_trace(packed)
    assert read_trace(plain).about == {"model": "x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "no JSON"), ("{}", "traceEvents"), ("3", "traceEvents"),
     ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "a"}]}', "none of a trace"),
     ('{"traceEvents": [7]}', "none of a trace")],
)  # fmt: skip
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With the name of the file and what is wrong."""
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(TraceFileError, match=said) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    with pytest.raises(TraceFileError, match="cannot read"):
        read_trace(tmp_path / "none.json")
