"""The story of a workload: first calls divided among causes, and steady states before and after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gap_stories import KERNELS, UNITS, phases
from profile_traces import call, kernel, ranged

from engine.profiling.op_classes import CAPTURE
from workbench.cli.profile_work import analysed
from workbench.profile.first_call import ALLOCATOR, GPU, OTHER, first_call
from workbench.profile.gap_story import (
    GapStory,
    read_stories,
    steady_state,
    stories_to_json,
)
from workbench.profile.gap_text import lane_shares, stories_text, verdict
from workbench.profile.latest_gaps import MEASURED_HERE, latest_stories
from workbench.profile.pictures import draw_gaps
from workbench.profile.roofline import Roofline
from workbench.profile.roofline_text import roofline_text
from workbench.profile.timeline_text import timeline_text
from workbench.profile.trace import TraceFileError, parse_events, read_trace

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "profile"
GUIDE = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")


@pytest.fixture
def story(tmp_path: Path) -> GapStory:
    """Of a workload whose launches take longer than its kernels."""
    return phases(tmp_path, 5.0, 0.5)


def test_causes_of_a_first_call_sum_to_it() -> None:
    """What was timed, then the allocator, then the GPU, then all that is left."""
    trace = parse_events([
        call("cudaMalloc", 0, 2_000, 1), call("cudaLaunchKernel", 2_000, 5, 2),
        kernel("k", 2_100, 1_000, 2), ranged(CAPTURE, 5_000, 4_000),
        call("cudaMalloc", 6_000, 500, 3),
    ])  # fmt: skip
    found = first_call(50.0, {"compiling": 30.0, "graph capture": 4.0}, {"compiling": 3}, trace)
    assert found.causes == (
        ("compiling", 30.0, 3), ("graph capture", 4.0, 0), (ALLOCATOR, 2.0, 1),
        (GPU, 1.0, 0), (OTHER, 13.0, 0),
    )  # fmt: skip
    assert sum(ms for _, ms, _ in found.causes) == found.wall_ms


def test_a_story_has_both_sides(story: GapStory) -> None:
    """Kernels, gaps and idle time of a unit, and how much a graph gains."""
    assert (story.eager.kernels, story.graph.kernels) == (KERNELS, KERNELS)
    assert story.eager.idle_us == pytest.approx(5.0 * (UNITS * KERNELS - 1) / UNITS)
    assert story.graph.busy_share == pytest.approx(3.0 / 3.5, rel=0.01)
    assert story.gain == pytest.approx(8.0 / 3.5)
    assert verdict(story).startswith("a graph makes a step 2.29 times as fast")


def test_a_workload_that_a_graph_does_not_help_is_told_as_such(tmp_path: Path) -> None:
    """With the little that it gains."""
    assert verdict(phases(tmp_path, 0.01, 0.0)).startswith("a graph gains +0.3% a step")


def test_lanes_are_the_busy_time(story: GapStory) -> None:
    """However it is cut into cells, the shares sum to it; after the lane's end there is nothing."""
    for width in (1, 7, 76, 500):
        shares = lane_shares(story.eager, story.eager.lane_us, width)
        busy = sum(end - start for start, end in story.eager.lane)
        assert sum(shares) * story.eager.lane_us / width == pytest.approx(busy, rel=0.01)
        assert all(0 <= share <= 1 for share in shares)
    shares = lane_shares(story.graph, story.eager.lane_us, 80)
    assert shares[-1] == -1
    assert shares[0] >= 0


def test_the_text_holds_both_columns(story: GapStory) -> None:
    """Causes with bars, figures of both, both lanes, and the verdict."""
    text = stories_text([story])
    for part in ("compiling", "60.0 ms", "eager |", "graph |", "CUDA Graph", "GPU busy"):
        assert part in text


def test_stories_survive_json(story: GapStory, tmp_path: Path) -> None:
    """What was written is what is read."""
    path = tmp_path / "gaps.json"
    path.write_text(json.dumps(stories_to_json([story], "abc")))
    assert read_stories(path) == [story]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}',
                                  '{"schema": "profile_gaps/v1", "stories": [{}]}'])  # fmt: skip
def test_what_is_no_story_is_refused(tmp_path: Path, text: str) -> None:
    """With the name of the file."""
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(TraceFileError, match="wrong.json"):
        read_stories(path)


DAMAGE = [
    (("eager", "unit_ms"), "x", "`unit_ms` is 'x', and has to be a number above 0"),
    (("graph", "unit_ms"), 0, "`unit_ms` is 0, and has to be a number above 0"),
    (("eager", "busy_share"), None, "`busy_share` is None, and has to be a number from 0 to 1"),
    (("eager", "busy_share"), 1.5, "`busy_share` is 1.5"),
    (("graph", "kernels"), float("nan"), "`kernels` is nan, and has to be a number from 0 on"),
    (("graph", "idle_us"), [], r"`idle_us` is \[\]"),
    (("graph", "gaps"), True, "`gaps` is True"),
    (("eager", "lane_us"), float("inf"), "`lane_us` is inf"),
    (("eager", "lane"), [[0, 1e300]], "`lane` is 1e\\+300"),
    (("eager", "lane"), [[-1, 2]], "`lane` is -1"),
    (("eager", "lane"), [[2, 1]], "`lane` is 2, and has to be a number from 0 to 1"),
    (("eager", "lane"), [3], "of another kind"),
    (("eager", "histogram"), [["< 1 us", 1, "x"]], "`histogram` is 'x'"),
    (("eager", "histogram"), [], "differ in their bins"),
    (("eager", "longest"), [{"start_us": 1}], "`duration_us` is missing"),
    (("cold", "wall_ms"), -1, "`wall_ms` is -1"),
    (("cold", "causes"), [["compiling", "x", 1]], "`causes` is 'x'"),
    (("unit",), 3, "of another kind"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "said"), DAMAGE)
