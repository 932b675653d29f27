"""The fuzzer itself: what it does is a function of its seed, what it finds can be repeated."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import invoke
from core_harness import fresh_seeds
from textual.pilot import Pilot
from tui_pilot import drive, shown

from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode
from workbench.fuzz import canary, lines
from workbench.fuzz.campaign import Plan, carry_out, find_again, run_block
from workbench.fuzz.case_file import repeat_file, write_case
from workbench.fuzz.explore import Failure, explore, repeat
from workbench.fuzz.failure_record import record_failure
from workbench.fuzz.machine import Machine
from workbench.fuzz.machines import FAULTS, MACHINES, machine_of
from workbench.fuzz.rig import LawError
from workbench.fuzz.shrink import shrink
from workbench.fuzz.watchdog import HangError, watchdog
from workbench.record.run_record import RunReader
from workbench.tui.app import WorkbenchApp
from workbench.tui.opened_run import OpenedRun

REGRESSIONS = sorted(Path(__file__).with_name("fuzz_regressions").glob("*.ops.json"))


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem.removesuffix(".ops"))
def test_what_was_found_once_stays_mended(path: Path) -> None:
    """Each case once broke a law: of the sources as they were, or of a mutant of them."""
    failure = repeat_file(path, MACHINES)
    assert failure is None, failure


def test_there_are_regressions() -> None:
    assert len(REGRESSIONS) >= 24


@pytest.mark.parametrize("name", MACHINES)
def test_runs_that_nobody_has_seen_break_no_law(name: str) -> None:
    """A few dozen fresh seeds of each machine."""
    for seed in fresh_seeds(30):
        failure = explore(MACHINES[name], seed, FAULTS).failure
        assert failure is None, f"workbench fuzz --machines {name} --seed {seed} --runs 1"


@pytest.mark.parametrize("name", MACHINES)
def test_a_run_is_a_function_of_its_seed(name: str) -> None:
    """Two runs of a seed do the same, and so does the list of its operations."""
    for seed in range(8):
        one, other = (explore(MACHINES[name], seed, FAULTS) for _ in range(2))
        assert (one.operations, one.checks, one.marks) == (
            other.operations,
            other.checks,
            other.marks,
        )


_DIGEST = """
import hashlib, sys
from engine.core.events import Detail, EventLog
from workbench.fuzz.machines import FAULTS, MACHINES
import random
digest = hashlib.sha256()
for name in ("scheduler", "cluster", "world"):
    machine = MACHINES[name]
    for seed in range(10):
        rng = random.Random(seed)
        setup = machine.draw(rng, machine.faults)
        log = EventLog(Detail.PAGES)
        trial = machine.open(seed, setup, log)
        for _ in range(60):
            operation = trial.choose(rng)
            digest.update(repr(operation).encode())
            trial.apply(operation)
        trial.finish()
        for table, columns in log.tables().items():
            for column, values in columns.items():
                digest.update(f"{table}/{column}".encode() + values.tobytes())
print(digest.hexdigest())
"""


def test_all_events_are_the_same_in_every_process() -> None:
    """One SHA-256 over operations and event tables, whatever Python's own hashes are."""
    digests = set()
    for hash_seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "WORKBENCH_NATIVE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_seed_stands_for_one_machine() -> None:
    """Whatever else runs; all machines have their share of seeds."""
    drawn = [machine_of(seed).name for seed in range(400)]
    assert set(drawn) == set(MACHINES)
    assert machine_of(7, ("cluster",)).name == "cluster"


