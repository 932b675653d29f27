"""Measures loads on the engine, which starts when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import msgspec

from engine.core.events import Segment, concatenate
from engine.core.journal import Journal
from simulator.profile import Profile
from workbench.fidelity.cells import (
    Cell,
    Key,
    MeasuredRun,
    requests_digest,
    step_columns,
    write_cell,
)
from workbench.fidelity.errors import FidelityError
from workbench.fidelity.loads import Load
from workbench.fidelity.suite import Suite
from workbench.record.provenance import source_commit
from workbench.running.engine_driver import HostClock, WallClock
from workbench.running.engine_run import Build, EngineRun, Runner, Say, build_runner, prepare
from workbench.running.engine_setup import EngineOptions
from workbench.running.parity import ParityError, follow
from workbench.running.profile_match import identity_of, refuse_other_engine
from workbench.scenario.source import load_scenario


class _Kept:
    """A runner that several runs use one after the other, with as many pages as each asks for."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.num_pages = runner, runner.num_pages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def with_pages(self, wanted: int | None) -> _Kept:
        """The same with fewer pages."""
        self.num_pages = min(wanted or self._runner.num_pages, self._runner.num_pages)
        return self

    def close(self) -> None:
        """The next run needs it."""

    def end(self) -> None:
        """Let go of the device's memory."""
        self._runner.close()


class Bench:
    """The engine, for one load after the other.

    Args:
        suite: of which the loads are.
        profile: of the engine; another one is refused.
        options: of the engine.
        build: makes the runner.
        clock: `HostClock` by default.
        say: told what is going on.
    """

    def __init__(
        self,
        suite: Suite,
        profile: Profile,
        options: EngineOptions,
        *,
        build: Build = build_runner,
        clock: WallClock | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self._suite, self._profile, self._options = suite, profile, options
        self._build, self._say = build, say
        self._clock = clock or HostClock()
        self._kept: _Kept | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kept is not None:
            self._kept.end()

    def measure(self, load: Load, key: Key, before: Cell | None) -> Cell:
        """Run a load as often as the suite asks; every run is written as soon as it is done.

        Args:
            load: of the suite.
            key: of the cell to be.
            before: a cell of this key that lacks some runs.

        Raises:
            ScenarioErrors: the engine cannot run it.
            OtherProfileError: the engine is not the one that was calibrated.
            FidelityError: a run broke off, or a step of it failed.

        More as `build` and `write_cell`.
        """
        kept = self._start(load)
        cell = before or Cell(load.name, key, about=self._about(kept))
        for number in range(len(cell.runs), self._suite.repeats):
            self._say(f"{load.name}: run {number + 1} of {self._suite.repeats}")
            run, parity = self._run(load, key, kept, first=number == 0)
            cell = replace(cell, runs=(*cell.runs, run), parity=parity or cell.parity)
            write_cell(self._suite.folder, load, cell)
        return cell

    def _start(self, load: Load) -> _Kept:
        """The engine, with all the pages that there are."""
        if self._kept is not None:
            return self._kept
        runners: list[Runner] = []

        def built(config: Any, clock: Callable[[], int], say: Say) -> Runner:
            # A load with few pages may be the first; the engine has them all, for those after it.
            runners.append(self._build(replace(config, num_pages=self._pages()), clock, say))
            return runners[0]

        prepare(
            self._suite.loaded(load), "none", self._options, build=built, clock=self._clock,
            say=self._say,
        )  # fmt: skip
        kept = _Kept(runners[0])
        try:
            refuse_other_engine(self._profile, identity_of(kept.facts(), kept.spec))
        except BaseException:
            kept.end()
            raise
        self._kept = kept
        return kept

    def _pages(self) -> int | None:
        """As many as the scenario says before loads change it."""
        basis = self._suite.basis
        plain = load_scenario(basis.scenario, basis.settings).scenario
        return plain.deployment.pools[0].num_pages

    def _run(self, load: Load, key: Key, kept: _Kept, *, first: bool) -> tuple[MeasuredRun, str]:
        """One run, and what of its decisions is the simulator's if it is the first."""
        begin = time.monotonic()
        loaded = self._suite.loaded(load)
        (pool,) = loaded.scenario.deployment.pools
        ready = prepare(
            loaded, "steps", self._options, clock=self._clock,
            build=lambda *_: kept.with_pages(pool.num_pages),
        )  # fmt: skip
        if requests_digest(ready.workload) != key.requests_sha256:
            raise FidelityError(
                f"{load.name}: the engine would be asked for other requests than the simulator, "
                "because it holds less: choose shorter ones"
            )
        segments: list[Segment] = []
        ended = ready.run([segments.append], journal=first)
        if ended.failure is not None:
            raise ended.failure
        if ended.faults or ended.summary is None:
            raise FidelityError(
                f"{load.name}: {'; '.join(ended.faults)}: such a run says nothing of durations; "
                "the same command measures it again"
            )
        steps = step_columns(concatenate(segments, ("steps",))["steps"])
        wall_s = round(time.monotonic() - begin, 3)
        parity = _parity(ready, ended.journals[0]) if first else ""
        return MeasuredRun(_numbers(ended.summary), wall_s, steps), parity

    def _about(self, kept: _Kept) -> dict[str, Any]:
        """What a reader may want to know of the engine."""
        facts = kept.facts()
        identity = msgspec.to_builtins(identity_of(facts, kept.spec))
        return {
            "identity": identity, "commit": source_commit(), "began_unix_s": round(time.time()),
            "num_pages": kept.num_pages, "load_format": self._options.load_format,
        }  # fmt: skip


def _numbers(summary: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a summary; None where there is nothing to measure."""
    return {
        name: value
        for name, value in summary.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _parity(ready: EngineRun, journal: Journal) -> str:
    files = {key: facts.path for key, facts in ready.header.inputs.items()}
    try:
        same = follow(ready.header, journal.to_array(), files)
    except ParityError as error:
        return str(error)
    return f"all {same.steps:,} steps"
