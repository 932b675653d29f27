"""The compare screen, key by key, on a run and its fork."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_runs import forked, record, simulation_of
from textual.pilot import Pilot
from textual.widgets import Input
from tui_pilot import drive, shown, until

from workbench.analysis.compare import compare_runs
from workbench.record.run_record import RunReader
from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_pane import ChartPane
from workbench.tui.compare.fork import ForkDialog, settings_of
from workbench.tui.compare.screen import CompareScreen
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store.pairing import LOCKS

FORK_STEP = 40


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def readers(folder: Path) -> tuple[RunReader, RunReader]:
    """A run, and the same with a smaller batch from a step on."""
    del folder
    parent = record(simulation_of("synthetic", "one", "pages"))
    return parent, forked(parent, FORK_STEP, "deployment.pools.0.max_running_requests=4")


async def compared(
    app: WorkbenchApp, pilot: Pilot[None], readers: tuple[RunReader, RunReader]
) -> CompareScreen:
    """The screen with its verdict."""
    app.compare_runs(*(OpenedRun.recorded(reader.path) for reader in readers))
    await shown(app, pilot, "compare")
    screen = app.screen
    assert isinstance(screen, CompareScreen)
    await until(pilot, lambda: screen.state.comparison is not None)
    await pilot.pause(0.1)
    return screen


def text_of(screen: CompareScreen) -> str:
    return "\n".join(
        pane.render_line(y).text
        for pane in screen.query(ChartPane)
        if pane.display
        for y in range(pane.size.height)
    )


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (200, 60), (50, 14)])
def test_it_shows_what_workbench_compare_says(readers, size) -> None:
    """Header differences, the first divergence and the split metrics are those of the command."""
    expected = compare_runs(*readers)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await compared(app, pilot, readers)
        found = screen.state.comparison
        assert found is not None
        assert found.divergence == expected.divergence
        assert found.metrics == expected.metrics
        assert found.durations == expected.durations
        shown_text = text_of(screen)
        assert "max_running_requests 24 → 4" in shown_text
        assert f"first divergence: step {expected.divergence.step:,}" in shown_text
        assert screen.player.position == expected.divergence.step
        if size == (200, 60):
            by_name = {metric.name: metric for metric in expected.metrics}
            split = {part.name: part for part in expected.durations.splits}["p99_ttft_ms"]
            row = next(line for line in shown_text.splitlines() if line.startswith("p99_ttft_ms"))
            for value in (by_name["p99_ttft_ms"].a, by_name["p99_ttft_ms"].b):
                assert f"{value:,.1f}" in row
            assert f"{split.decisions_ms:+,.1f}" in row

    drive(journey, size)


def test_locks_jumps_views_and_swapping(readers) -> None:
    """l changes the lock, n and e go to differences, v shows other findings, s swaps."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await compared(app, pilot, readers)
        state = screen.state
        for lock in (*LOCKS[1:], LOCKS[0]):
            await pilot.press("l")
            assert state.lock == lock
        await pilot.press("home")
        await pilot.press("l", "l")  # by step
        await pilot.press("n")
        comparison = state.comparison
        assert comparison is not None
        assert screen.player.position == comparison.divergence.step
        await pilot.press("N")
        assert screen.player.position <= comparison.divergence.step
        await pilot.press("e")
        await pilot.pause(0.1)
        assert state.view == "divergence"
        assert comparison.divergence.sentences[0][:40] in text_of(screen)
        await pilot.press("v")
        await pilot.press("v")
        await pilot.pause(0.1)
        assert state.view == "differences"
        assert "deployment.pools[0].max_running_requests" in text_of(screen) or (
            "max_running_requests" in text_of(screen)
        )
        position, a = state.pairing().position_in_b(screen.player.position), state.a
        await pilot.press("s")
        assert state.b is a
        assert screen.player.position == position
        await until(pilot, lambda: state.comparison is not None)
        assert state.comparison is not None
        assert state.comparison.metrics[0].a == comparison.metrics[0].b
        copied = screen.selection()
        assert copied is not None
        assert copied["a"]["run"] == state.a.label
        assert screen.command_line() == (
            f"workbench compare {state.a.store.path} {state.b.store.path}"
        )

    drive(journey)


def test_a_fork_is_asked_for_checked_started_and_compared(readers) -> None:
    """F lists the settings with their values, refuses nonsense with a sentence, then compares."""
    run = OpenedRun.recorded(readers[0].path)
    run.player.seek(FORK_STEP)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("F")
        dialog = app.screen
        assert isinstance(dialog, ForkDialog)
        wanted = "deployment.pools.0.max_running_requests"
        for _ in range(list(settings_of(run.store.header)).index(wanted)):
            await pilot.press("down")
        await pilot.pause()
        field = dialog.query_one(Input)
        assert field.value == "24"
        await pilot.press("x", "enter")
        assert app.screen is dialog
        problem = str(dialog.query_one(".problem").render())
        assert "integer" in problem or "number" in problem
        await pilot.press("backspace", "4", "enter")
        await shown(app, pilot, "compare")
        screen = app.screen
        assert isinstance(screen, CompareScreen)
        assert screen.player.position == FORK_STEP
        await until(pilot, lambda: screen.state.comparison is not None)
        fork = screen.state.b.store
        assert fork.status == "complete"
        facts = fork.header.forks[-1]
        assert (facts.step, facts.changes) == (FORK_STEP, {wanted: (24, 4)})
        comparison = screen.state.comparison
        assert comparison is not None
        assert comparison.divergence.step >= FORK_STEP

    drive(journey, start=run)


def test_a_comparison_that_fails_says_why(readers) -> None:
    """A record that vanishes before it is compared is named; the strips stay."""
    a, b = (OpenedRun.recorded(reader.path) for reader in readers)
    b.store.path = Path("gone")

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        app.compare_runs(a, b)
        await shown(app, pilot, "compare")
        screen = app.screen
        assert isinstance(screen, CompareScreen)
        await until(pilot, lambda: screen.state.trouble is not None)
        await until(pilot, lambda: "gone is no run" in text_of(screen))
        assert "B step" in text_of(screen)

    drive(journey)


def test_runs_of_different_deployments_are_compared_replica_by_replica(folder: Path) -> None:
    """Where B has fewer replicas, its last one stands beside those of A that are too many."""
    a = OpenedRun.recorded(record(simulation_of("synthetic", "three"), folder / "a").path)
    b = OpenedRun.recorded(record(simulation_of("synthetic", "one"), folder / "b").path)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        app.compare_runs(a, b)
        await shown(app, pilot, "compare")
        screen = app.screen
        assert isinstance(screen, CompareScreen)
        await until(pilot, lambda: screen.state.comparison is not None)
        for key in ("w", "n", "w", "l", "n", "s", "w", "end", "s", "home"):
            await pilot.press(key)
            await pilot.pause()
        assert "A step" in text_of(screen)

    drive(journey)


def test_a_run_that_cannot_be_forked_says_why(readers) -> None:
    """A run that goes on, or is not recorded, is refused with a sentence; nothing starts."""
    run = OpenedRun.recorded(readers[0].path)
    run.store.path = None

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("F")
        await pilot.pause()
        assert not isinstance(app.screen, ForkDialog)
        assert any("not recorded" in note.message for note in app._notifications)

    drive(journey, start=run)