@pytest.mark.parametrize("seed", range(6))
def test_the_allocator_may_fail_at_every_call(seed: int) -> None:
    """For every n: at the n-th request for pages there are none, and later there are again."""
    machine, rng = MACHINES["scheduler"], random.Random(seed)
    setup = replace(machine.draw(rng, frozenset()), every=8)
    for call in range(1, 500):
        trial = machine.open(seed, setup)
        trial._hog.fail_at(call)
        for ask in setup.asks:
            trial.apply(("send", ask.request_id))
            for name in ("plan", "commit", "plan"):
                trial.apply((name,))
        for _ in range(20):
            trial.apply(("plan",))
            trial.apply(("commit",))
        failed = trial._hog.was_used
        trial.finish()
        if not failed:  # nobody asks as often as that
            break
    assert 3 < call < 499


# ---- a planted bug -------------------------------------------------------------------------------


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The scheduler machine, with a prefix cache that forgets the locks of what it splits."""
    split = RadixCache._split

    def forgetful(cache: RadixCache, node: RadixNode, pages: int) -> RadixNode:
        upper = split(cache, node, pages)
        upper.locks = 0
        return upper

    monkeypatch.setattr(RadixCache, "_split", forgetful)
    return MACHINES["scheduler"]


def find(machine: Machine) -> Failure:
    tally = run_block(0, 2000, FAULTS, (machine.name,))
    ((name, seed, _),) = tally.failures
    failure = find_again(name, seed, FAULTS)
    assert failure is not None
    return failure


def test_a_violation_is_made_small_kept_and_repeated(
    sick: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file repeats it as long as the bug is there, and passes when it is mended."""
    failure = find(sick)
    small = shrink(failure)
    assert small.kind == failure.kind
    assert len(small.operations) <= min(12, len(failure.operations))
    path = tmp_path / "case.ops.json"
    write_case(path, small, "commit")
    again = repeat_file(path, MACHINES)
    assert again is not None
    assert (again.kind, again.operations) == (small.kind, small.operations)
    monkeypatch.undo()
    assert repeat_file(path, MACHINES) is None


def test_no_operation_of_a_small_run_can_be_left_out(sick: Machine) -> None:
    """Without any one of them the run breaks no law, or another one."""
    small = shrink(find(sick))
    for at in range(len(small.operations)):
        fewer = small.operations[:at] + small.operations[at + 1 :]
        found = repeat(sick, small.seed, small.setup, fewer)
        assert found is None or found.kind != small.kind


@pytest.mark.parametrize("name", ["scheduler", "cluster"])
def test_a_violation_is_recorded_as_a_run(sick: Machine, name: str, tmp_path: Path) -> None:
    """The record says what was broken, and has the steps up to there."""
    failure = find(MACHINES[name])
    path = record_failure(failure, tmp_path)
    assert path is not None
    run = RunReader(path)
    assert run.status == "failed"
    assert str(failure.error).split("\n")[0] in (run.header.status_reason or "")
    assert len(run.table("lifecycle")["t_ns"]) > 0
    assert len(run.header.replicas) == len(getattr(failure.setup, "configs", [0]))


def test_the_interface_opens_a_violation_where_it_happened(sick: Machine, tmp_path: Path) -> None:
    """At the last step of the record, with the law that was broken."""
    path = record_failure(find(sick), tmp_path)
    assert path is not None
    opened = OpenedRun.recorded(path)
    assert opened.player.position == opened.player.head
    assert opened.store.header.status_reason
    seen: list[str] = []

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        seen.extend(notice.message for notice in app._notifications)

    drive(journey, start=opened, state_file=tmp_path / "state.json")
    assert any(opened.store.header.status_reason in message for message in seen)