def test_a_story_with_a_damaged_value_is_refused(
    story: GapStory, tmp_path: Path, place: tuple[str, ...], value: object, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of the file and of what the interface shows: which value, and what it has to be."""
    data = stories_to_json([story], None)
    owner = data["stories"][0]
    for name in place[:-1]:
        owner = owner[name]
    assert place[-1] in owner
    owner[place[-1]] = value
    monkeypatch.chdir(tmp_path)
    MEASURED_HERE.parent.mkdir()
    MEASURED_HERE.write_text(json.dumps(data))
    with pytest.raises(TraceFileError, match=rf"gaps\.json is no result .*{said}"):
        read_stories(MEASURED_HERE)
    known = latest_stories()
    assert known.stories == []
    assert "is no result of `workbench profile gaps`" in (known.trouble or "")


def test_a_story_of_no_kernels_is_drawn(story: GapStory, tmp_path: Path) -> None:
    """Its lanes have no length."""
    nothing = steady_state(parse_events([]), 1.0, 3)
    draw_gaps([replace(story, eager=nothing, graph=nothing)], tmp_path / "gaps.svg")
    assert (tmp_path / "gaps.svg").stat().st_size > 0


def test_the_picture_is_the_same_each_time(story: GapStory, tmp_path: Path) -> None:
    """As SVG and PNG."""
    for suffix in ("svg", "png"):
        paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
        for path in paths:
            draw_gaps([story, story], path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_latest_stories_are_those_of_the_folder(
    story: GapStory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None if nothing was measured there; a broken file is told of."""
    monkeypatch.chdir(tmp_path)
    assert latest_stories().stories == []
    MEASURED_HERE.parent.mkdir()
    MEASURED_HERE.write_text(json.dumps(stories_to_json([story], None)))
    assert latest_stories().stories == [story]
    MEASURED_HERE.write_text("{")
    broken = latest_stories()
    assert (broken.stories, broken.source) == ([], "profile/gaps.json")
    assert "gaps.json" in (broken.trouble or "")


def test_nothing_recorded_is_nothing() -> None:
    """An empty trace has no lane."""
    found = steady_state(parse_events([]), 1.0, 3)
    assert (found.lane, found.kernels, found.busy_share) == ((), 0, 0)


def test_the_guide_quotes_what_was_printed() -> None:
    """Every indented line under Gaps was printed, and each table stands below its workload."""
    kept = (RESULTS / "h200_output.txt").read_text(encoding="utf-8")
    section = GUIDE.partition("\n## Gaps\n")[2].partition("\n## ")[0]
    quoted = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert quoted
    assert set(quoted) <= set(kept.splitlines())
    place = 0
    for story in read_stories(RESULTS / "h200_gaps.json")[1:3]:
        name = story.what.partition(", ")[0]
        assert f"**{name}, " in section[place:]
        place = section.index(f"**{name}, ", place)
        assert section.index(f"{story.eager.unit_ms:.3f}", place) > place


def test_the_guide_sums_up_what_was_measured() -> None:
    """Each workload's first call, warm steps and graph stand in the table, as in the results."""
    for story in read_stories(RESULTS / "h200_gaps.json"):
        assert summary_row(story) in GUIDE


def test_what_was_printed_is_what_the_results_say() -> None:
    """Gaps and rooflines of the kept printout are those of the files beside it."""
    kept = (RESULTS / "h200_output.txt").read_text(encoding="utf-8")
    assert stories_text(read_stories(RESULTS / "h200_gaps.json")) in kept
    for step in ("decode", "prefill"):
        data = json.loads((RESULTS / f"h200_roofline_{step}.json").read_text(encoding="utf-8"))
        assert roofline_text(Roofline.from_json(data)) in kept


def test_the_guide_quotes_counters_and_rooflines_that_were_measured() -> None:
    """The tables of both steps, as counted and with the counters' bytes and times."""
    for name in ("roofline_decode", "roofline_prefill", "counters_decode", "counters_prefill"):
        data = json.loads((RESULTS / f"h200_{name}.json").read_text(encoding="utf-8"))
        lines = roofline_text(Roofline.from_json(data)).splitlines()
        table = lines[: next(at for at, line in enumerate(lines) if "(rest and gaps)" in line) + 1]
        quoted = "\n".join("    " + line if line else "" for line in table)
        assert quoted in GUIDE
        assert len(table) > 8


def test_a_trace_of_an_h200_says_what_was_printed() -> None:
    """30 decode steps of Llama 3.1 8B as graphs: every kernel is told by its place, as by range."""
    found = analysed(read_trace(RESULTS / "h200_timeline_decode.json.gz"))
    assert timeline_text(found) in (RESULTS / "h200_output.txt").read_text(encoding="utf-8")
    assert (found.labels_checked, found.labels_wrong) == (261, [])
    assert sum(found.groups.values()) + found.idle_us == pytest.approx(found.step_us, rel=1e-3)


def summary_row(story: GapStory) -> str:
    """A workload as a row of the guide's table."""
    compiling = sum(ms for cause, ms, _ in story.cold.causes if cause.startswith("kernel "))
    name = story.what.partition(", bf16")[0].partition(", DDIM")[0]
    return (
        f"| {name} | {story.cold.wall_ms / 1e3:.2f} s, {compiling / story.cold.wall_ms:.0%} "
        f"| {story.eager.unit_ms:.2f} ms, {story.eager.busy_share:.0%} "
        f"| {story.graph.unit_ms:.2f} ms, {story.graph.busy_share:.0%} | {story.gain:.2f} |"
    )
