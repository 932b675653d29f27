"""`workbench fidelity`: measurements are kept, and judged again and again without the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_executor import FakeClock, FakeRunner, FakeStep, Faults
from made_up_engine import GRAPHS, calibrated, true_ns
from matplotlib.image import imread
from msgspec.structs import replace

from engine.core.plan import StepPlan
from engine.profiling.measuring import features_of
from simulator.cost_model import UNKNOWN, StepShape
from simulator.profile_file import encode_profile
from workbench.engine_setup import EngineOptions
from workbench.fidelity.cells import SCHEMA, engine_digest, read_cell
from workbench.fidelity.errors import FidelityError
from workbench.fidelity.judge import Judgement
from workbench.fidelity.loads import Load
from workbench.fidelity.picture import draw
from workbench.fidelity.run import run_suite
from workbench.fidelity.suite import Basis, open_suite
from workbench.fidelity.table import table_lines
from workbench.profile_match import OtherProfileError
from workbench.trace_errors import TraceError

TRACES = Path(__file__).parent / "fixtures" / "traces"
SHORT = """workload={kind: synthetic, num_requests: 40,
    prompt_len: {kind: uniform, min: 20, max: 300}, output_len: {kind: uniform, min: 5, max: 40}}"""
OFFLINE = Load("offline", SHORT)
HALF = Load("poisson 50 %", SHORT, "load={kind: poisson, request_rate: {rate}}", 0.5)
TRACED = Load("trace", "workload={kind: trace, path: {trace}}",
              "load={kind: trace, time_scale: {scale}}", 0.5)  # fmt: skip
LOADS = (OFFLINE, HALF, TRACED)
POOL = {"max_num_batched_tokens": 512, "max_running_requests": 16,
        "cuda_graph_batch_sizes": list(GRAPHS)}  # fmt: skip
BASIS = Basis("quickstart", (f"deployment.pools=[{json.dumps(POOL)}]",), LOADS)
DUMMY = EngineOptions(load_format="dummy")


class TimedEngine(FakeRunner):
    """An H200 whose steps take what `test_calibrate.true_ns` says."""

    device = "NVIDIA H200"

    def facts(self) -> dict[str, Any]:
        known = {"device": self.device, "dtype": "bfloat16", "page_size": 16}
        return {**super().facts(), **known}

    def launch(self, plan: StepPlan) -> FakeStep:
        if plan.plan_id == 0:
            self._free_ns = 0  # another run, another time
        return super().launch(plan)


class Place:
    """A folder, a profile, and engines that are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "measured"
        done, _ = calibrated(folder)
        self.profile, self.path = done.profile, done.path
        self.built: list[TimedEngine] = []
        self.faults: Faults | None = None

    def run(
        self, *loads: Load, repeats: int | None = None, trace: Path | None = None,
        options: EngineOptions | None = DUMMY, say: Any = lambda _: None,
    ) -> Judgement:  # fmt: skip
        suite = open_suite(
            self.folder, BASIS, self.profile, self.path, repeats=repeats, trace=trace,
            make=options is not None,
        )  # fmt: skip
        return run_suite(
            suite, loads or LOADS, self.profile, self.path, options, build=self._build,
            clock=FakeClock(), say=say,
        )  # fmt: skip

    def judge(self, *loads: Load) -> Judgement:
        return self.run(*loads, options=None)

    def replace(self, **changes: Any) -> None:
        """Another profile in the place of the first."""
        self.profile = replace(self.profile, **changes)
        self.path = self.path.with_name(f"{self.profile.name}.json")
        self.path.write_bytes(encode_profile(self.profile))

    def stamps(self) -> dict[str, int]:
        kept = (path for path in self.folder.iterdir() if not path.name.startswith("judged"))
        return {path.name: path.stat().st_mtime_ns for path in kept}

    def _build(self, config: Any, clock: Any, _: Any) -> TimedEngine:
        def step_ns(plan: StepPlan) -> int:
            return true_ns(StepShape(*features_of(plan), UNKNOWN))

        self.built.append(TimedEngine(config, clock, step_ns=step_ns, faults=self.faults))
        return self.built[-1]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


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