def test_the_command_line_reports_a_violation(sick: Machine, tmp_path: Path) -> None:
    """Seed and commit come first; then what was broken, how to repeat it, and where it is kept."""
    result = invoke(
        "fuzz", "--machines", "scheduler", "--seed", "0", "--runs", "2000", "--output-dir",
        str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 1
    rows = result.output.splitlines()
    assert rows[0].startswith("seed=0 commit=")
    assert any(row.startswith("violation of scheduler with seed") for row in rows)
    (case,) = tmp_path.glob("*.ops.json")
    assert f"workbench fuzz --replay {case}" in result.output
    assert invoke("fuzz", "--replay", str(case)).exit_code == 1
    (recorded,) = (tmp_path / "runs").iterdir()
    assert str(recorded) in result.output
    assert invoke("explain", str(recorded)).exit_code == 0


# ---- the harness' own safety ---------------------------------------------------------------------


def test_the_canary_is_found() -> None:
    """A planted bug is found in a few runs, whatever the seed."""
    for seed in range(5):
        assert canary.runs_until_found(seed * 1000) < 20


def test_a_dead_canary_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing is ever found, the command fails and says why."""
    calm = explore(MACHINES["scheduler"], 3, frozenset())
    assert calm.failure is None
    monkeypatch.setattr(canary, "explore", lambda *_: calm)
    result = invoke("fuzz", "--runs", "1")
    assert result.exit_code == 1
    assert "planted bug" in result.output


def test_a_run_without_end_is_ended() -> None:
    """By processor time, so that a busy machine ends none too early."""

    def hang() -> None:
        while True:
            pass

    with pytest.raises(HangError), watchdog(0.05):
        hang()


def test_several_processes_do_the_same_runs() -> None:
    """Blocks of two processes add up to what one does."""
    plan = Plan(100, 192, 600.0, FAULTS, ("cache",))
    one, two = carry_out(plan), carry_out(replace(plan, jobs=2))
    assert (one.runs, one.checks, one.marks) == (two.runs, two.checks, two.marks)
    assert sum(one.runs.values()) == 192


def test_faults_can_be_chosen() -> None:
    """Only the named ones occur."""
    tally = carry_out(Plan(0, 128, 600.0, frozenset({"abort"}), ("scheduler",)))
    faults = {mark for mark in tally.marks if "fault" in mark}
    assert faults == {"scheduler: fault abort"}


def test_traced_runs_see_most_lines_of_the_core() -> None:
    """A few hundred runs execute nine lines out of ten."""
    seen: set[tuple[str, int]] = set()
    with lines.traced(seen):
        for seed in range(90):
            explore(machine_of(seed), seed, FAULTS)
    due = set(lines.due())
    assert len(due & seen) > 0.8 * len(due) > 900


LEDGER = Path(__file__).parent.parent / "benchmarks" / "results" / "fuzz_ledger.json"


def test_the_ledger_adds_up() -> None:
    """Stretches of a machine do not overlap, and the totals are the sums of the entries."""
    ledger = json.loads(LEDGER.read_text(encoding="utf-8"))
    for name in MACHINES:
        mine = [e for e in ledger["entries"] if e["machine"] == name]
        spans = sorted((e["first_seed"], e["first_seed"] + e["runs"]) for e in mine)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        total = ledger["totals"][name]
        assert total["runs"] == sum(e["runs"] for e in mine)
        assert total["checked_operations"] == sum(e["checked_operations"] for e in mine)
        assert total["violations"] == sum(len(e["violations"]) for e in mine)
    machines = [total for name, total in ledger["totals"].items() if name != "all"]
    for key in ("runs", "checked_operations", "violations"):
        assert ledger["totals"]["all"][key] == sum(total[key] for total in machines)


@pytest.mark.parametrize("name", MACHINES)
def test_what_a_machine_draws_is_what_it_says_it_takes(name: str) -> None:
    """So every case that it writes can be read."""
    machine = MACHINES[name]
    for seed in range(12):
        rng = random.Random(seed)
        trial = machine.open(seed, machine.draw(rng, machine.faults))
        for _ in range(40):
            operation, *numbers = trial.choose(rng)
            assert machine.takes[operation] == len(numbers)
            trial.apply((operation, *numbers))


def test_a_law_error_names_law_and_facts() -> None:
    from workbench.fuzz.rig import require

    with pytest.raises(LawError, match=r"^pages add up: 3, 4$"):
        require(3 == 4, "pages add up", 3, 4)
    require([0], "a law that holds says nothing")
