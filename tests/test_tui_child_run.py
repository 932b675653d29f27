"""A run in a child process: its frames arrive, it can be ended early, and a crash tells itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.record.run_record import RunReader
from workbench.record.stream import HeaderFrame, MarkFrame, SummaryFrame
from workbench.tui.child_run import ChildRun, Crash, RunCommand, Taken
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store import RunStore

SMALL = RunCommand(("simulate", "quickstart", "--set", "workload.num_requests=150"))
LONG = RunCommand(("simulate", "quickstart", "--set", "workload.num_requests=60000"))


async def frames_of(child: ChildRun, until: int | None = None) -> list[Taken]:
    """What a child sends, or its first frames."""
    frames: list[Taken] = []
    while child.running and (until is None or len(frames) < until):
        for frame in child.take():
            frames.append(frame)
            if until is not None and len(frames) >= until:
                break
        await asyncio.sleep(0.01)
    return frames


async def backlog_of(child: ChildRun, frames: int) -> None:
    """Wait until so many frames are ready."""
    while child.backlog < frames:  # noqa: ASYNC110 - a thread counts them
        await asyncio.sleep(0.02)


def test_all_frames_of_a_run_arrive(tmp_path: Path) -> None:
    """Header first, then where it is recorded, every row of the record, and its summary last."""

    async def run() -> tuple[ChildRun, list[Taken], Crash | None]:
        child = ChildRun(SMALL, tmp_path)
        await child.start()
        frames = await frames_of(child)
        return child, frames, await child.wait()

    child, frames, crash = asyncio.run(run())
    assert crash is None
    assert isinstance(frames[0], HeaderFrame)
    assert isinstance(frames[1], MarkFrame)
    assert isinstance(frames[-1], SummaryFrame)
    assert child.record is not None
    assert child.summary is frames[-1]
    store, recorded = RunStore(frames[0].header), RunReader(child.record)
    for frame in frames[1:]:
        store.take(frame)
    for table in ("requests", "steps", "items"):
        for name, column in recorded.table(table).items():
            ours, theirs = store.table(table), recorded.table(table)
            order = np.argsort(theirs["request_id"], kind="stable") if table == "requests" else ...
            np.testing.assert_array_equal(ours[name], column[order])
    assert store.summary == recorded.summary


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_ended_run_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    """After `cancel` the child ends by itself, and its record says that it was interrupted.

    So it does if that finds it writing into a pipe that is full, with Python's buffer or without.
    """
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)

    async def run() -> tuple[ChildRun, Crash | None]:
        child = ChildRun(LONG, tmp_path)
        await child.start()
        await backlog_of(child, 64)
        child.cancel()
        await frames_of(child)
        return child, await child.wait()

    child, crash = asyncio.run(run())
    assert crash is None
    assert child.record is not None
    assert child.summary is not None
    assert child.summary.status == "interrupted"
    kept = RunReader(child.record)
    assert kept.status == "interrupted"
    assert kept.table("steps")["step"].size > 0


def test_a_crash_tells_its_last_lines(tmp_path: Path) -> None:
    """A child that fails gives its exit code and what it said on stderr."""

    async def run() -> Crash | None:
        child = ChildRun(RunCommand(("simulate", "no_such_scenario")), tmp_path)
        await child.start()
        await frames_of(child)
        return await child.wait()

    crash = asyncio.run(run())
    assert crash is not None
    assert crash.exit_code == 2
    assert "no_such_scenario" in crash.text()


def test_a_killed_run_says_by_what(tmp_path: Path) -> None:
    """A child that a signal kills is a crash that names the signal."""

    async def run() -> Crash | None:
        child = ChildRun(LONG, tmp_path)
        await child.start()
        await frames_of(child, until=2)
        assert child._process is not None
        child._process.kill()
        await frames_of(child)
        return await child.wait()

    crash = asyncio.run(run())
    assert crash is not None
    assert "SIGKILL" in crash.message


def test_a_reader_that_is_behind_holds_the_child_up(tmp_path: Path) -> None:
    """Frames that nobody takes fill a bounded queue; the child waits instead of memory growing."""

    async def run() -> tuple[int, bool]:
        child = ChildRun(LONG, tmp_path)
        await child.start()
        await backlog_of(child, 64)
        await asyncio.sleep(0.3)
        backlog, running = child.backlog, child.running
        await child.close()
        return backlog, running

    assert asyncio.run(run()) == (64, True)


def test_close_ends_a_run_that_does_not_listen(tmp_path: Path) -> None:
    """A child that ignores the wish to stop is killed after a grace."""
    deaf = tmp_path / "deaf"

    class Deaf(RunCommand):
        def for_child(self) -> tuple[str, ...]:
            code = "import pathlib, signal, time; signal.signal(2, signal.SIG_IGN); "
            code += f"pathlib.Path({str(deaf)!r}).touch(); time.sleep(60)"
            return (sys.executable, "-c", code)

    async def run() -> int | None:
        child = ChildRun(Deaf(()), tmp_path)
        await child.start()
        while not deaf.exists():  # noqa: ASYNC110 - a process makes it
            await asyncio.sleep(0.01)
        await child.close()
        assert child._process is not None
        return child._process.returncode

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.tui.child_run._GRACE_S", 0.3)
        assert asyncio.run(run()) == -9


def test_draining_keeps_to_its_budget(tmp_path: Path) -> None:
    """One turn of feeding a store takes little more than its budget, however much is ready."""
    import time

    async def run() -> float:
        child = ChildRun(LONG, tmp_path)
        await child.start()
        (header,) = await frames_of(child, until=1)
        assert isinstance(header, HeaderFrame)
        opened = OpenedRun.streamed(header, child, None)
        await backlog_of(child, 60)
        turns = []
        for _ in range(20):
            began = time.thread_time()
            opened.drain(0.004)
            turns.append(time.thread_time() - began)
        await child.close()
        return sorted(turns)[10]

    assert asyncio.run(run()) < 0.03
