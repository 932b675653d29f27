"""`workbench fidelity`: measurements are kept, each of its own engine, and none is made twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_executor import Faults
from made_up_engine import true_ns
from measured_loads import (
    BASIS,
    HALF,
    LOADS,
    OFFLINE,
    TRACED,
    TRACES,
    Place,
    TimedEngine,
)
from msgspec.structs import replace

from simulator.cost_model import StepShape
from workbench.fidelity.cells import SCHEMA, engine_digest, read_cell
from workbench.fidelity.errors import FidelityError
from workbench.fidelity.suite import Basis, open_suite
from workbench.running.profile_match import OtherProfileError
from workbench.workload.trace_errors import TraceError


def test_measured_once_and_judged_ever_after(place: Place) -> None:
    """One engine for all loads; a second call, and a judgement, need none and say the same."""
    first = place.run(OFFLINE, HALF, repeats=2)
    assert [engine.closed for engine in place.built] == [True]
    stamps = place.stamps()
    assert set(stamps) == {
        "suite.json", "offline.json", "offline.steps.npz", "poisson_50_percent.json",
        "poisson_50_percent.steps.npz",
    }  # fmt: skip
    assert place.run(OFFLINE, HALF) == first == place.judge(OFFLINE, HALF)
    assert len(place.built) == 1
    assert place.stamps() == stamps
    written = place.folder / f"judged-{place.profile.name}.json"
    assert json.loads(written.read_bytes()) == json.loads(json.dumps(first))


def test_what_a_cell_holds(place: Place) -> None:
    """All steps of each run as they were, and what the engine was, in little space."""
    place.run(OFFLINE, repeats=2)
    cell = read_cell(place.folder, OFFLINE)
    assert cell is not None
    assert len(cell.runs) == 2
    for run in cell.runs:
        assert run.summary["completed"] == 40
        shapes = [{name: int(run.steps[name][row]) for name in StepShape._fields
                   if name in run.steps} for row in range(len(run.steps["gpu_ns"]))]  # fmt: skip
        assert [true_ns(StepShape(**shape)) for shape in shapes] == run.steps["gpu_ns"].tolist()
        assert len(run.steps["host_ns"]) == run.summary["steps"] == len(shapes)
    assert cell.about["identity"]["gpu"] == "NVIDIA H200"
    assert cell.key.engine_digest == engine_digest()
    assert cell.parity == f"all {len(shapes)} steps"
    assert (place.folder / "offline.steps.npz").stat().st_size < 12_000


def test_a_digest_is_of_what_serves(tmp_path: Path) -> None:
    """Sources and their places count; what calibrates, compiled files and notes do not."""
    beside = (
        "profiling/c.py",
        "kernels/lab/e.py",
        "models/dit.py",
        "core/notes.md",
        "runtime/async_llm.py",
    )
    for name in ("core/a.py", "kernels/b.cu", *beside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = engine_digest(tmp_path)
    for name, same in (*((name, True) for name in beside), ("kernels/b.cu", False)):
        (tmp_path / name).write_text("changed")
        assert (engine_digest(tmp_path) == first) == same
    second = engine_digest(tmp_path)
    (tmp_path / "core/a.py").rename(tmp_path / "core/d.py")
    assert engine_digest(tmp_path) not in (first, second)


def test_an_interrupted_load_goes_on_after_its_last_run(place: Place) -> None:
    """Each run is kept as soon as it is done; a judgement tells how many there are."""

    def interrupt(text: str) -> None:
        if text == "offline: run 3 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.run(OFFLINE, say=interrupt)
    assert place.built[0].closed
    before = read_cell(place.folder, OFFLINE)
    assert before is not None
    assert len(before.runs) == 2
    assert place.judge(OFFLINE)["missing"] == {"offline": "2 of 3 runs measured"}
    said: list[str] = []
    judgement = place.run(OFFLINE, say=said.append)
    assert [text for text in said if "run" in text] == ["offline: run 3 of 3"]
    after = read_cell(place.folder, OFFLINE)
    assert after is not None
    assert [run.wall_s for run in after.runs[:2]] == [run.wall_s for run in before.runs]
    assert np.array_equal(after.runs[1].steps["gpu_ns"], before.runs[1].steps["gpu_ns"])
    assert (judgement["loads"][0]["runs"], judgement["missing"]) == (3, {})
    assert place.run(OFFLINE, repeats=2)["loads"][0]["runs"] == 3  # more than asked for do no harm


def test_another_engine_or_another_scenario_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured or thrown away."""
    monkeypatch.setattr(TimedEngine, "device", "NVIDIA L4")
    with pytest.raises(OtherProfileError, match="gpu NVIDIA H200, not NVIDIA L4"):
        place.run(OFFLINE)
    assert place.built[0].closed
    assert not (place.folder / "offline.json").exists()
    monkeypatch.setattr(TimedEngine, "device", "NVIDIA H200")
    place.run(OFFLINE, repeats=1)
    with pytest.raises(FidelityError, match="of scenario quickstart, not moe: name another"):
        open_suite(place.folder, Basis("moe", BASIS.settings, LOADS), place.profile, place.path)
    identity = replace(place.profile.identity, page_size=64)
    place.replace(identity=identity)
    with pytest.raises(FidelityError, match="an engine with page_size 16, not 64"):
        place.judge(OFFLINE)


