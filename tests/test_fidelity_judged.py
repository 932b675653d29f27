"""`workbench fidelity`: what was measured is judged, again and again, without the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from measured_loads import (
    HALF,
    OFFLINE,
    TRACES,
    Place,
)
from msgspec.structs import replace

from workbench.fidelity.picture import draw
from workbench.fidelity.table import table_lines


def test_what_a_judgement_says(place: Place) -> None:
    """The engine is as calibrated: its steps are predicted, by the analytic model less so."""
    judgement = place.run(OFFLINE, HALF, repeats=1)
    offline, half = judgement["loads"]
    for load in (offline, half):
        assert load["steps"]["calibrated"]["all"]["median"] < 1.5
        assert load["steps"]["analytic"]["all"]["median"] > 3
        assert load["requests"] == 40
        assert load["metrics"]["calibrated"]["p99_ttft_ms"]["reached"] is None
        assert abs(load["metrics"]["calibrated"]["mean_tpot_ms"]["error"]) < 3
    assert offline["amplification"] is None
    assert half["amplification"]["mean_e2el_ms"] > 0.9  # longer steps, and longer queues
    assert (
        0 < judgement["reached"] <= judgement["goals"] == 2 * (5 + 4)
    )  # with too few steps for a p99
    text = "\n".join(table_lines(judgement))
    missed = judgement["goals"] - judgement["reached"]
    assert text.count("*") == missed + 1  # and the one that explains it
    assert f"{judgement['reached']} of {judgement['goals']} goals reached" in text
    for said in ("poisson 50 %", "analytic model", "retractions", "% per 1 % of steps", "all "):
        assert said in text


def test_a_later_profile_is_judged_on_the_same_loads(place: Place) -> None:
    """Its own idea of the capacity changes no rate, so nothing is measured again."""
    place.run(HALF, repeats=1)
    stamps = place.stamps()
    fit = place.profile.fit
    slower = [replace(table, ns=tuple(2 * ns for ns in table.ns)) for table in fit.decode]
    place.replace(name="slower", fit=replace(fit, decode=tuple(slower)))
    judgement = place.judge(HALF)
    assert place.stamps() == stamps
    (load,) = judgement["loads"]
    assert load["metrics"]["calibrated"]["mean_tpot_ms"]["error"] > 30
    assert load["steps"]["calibrated"]["decode"]["reached"] == {"median": False, "p99": False}
    assert {path.name for path in place.folder.glob("judged-*")} == {
        "judged-slower.json", "judged-nvidia-h200-llama-3.1-8b-bf16-tp1.json",
    }  # fmt: skip


def test_other_sources_of_the_engine_are_measured_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an engine may run, a cell of other sources is none."""
    same = place.run(OFFLINE, HALF, repeats=1)
    stamps = place.stamps()
    assert same["other_sources"] == {}
    assert not any("other sources" in line for line in table_lines(same))
    monkeypatch.setattr("workbench.fidelity.run.engine_digest", lambda: "other")
    judgement = place.run(OFFLINE)
    assert len(place.built) == 2
    assert place.stamps()["offline.json"] != stamps["offline.json"]
    assert place.stamps()["poisson_50_percent.json"] == stamps["poisson_50_percent.json"]
    assert judgement["missing"] == judgement["other_sources"] == {}


