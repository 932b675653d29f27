"""From a folder to a judgement: measure what is missing, then judge all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simulator.profile import Profile
from workbench.fidelity.cells import cell_files, engine_digest
from workbench.fidelity.errors import FidelityError
from workbench.fidelity.judge import Found, Judgement, find_cell, judge, write_judgement
from workbench.fidelity.loads import Load
from workbench.fidelity.measure import Bench
from workbench.fidelity.suite import Suite
from workbench.running.engine_driver import WallClock
from workbench.running.engine_run import Build, Say, build_runner
from workbench.running.engine_setup import EngineOptions

_NO_TRACE = "left out, --trace FILE brings it"


def run_suite(
    suite: Suite,
    loads: Sequence[Load],
    profile: Profile,
    profile_path: Path,
    options: EngineOptions | None,
    *,
    build: Build = build_runner,
    clock: WallClock | None = None,
    say: Say = lambda _: None,
) -> Judgement:
    """Measure those loads whose cells are missing, judge them, and write the judgement.

    It is not written if there are cells of other loads, too, of which it says nothing.

    Args:
        suite: of the folder.
        loads: of it.
        profile: to judge.
        profile_path: its file.
        options: of the engine; None: nothing is measured, and cells of other sources of the engine
            are judged, which the judgement says.
        build: makes the runner.
        clock: of the engine; `HostClock` by default.
        say: told what is going on.

    Raises:
        FidelityError: nothing is measured and nothing may be, or a cell is damaged that could be
            measured again.

    More as `Bench.measure` and `judge`.
    """
    possible = [load for load in loads if not load.is_of_trace or suite.window is not None]
    left_out = {load.name: _NO_TRACE for load in loads if load not in possible}
    digest = engine_digest()
    found = [
        find_cell(suite, load, profile_path, digest, any_sources=options is None)
        for load in possible
    ]
    if options is not None:
        with Bench(suite, profile, options, build=build, clock=clock, say=say) as bench:
            found = [_complete(each, bench) for each in found]
    if not any(each.cell for each in found):
        lacking = "; ".join(f"{each.load.name}: {each.lacks}" for each in found) or _NO_TRACE
        raise FidelityError(
            f"{suite.folder} has nothing to judge ({lacking}): "
            "leave --judge-only out on the machine that was calibrated"
        )
    say("simulating")
    judgement = judge(suite, found, profile, profile_path, left_out)
    others = (load for load in suite.basis.loads if load not in possible)
    if not any(cell_files(suite.folder, load)[0].exists() for load in others):
        write_judgement(suite.folder, judgement)  # else it would replace one of more loads
    return judgement


def _complete(found: Found, bench: Bench) -> Found:
    """The same with a complete cell."""
    if not found.lacks:
        return found
    cell = bench.measure(found.load, found.key, found.cell)
    return replace(found, cell=cell, lacks="")