def test_a_run_with_a_failed_step_is_no_measurement(place: Place) -> None:
    """Its durations are not those of the load."""
    place.faults = Faults(fails={3})
    with pytest.raises(FidelityError, match="offline: 1 step failed"):
        place.run(OFFLINE, repeats=1)
    assert not (place.folder / "offline.json").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("offline.json", r"offline.json is damaged \(.*\): delete it"),
        ("suite.json", r"suite.json is damaged \(.*\): delete it"),
        ("offline.steps.npz", r"offline.steps.npz cannot be read \(.*\): delete them"),
    ],
)
def test_damage_is_said(place: Place, name: str, match: str) -> None:
    """With the file's name, and what to do."""
    place.run(OFFLINE, repeats=1)
    path = place.folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FidelityError, match=match):
        place.judge(OFFLINE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("offline.json", {"schema": "fidelity-cell/v2"}),
        ("suite.json", {"schema": "fidelity-suite/v1"}),
        ("suite.json", {"schema": "fidelity-suite/v1", "repeats": 1, "engine": None}),
    ],
)
def test_what_lacks_facts_is_damaged(place: Place, name: str, text: dict[str, Any]) -> None:
    """JSON, but not what was written: the file is named, nothing breaks."""
    place.run(OFFLINE, repeats=1)
    (place.folder / name).write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(FidelityError, match=rf"{name}.*(cannot be read|damaged).*delete"):
        place.judge(OFFLINE)


def test_a_cell_of_another_version_is_not_called_unmeasured(place: Place) -> None:
    """It is measured again, or said to be there in another form."""
    place.run(OFFLINE, HALF, repeats=1)
    path = place.folder / "offline.json"
    path.write_text(path.read_text().replace(SCHEMA, "fidelity-cell/v1"), encoding="utf-8")
    missing = place.judge(OFFLINE, HALF)["missing"]
    assert missing == {"offline": "kept as another version of workbench keeps it"}


@pytest.mark.parametrize("name", ["plan_ns", "prefill_pairs"])
def test_steps_without_what_is_asked_are_damaged(place: Place, name: str) -> None:
    """A column that a judgement needs is missed when the cell is read, by its name."""
    place.run(OFFLINE, repeats=1)
    path = place.folder / "offline.steps.npz"
    with np.load(path) as arrays:
        kept = {each: arrays[each] for each in arrays.files if not each.endswith(f".{name}")}
    np.savez(path, **kept)
    with pytest.raises(FidelityError, match=f"cannot be read .*no {name} of run 1"):
        place.judge(OFFLINE)


DAMAGED_TEXTS = [
    (lambda text: text["runs"][0]["summary"].update(mean_tpot_ms=float("nan")), "NaN"),
    (lambda text: text["runs"][0]["summary"].update(mean_tpot_ms="long"), "mean_tpot_ms 'long'"),
    (lambda text: text["runs"][0].update(wall_s=[]), "has wall_s [], which is no number"),
    (lambda text: text["runs"][0]["summary"].pop("completed"), "completed"),
    (lambda text: text["runs"][0]["summary"].update(steps=10**6), "a summary of 1,000,000"),
    (lambda text: text["runs"][0]["summary"].update(mean_step_ms=7.0), "other steps than its"),
    (lambda text: text.update(about=[]), "AttributeError"),
    (lambda text: text["about"].update(commit=7), "its commit is no text"),
]


