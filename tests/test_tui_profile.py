"""The roofline moves with the cursor; the gaps screen shows one workload after the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import invoke
from gap_stories import left_here
from recorded_runs import recorded
from textual.pilot import Pilot
from tui_pilot import drive, shown, until

import engine.core
from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from simulator.roofline import RooflineCostModel
from workbench.profile.gap_text import verdict
from workbench.profile.latest_gaps import MEASURED_HERE
from workbench.profile.run_roofline import NoRooflineError, RunRoofline, shape_of_row
from workbench.record.recorded_model import recorded_model
from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.gaps.pane import StoryPane
from workbench.tui.opened_run import OpenedRun
from workbench.tui.roofline.screen import RooflineScreen
from workbench.tui.roofline.state import TRAIL, RooflineState


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    """A simulated run of prompts among decode steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        record = recorded("workload.num_requests=40", name="prefill_interference")
        return OpenedRun.recorded(record.path.absolute())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured in the current folder."""
    monkeypatch.chdir(tmp_path)


def screen_text(app: WorkbenchApp) -> str:
    """All that is shown."""
    if isinstance(app.screen, ChartScreen):
        app.screen.draw_panes()
    width = app.size.width
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text[:width] for strip in lines)


def test_a_step_is_divided_whole(run: OpenedRun) -> None:
    """Classes and gaps sum to the step; what is predicted is the cost model's step."""
    state = RooflineState(run.store, run.player)
    for position in (0, 5, run.player.head // 2, run.player.head):
        run.player.seek(position)
        found = state.now()
        assert found is not None
        parts = sum(point.time_us for point in found.points) + found.rest_us
        assert parts == pytest.approx(found.step_us)
        assert found.rest_us > 0
        assert found.step_us == run.player.steps.at(position)["gpu_ns"] / 1e3
        model = state.model()
        assert model is not None
        row = run.player.steps.at(position)
        costs = RooflineCostModel(load_model_spec(run.store.header.model), model.gpu)
        assert state.predicted_us() == costs.step_cost(shape_of_row(row))[0] / 1e3


def test_points_move_with_the_batch(run: OpenedRun) -> None:
    """A step that computes a prompt has its products further right than one that decodes."""
    steps = run.player.steps
    prompts = steps.column("prefill_tokens")
    model = RunRoofline(run.store.header)
    heavy = model.at(steps.at(int(prompts.argmax()) + steps.first))
    light = model.at(steps.at(int((prompts == 0).argmax()) + steps.first))
    points = [{point.kind: point for point in roof.points} for roof in (heavy, light)]
    assert points[0]["qkv"].intensity > 2 * points[1]["qkv"].intensity
    assert points[0]["qkv"].bound == "compute"
    assert points[1]["qkv"].bound == "memory"
    assert "attention_prefill" in points[0]
    assert "attention_prefill" not in points[1]


def test_what_ifs_are_predictions_of_the_same_step(run: OpenedRun) -> None:
    """Half the bytes of weights take less time; twice the batch takes more, and gives more."""
    steps = run.player.steps
    row = steps.at(int((steps.column("prefill_tokens") == 0).argmax()) + steps.first)
    batch, fp8, tp = RunRoofline(run.store.header).what_ifs(row)
    count = row["decode_requests"]
    assert batch.name == f"batch {count:,} → {2 * count:,}"
    assert batch.step >= 1
    assert batch.tokens_per_s == pytest.approx(2 / batch.step)
    assert 0.5 < fp8.step < 1
    model, gpu = load_model_spec(run.store.header.model), load_hardware_spec("h200")
    shape = shape_of_row(row)
    one, two = (
        RooflineCostModel(model, gpu, tensor_parallel_size=count).step_cost(shape)[0]
        for count in (1, 2)
    )
    assert tp.step == pytest.approx(two / one)
    assert 0.5 < tp.step < 1
    assert shape_of_row(row).decode_requests == count


def test_fp8_brings_no_class_over_a_ridge_that_it_moves(run: OpenedRun) -> None:
    """Half the bytes is twice the intensity, and half the time of arithmetic twice the ridge."""
    row = {"decode_requests": 100, "decode_tokens": 100, "decode_context": 51_200,
           "decode_max_context": 512, "sampled_tokens": 100, "graph_batch": 104,
           "gpu_ns": 9_000_000}  # fmt: skip
    _, fp8, _ = RunRoofline(run.store.header).what_ifs(row)
    assert (fp8.name, fp8.crossed) == ("fp8 weights", ())


def test_a_model_is_looked_for_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the current folder, where another may be called so; a changed one is refused."""
    cards = Path(engine.core.__file__).with_name("model_cards")
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, card in ((there, "Qwen3-0.6B"), (here, "Llama-3.1-8B")):
        folder.mkdir()
        shutil.copy(cards / f"{card}.json", folder / "own.json")
    monkeypatch.chdir(there)
    path = recorded(
        "model={path: own.json}", "load.warmup_requests=0", "workload.num_requests=4"
    ).path.absolute()
    monkeypatch.chdir(here)
    header = OpenedRun.recorded(path).store.header
    assert recorded_model(header).num_layers == load_model_spec("Qwen3-0.6B").num_layers
    with (there / "own.json").open("a") as file:
        file.write("\n")
    with pytest.raises(NoRooflineError, match=r"own\.json has changed since the run"):
        RunRoofline(header)


def test_a_run_of_an_unknown_gpu_has_none(run: OpenedRun) -> None:
    """And the reason is told; so it is of a model whose file is gone."""
    other = RunHeaderOf(run)
    with pytest.raises(NoRooflineError, match="nothing is known of the ceilings of abacus"):
        RunRoofline(other.with_gpu("abacus"))
    with pytest.raises(NoRooflineError, match="shape of its model"):
        RunRoofline(other.with_model("nowhere.json"))


class RunHeaderOf:
    """Headers like that of a run."""

    def __init__(self, run: OpenedRun) -> None:
        self._header = run.store.header

    def with_gpu(self, gpu: str):
        from msgspec.structs import replace as changed

        return changed(self._header, gpu=gpu)

    def with_model(self, model: str):
        from msgspec.structs import replace as changed

        return changed(self._header, model=model, scenario={})


def test_the_trail_is_the_steps_before(run: OpenedRun) -> None:
    """As many columns back as it is long, fewer at the beginning."""
    state = RooflineState(run.store, run.player)
    for position, length in ((0, 0), (3, 3), (run.player.head, min(TRAIL, run.player.head))):
        run.player.seek(position)
        assert len(state.trail()) == length


def test_the_roofline_screen_follows_the_cursor(run: OpenedRun) -> None:
    """Another step, other figures; e tells them in words, and narrow screens choose with v."""
    seen: list[str] = []

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("home", "6")
        await shown(app, pilot, "roofline")
        screen = app.screen
        assert isinstance(screen, RooflineScreen)
        for key in ("full_stop", "pagedown", "e", "e"):
            await pilot.press(key)
            await pilot.pause(0.05)
            seen.append(screen_text(app))
        assert screen.selection() is not None

    drive(journey, start=run)
    assert "gate_up" in seen[0]
    assert seen[0] != seen[1]
    assert "it moves" in seen[2] or "it does" in seen[2]
    assert "TFLOP/s over FLOP/byte" in seen[1]
    assert "TFLOP/s over FLOP/byte" not in seen[2]
    assert "TFLOP/s over FLOP/byte" in seen[3]

    async def narrow(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("6")
        await shown(app, pilot, "roofline")
        await pilot.pause(0.05)
        seen.append(screen_text(app))
        await pilot.press("v")
        await pilot.pause(0.05)
        seen.append(screen_text(app))

    drive(narrow, (80, 24), start=run)
    assert "what if" in seen[-2]
    assert "TFLOP/s over FLOP/byte" in seen[-1]


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 10), (20, 5)])
def test_gaps_are_shown_at_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """One workload after the other, around the end; no run need be open."""
    stories = left_here(tmp_path)
    seen: list[str] = []

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "scenarios")
        await pilot.press("7")
        await shown(app, pilot, "gaps")
        pane = app.screen.query_one(StoryPane)
        for _ in stories:
            await pilot.pause(0.05)
            seen.append(screen_text(app))
            await pilot.press("n")
        await pilot.press("v")
        await pilot.pause(0.05)
        seen.append(screen_text(app))
        await pilot.press("N")
        await until(pilot, lambda: pane.chosen == len(stories) - 1)

    drive(journey, size)
    if size[0] >= 80:
        assert "first call as a graph: 100.0 ms" in seen.pop()
        for story, text in zip(stories, seen, strict=True):
            assert verdict(story)[:40] in text
            assert "GPU busy" in text


def test_without_stories_the_screen_says_how_to_get_them() -> None:
    """With the command; what cannot be read is told."""
    seen: list[str] = []

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "scenarios")
        await pilot.press("7")
        await shown(app, pilot, "gaps")
        await pilot.pause(0.1)
        seen.append(screen_text(app))

    drive(journey)
    assert "workbench profile gaps --before eager --after graph" in seen[0]
    MEASURED_HERE.parent.mkdir()
    MEASURED_HERE.write_text("{")
    drive(journey)
    assert "no result of" in seen[1]


def test_a_run_of_a_cpu_says_at_any_width_that_it_has_no_roofline(tmp_path: Path) -> None:
    """Whole words in the pane that is shown; the CPU is the reason, whatever its model is."""
    pytest.importorskip("torch")
    ended = invoke("run", "engine_on_cpu", "--load-format", "dummy", "--device", "cpu", "--quiet",
                   "--num-prompts", "2")  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    cpu = OpenedRun.recorded(next((tmp_path / "runs").iterdir()))
    for size in ((80, 24), (120, 36)):
        seen: list[str] = []

        async def journey(app: WorkbenchApp, pilot: Pilot[None], seen: list[str] = seen) -> None:
            await shown(app, pilot, "live")
            await pilot.press("6")
            await shown(app, pilot, "roofline")
            for key in ("v", "v", "e"):
                seen.append(screen_text(app))
                await pilot.press(key)
                await pilot.pause(0.05)
            seen.append(screen_text(app))

        drive(journey, size, start=cpu)
        for text in seen:
            words = " ".join(text.split())
            assert words.count("nothing is known of a CPU's ceilings: rooflines are of GPUs.") == 1


def test_sentences_are_whole_on_a_small_screen(run: OpenedRun, tmp_path: Path) -> None:
    """Those of classes, a story's verdict and how to measure are wrapped, not cut."""
    seen: list[str] = []
    stories = left_here(tmp_path)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("6", "e")
        await shown(app, pilot, "roofline")
        await pilot.pause(0.05)
        seen.append(" ".join(screen_text(app).split()))
        screen = app.screen
        assert isinstance(screen, RooflineScreen)
        found = screen.state.now()
        assert found is not None
        seen.append(found.points[-1].words)
        await pilot.press("7")
        await shown(app, pilot, "gaps")
        await pilot.pause(0.05)
        seen.append(" ".join(screen_text(app).split()))

    drive(journey, (80, 24), start=run)
    assert seen[1] in seen[0]
    assert verdict(stories[0]) in seen[2]
    MEASURED_HERE.unlink()
    drive(journey, (80, 24), start=run)
    assert "cold, eager and as CUDA Graphs, and leaves profile/gaps.json" in seen[-1]