def test_where_nothing_can_be_measured_other_sources_are_judged_and_named_first(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same numbers, below the loads, what differs and the commit that was measured."""
    monkeypatch.setattr("workbench.fidelity.measure.source_commit", lambda: "0123456789abcdef")
    same = place.run(OFFLINE, HALF, repeats=1)
    stamps = place.stamps()
    monkeypatch.setattr("workbench.fidelity.run.engine_digest", lambda: "other")
    aged = place.judge()
    assert place.stamps() == stamps
    assert len(place.built) == 1
    commit = "0123456789abcdef"
    assert aged["other_sources"] == {"offline": commit, "poisson 50 %": commit}
    assert list(aged).index("other_sources") < list(aged).index("loads")
    for load, before in zip(aged["loads"], same["loads"], strict=True):
        assert (load["other_sources"], before["other_sources"]) == (True, False)
        assert load["metrics"] == before["metrics"]
    lines = table_lines(aged)
    told = "measured with other sources of the engine, at commit 0123456789ab"
    assert lines[1] == f"all loads: {told}"
    assert lines[-3:-1] == [f"offline: {told}", f"poisson 50 %: {told}"]
    draw(aged, tmp_path / "aged.svg")
    assert f"all loads: {told}; " in (tmp_path / "aged.svg").read_text()
    monkeypatch.setattr("workbench.fidelity.measure.source_commit", lambda: None)
    place.run(OFFLINE)
    mixed = place.judge(OFFLINE, HALF)  # one of each
    assert mixed["other_sources"] == {"poisson 50 %": commit}
    assert table_lines(mixed)[1] == f"poisson 50 %: {told}"
    monkeypatch.setattr("workbench.fidelity.run.engine_digest", lambda: "yet another")
    said = table_lines(place.judge(OFFLINE, HALF))[1]
    assert "at a commit that is not known and commit 0123456789ab" in said


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("requests_sha256", "0", "other requests"),
        ("settings", [], "other settings"),
        ("scenario", "moe", "other scenario"),
        ("engine", {}, "another engine"),
    ],
)
def test_what_else_differs_is_never_judged(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, told: str
) -> None:
    """Of the same sources or of others, it is no measurement of this load."""
    place.run(OFFLINE, HALF, repeats=1)
    path = place.folder / "offline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}), encoding="utf-8")
    missing = place.judge(OFFLINE, HALF)["missing"]
    assert missing == {"offline": f"measured with {told}"}
    monkeypatch.setattr("workbench.fidelity.run.engine_digest", lambda: "other")
    judgement = place.judge(OFFLINE, HALF)
    (why,) = judgement["missing"].values()
    assert told in why
    assert "other sources of the engine" in why
    assert list(judgement["other_sources"]) == ["poisson 50 %"]


def test_a_profile_that_is_not_complete_is_called_so_first(place: Place, tmp_path: Path) -> None:
    """Its errors are of what was measured by then."""
    conditions = place.profile.conditions | {"complete": False, "designed_steps": 9_999}
    place.replace(conditions=conditions)
    judgement = place.run(OFFLINE, repeats=1)
    told = f"calibration not complete: {len(place.profile.samples)} of 9,999 steps measured"
    assert table_lines(judgement)[1].startswith(told)
    draw(judgement, tmp_path / "part.svg")
    assert told in (tmp_path / "part.svg").read_text()


def test_one_run_tells_no_spread(place: Place, tmp_path: Path) -> None:
    """Neither 0 as if it had been measured, in the table, nor a bar in the picture."""
    once, twice = place.run(OFFLINE, repeats=1), place.run(OFFLINE, repeats=2)
    for judgement, known in ((once, False), (twice, True)):
        (load,) = judgement["loads"]
        spreads = [each["spread"] for each in load["metrics"]["calibrated"].values()]
        assert [spread is not None for spread in spreads] == [known] * len(spreads)
        row = next(line for line in table_lines(judgement) if line.startswith("offline"))
        assert ("± -" in row) != known
        assert ("± 0.0" in row) <= known
        draw(judgement, tmp_path / f"{known}.svg")
    bars = [
        (tmp_path / f"{known}.svg").read_text().count("LineCollection") for known in (False, True)
    ]
    assert bars[0] < bars[1]


def test_a_judgement_of_some_loads_does_not_replace_that_of_all(place: Place) -> None:
    """Nor does judging change how often loads are to be measured."""
    place.run(OFFLINE, HALF, repeats=1)
    written = place.folder / f"judged-{place.profile.name}.json"
    before, suite = written.read_bytes(), (place.folder / "suite.json").read_bytes()
    assert len(place.judge(OFFLINE)["loads"]) == 1
    assert written.read_bytes() == before
    missing = place.run(OFFLINE, HALF, repeats=5, options=None)["missing"]
    assert missing["offline"] == missing["poisson 50 %"] == "1 of 5 runs measured"
    assert (place.folder / "suite.json").read_bytes() == suite


def test_a_judgement_without_the_trace_does_not_replace_one_with_it(place: Place) -> None:
    """Results may be kept without the trace that they ran."""
    place.run(repeats=1, trace=TRACES / "azure_2023.csv")
    written = place.folder / f"judged-{place.profile.name}.json"
    before = written.read_bytes()
    (place.folder / "trace-window.txt").unlink()
    assert [load["load"] for load in place.judge()["loads"]] == ["offline", "poisson 50 %"]
    assert written.read_bytes() == before


def test_a_judgement_is_drawn(place: Place, tmp_path: Path) -> None:
    """The same judgement gives the same file; every load and region is in it."""
    judgement = place.run(OFFLINE, HALF, repeats=2)
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        draw(judgement, path)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    for said in ("offline", "poisson 50 %", "decode", "prefill", "mixed", "throughput"):
        assert f">{said}<" in text
    worst = json.loads(json.dumps(judgement))
    for load in worst["loads"]:
        load["metrics"]["calibrated"]["mean_ttft_ms"].update(error=None, reached=False)
    draw(worst, tmp_path / "worst.png")
    assert "inf*" in "\n".join(table_lines(worst))
    fewer = judgement | {"missing": {"offline": "2 of 3 runs measured", "bursts": "not measured"}}
    draw(fewer, tmp_path / "fewer.svg")
    assert "; offline: 2 of 3 runs measured; without bursts" in (tmp_path / "fewer.svg").read_text()
    lacking = judgement | {"missing": {f"load number {at}": "not measured" for at in range(16)}}
    draw(lacking, tmp_path / "lacking.png")
    pixels = imread(tmp_path / "lacking.png")
    assert (pixels[:, -3:] == pixels[0, 0]).all(), "nothing leaves the picture"