def test_a_damaged_cell_is_missing_where_nothing_can_be_measured(place: Place) -> None:
    """The others are judged. Where the engine may run, it is up to whoever measured."""
    place.run(OFFLINE, HALF, repeats=1)
    path = place.folder / "offline.json"
    content = path.read_text()
    for change, told in DAMAGED_TEXTS:
        text = json.loads(content)
        change(text)
        path.write_text(json.dumps(text), encoding="utf-8")
        judgement = place.judge(OFFLINE, HALF)
        assert [load["load"] for load in judgement["loads"]] == ["poisson 50 %"]
        assert list(judgement["missing"]) == ["offline"]
        why = judgement["missing"]["offline"]
        assert told in why
        assert re.search(r"offline.json .*: delete .* without --judge-only .* again$", why)
        with pytest.raises(FidelityError, match=r"offline.json .*delete"):
            place.run(OFFLINE, HALF)


def test_steps_that_are_not_the_cells_are_not_judged(place: Place) -> None:
    """Neither broken ones nor those of another load, whose errors would be taken for this one's."""
    place.run(OFFLINE, HALF, repeats=1)
    path = place.folder / "offline.steps.npz"
    content = path.read_bytes()
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    other = (place.folder / "poisson_50_percent.steps.npz").read_bytes()
    flipped = bytes(255 - each for each in content[300:340])
    for damaged in (content[:1000], content[:300] + flipped + content[340:], other):
        path.write_bytes(damaged)
        assert (
            "offline.steps.npz cannot be read" in place.judge(OFFLINE, HALF)["missing"]["offline"]
        )
    for change, told in (
        ({"run0.gpu_ns": 1.0 * kept["run0.gpu_ns"]}, "gpu_ns of run 1 holds no integers"),
        ({"run0.plan_ns": kept["run0.plan_ns"][1:]}, "run 1 has columns of different lengths"),
    ):
        np.savez(path, **kept | change)
        assert told in place.judge(OFFLINE, HALF)["missing"]["offline"]
    path.write_bytes(content)
    assert place.judge(OFFLINE, HALF)["missing"] == {}


def test_steps_after_the_last_answer_are_no_damage(place: Place) -> None:
    """A summary ends with the last request; the engine may have begun one step more."""
    place.run(OFFLINE, repeats=1)
    path = place.folder / "offline.steps.npz"
    with np.load(path) as arrays:
        kept = {name: np.append(arrays[name], arrays[name][-1]) for name in arrays.files}
    np.savez(path, **kept)
    assert place.judge(OFFLINE)["missing"] == {}


def test_a_trace_is_a_load_once_it_is_given(place: Place, tmp_path: Path) -> None:
    """Its beginning stays in the folder, at a rate that is a share of the capacity."""
    trace = TRACES / "azure_2023.csv"
    judgement = place.run(repeats=1, trace=trace)
    assert [load["load"] for load in judgement["loads"]] == ["offline", "poisson 50 %", "trace"]
    assert judgement["loads"][2]["requests"] == 4
    assert judgement["loads"][2]["amplification"]
    assert place.judge() == judgement  # without the trace's own file
    cell = read_cell(place.folder, TRACED)
    assert cell is not None
    assert any("{trace}" in text for text in cell.key.settings)  # wherever the folder is moved
    place.folder = place.folder.rename(tmp_path / "moved")
    assert place.judge() == judgement
    with pytest.raises(FidelityError, match="is of another trace than .*azure_2024.csv"):
        place.run(trace=TRACES / "azure_2024.csv")
    once = tmp_path / "once.csv"
    once.write_text(trace.read_text().splitlines()[0] + "\n2023-11-16 23:59:58.97,48,10\n")
    place.folder = tmp_path / "another"
    with pytest.raises(FidelityError, match="all requests come at once"):
        place.run(trace=once)
    with pytest.raises(TraceError, match="there is no such file"):
        place.run(trace=tmp_path / "none.csv")
