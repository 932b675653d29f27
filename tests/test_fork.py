"""Forks: a run is repeated exactly up to a step, and goes on with other settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import (
    DEPLOYMENTS,
    WORKLOADS,
    assert_equal_tables,
    by_replica,
    forked,
    last_step,
    recorded,
    settings,
    simulation_of,
)
from typer.testing import CliRunner, Result

from engine.core.events import Columns
from engine.core.journal import Op, read_calls, replay
from engine.core.scheduler import Scheduler
from workbench.analysis.compare import compare_runs
from workbench.cli import app
from workbench.record.run_record import JOURNAL, RunReader
from workbench.running.fork import CHANGEABLE, ForkError, ForkPoint, prepare_fork
from workbench.running.replay_check import ReplayError, check_replay
from workbench.scenario.errors import ScenarioErrors

CHANGES = {
    "scheduler.policy": "lpm",
    "scheduler.mode": "prefill_first",
    "scheduler.chunked_prefill": "false",
    "scheduler.max_prefill_tokens": "16",
    "scheduler.admission": "reserve",
    "scheduler.schedule_conservativeness": "3",
    "deployment.pools.0.max_num_batched_tokens": "48",
    "deployment.pools.0.max_running_requests": "3",
    "deployment.pools.0.max_plans_in_flight": "1",
    "deployment.pools.0.cuda_graph_batch_sizes": "[2, 32]",
    "deployment.router.policy": "least_loaded",
    "deployment.router.imbalance_threshold": "0",
}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty directory, where the runs go."""
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_fork_that_changes_nothing_is_its_parent(workload: str, deployment: str) -> None:
    """Forked anywhere without a change, a run has its parent's tables, summary and decisions."""
    parent = recorded(*settings(workload, deployment))
    replica = len(parent.header.replicas) - 1
    last = last_step(parent, replica)
    for step in {0, 1, last // 3, last // 2, last - 1, last}:
        fork = forked(parent, step, replica=replica)
        assert_equal_tables(parent.tables(), fork.tables())
        assert fork.summary == parent.summary
        for index in range(len(parent.header.replicas)):
            journals = (each.arrays(JOURNAL)[str(index)] for each in (parent, fork))
            check_replay(*(journal.astype(np.int64) for journal in journals), index)


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("workload", ["early ends", "shared prefix"])
def test_a_change_shows_at_its_step_or_later(workload: str, key: str) -> None:
    """Up to the step a fork is its parent; a first difference comes at it or after it."""
    parent = recorded(*settings(workload, "three" if "router" in key else "one"))
    step = last_step(parent) // 4
    fork = forked(parent, step, f"{key}={CHANGES[key]}")
    (facts,) = fork.header.forks
    assert (facts.run, facts.replica, facts.step) == ("run-1", 0, step)
    assert list(facts.changes) == [key]
    before, after = (by_replica(each.table("steps")) for each in (parent, fork))
    for name, column in before.items():
        kept = before["plan_ns"] < facts.t_ns
        np.testing.assert_array_equal(column[kept], after[name][after["plan_ns"] < facts.t_ns])
    divergence = compare_runs(parent, fork).divergence
    if divergence.where == "batch" and divergence.replica == 0:
        assert divergence.step >= step
    if divergence.where != "equal":
        assert divergence.t_a_ns >= facts.t_ns


def never_both(steps: Columns) -> bool:
    return not ((steps["prefill_tokens"] > 0) & (steps["decode_tokens"] > 0)).any()


def at_most_48_tokens(steps: Columns) -> bool:
    return bool((steps["prefill_tokens"] + steps["decode_tokens"] <= 48).all())


def one_in_flight(steps: Columns) -> bool:
    return bool((steps["plan_ns"][2:] >= steps["end_ns"][1:-1]).all())


@pytest.mark.parametrize(
    ("key", "holds"),
    [
        ("scheduler.mode", never_both),
        ("scheduler.max_prefill_tokens", lambda steps: (steps["prefill_tokens"] <= 16).all()),
        ("deployment.pools.0.max_num_batched_tokens", at_most_48_tokens),
        ("deployment.pools.0.max_running_requests", lambda steps: (steps["running"] <= 3).all()),
        ("deployment.pools.0.max_plans_in_flight", one_in_flight),
        ("deployment.pools.0.cuda_graph_batch_sizes",
         lambda steps: set(steps["graph_batch"]) <= {0, 2, 32}),
    ],
)  # fmt: skip
def test_a_change_is_in_force_from_its_step_on(key: str, holds: Callable[[Columns], bool]) -> None:
    """From the step on every step obeys the new setting, and some step before it did not."""
    parent = recorded(*settings("early ends", "one"))
    fork = forked(parent, 40, f"{key}={CHANGES[key]}")
    steps = by_replica(fork.table("steps"))
    later = steps["step"] >= 40
    assert holds({name: column[later] for name, column in steps.items()})
    assert not holds({name: column[~later] for name, column in steps.items()})


def test_the_router_follows_its_new_policy() -> None:
    """From its step on requests go round robin; before it they did not."""
    parent = recorded(*settings("shared prefix", "three"))
    fork = forked(parent, 60, "deployment.router.policy=round_robin")
    requests = fork.table("requests")
    order = np.lexsort((requests["request_id"], requests["arrival_ns"]))
    late = requests["arrival_ns"][order] >= fork.header.forks[0].t_ns
    replica = requests["replica"][order][late]
    assert len(replica) > 9
    np.testing.assert_array_equal(replica, np.arange(len(replica)) % 3)
    assert compare_runs(parent, fork).divergence.where == "routing"


def test_a_replica_acts_at_once_on_what_it_may_do_now() -> None:
    """A replica that may have two plans in flight makes the second in the middle of a step."""
    pool = "{num_pages: 120, max_running_requests: 8, max_plans_in_flight: 1}"
    parent = recorded(*settings("synthetic", "one"), f"deployment.pools=[{pool}, {pool}]", "seed=3")
    change = "deployment.pools.1.max_plans_in_flight=2"
    forks = [forked(parent, step, change) for step in range(60, 70)]
    at_once = [
        bool((fork.table("steps")["plan_ns"][fork.table("steps")["replica"] == 1]
              == fork.header.forks[0].t_ns).any())
        for fork in forks
    ]  # fmt: skip
    assert any(at_once)


def test_lower_running_limit_sends_requests_back() -> None:
    """A lower running limit retracts what runs above it, and all requests end all the same."""
    parent = recorded(*settings("synthetic", "one"))
    fork = forked(parent, 30, "deployment.pools.0.max_running_requests=2")
    steps = by_replica(fork.table("steps"))
    assert steps["retracted"][30] >= int(steps["running"][29]) - 2 > 0
    assert fork.summary["completed"] == parent.summary["completed"] == 60
    assert fork.header.replicas[0].max_running_requests == 2


def test_a_fork_can_be_forked() -> None:
    """A fork of a fork repeats both; undoing the change later gives a third run."""
    parent = recorded(*settings("early ends", "three"))
    child = forked(parent, 20, "scheduler.policy=lpm")
    grandchild = forked(child, 60, "scheduler.mode=prefill_first", replica=1)
    assert [fork.run for fork in grandchild.header.forks] == ["run-1", "run-2"]
    scenario = grandchild.header.scenario["scheduler"]
    assert (scenario["policy"], scenario["mode"]) == ("lpm", "prefill_first")
    again = forked(grandchild, 90)
    assert_equal_tables(grandchild.tables(), again.tables())
    assert again.header.scenario_sha256 == grandchild.header.scenario_sha256


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_the_journal_of_a_record_replays(deployment: str) -> None:
    """Recorded journals, a fork's too, give the same plans in a fresh scheduler."""
    parent = recorded(*settings("conversation", deployment))
    fork = forked(parent, 30, "deployment.pools.0.max_running_requests=4", "scheduler.policy=lpm")
    simulation = simulation_of("conversation", deployment)
    workload = simulation.workload
    for each in (parent, fork):
        ops = set()
        for index, replica in enumerate(simulation.deployment.replicas):
            calls = list(read_calls(each.arrays(JOURNAL)[str(index)]))
            ops |= {call.op for call in calls}
            scheduler = Scheduler(replica.config.scheduler)
            plans = replay(iter(calls), scheduler, lambda i: workload.segments.tokens(
                i, int(workload.output_tokens[i])
            ))  # fmt: skip
            skipped = sum(call.args[0] for call in calls if call.op is Op.ADVANCE)
            assert plans + skipped == last_step(each, index) + 1
            assert not scheduler.has_work
        assert (Op.RECONFIGURE in ops) == (each is fork)


def test_pages_stay_and_a_note_says_so_where_memory_would_hold_fewer() -> None:
    """A larger budget keeps the pages there are; a note tells how many a fresh start would have."""
    parent = recorded(*settings("synthetic", "one"), "deployment.pools.0.num_pages=null")
    pages = parent.header.replicas[0].num_pages
    fork = forked(parent, 30, "deployment.pools.0.max_num_batched_tokens=100000")
    assert fork.header.replicas[0].num_pages == pages
    (note,) = fork.header.notes
    assert f"keeps its {pages:,} KV pages" in note
    assert not forked(parent, 30, "deployment.pools.0.max_num_batched_tokens=512").header.notes


def test_a_replay_can_be_interrupted() -> None:
    """Ctrl-C before the step is reached ends the fork, which has no result yet."""
    parent = recorded(*settings("conversation", "one"))
    fork = prepare_fork(parent, ForkPoint(last_step(parent)), [], "none")
    with pytest.raises(KeyboardInterrupt):
        fork.run(should_stop=lambda: True)


# What cannot be forked


def test_only_what_can_change_may_change() -> None:
    """Everything else is refused at its override, with the list of what may change."""
    assert {key.replace(".N.", ".0.") for key in CHANGEABLE} == set(CHANGES)
    parent = recorded(*settings("synthetic", "one"))
    fixed = ["seed=5", "scheduler.prefix_cache.enabled=false", "deployment.pools.0.num_pages=90"]
    fixed += ["model.name=Qwen3-0.6B", "load.request_rate=7", "deployment.pools.0.replicas=2"]
    with pytest.raises(ScenarioErrors) as caught:
        prepare_fork(parent, ForkPoint(5), fixed, "items")
    assert len(caught.value.errors) == len(fixed)
    for error, override in zip(caught.value.errors, fixed, strict=True):
        assert error.code == "S207"
        assert override in str(error)
        assert "deployment.pools.N.max_running_requests" in str(error)


def test_a_bad_value_is_a_scenario_error() -> None:
    """An override is validated like any other, together with what it is combined with."""
    parent = recorded(*settings("synthetic", "one"))
    with pytest.raises(ScenarioErrors, match="policy"):
        prepare_fork(parent, ForkPoint(5), ["scheduler.policy=best"], "items")
    with pytest.raises(ScenarioErrors, match="cannot decode"):
        prepare_fork(parent, ForkPoint(5), ["deployment.pools.0.max_num_batched_tokens=9"], "items")


def test_a_step_must_be_in_the_record() -> None:
    """A step or a replica that the run does not have is named with what it has."""
    parent = recorded(*settings("synthetic", "one"))
    last = last_step(parent)
    with pytest.raises(ForkError, match=f"steps 0 to {last}, not {last + 1}"):
        prepare_fork(parent, ForkPoint(last + 1), [], "items")
    with pytest.raises(ForkError, match="replica 3 has no steps"):
        prepare_fork(parent, ForkPoint(0, replica=3), [], "items")


def test_a_run_without_steps_cannot_be_forked() -> None:
    """A run of detail `none` says which detail would do."""
    parent = recorded(*settings("synthetic", "one"), detail="none")
    with pytest.raises(ForkError, match="--detail steps"):
        prepare_fork(parent, ForkPoint(5), [], "items")


def test_a_changed_trace_cannot_be_repeated() -> None:
    """The trace that a run read must be as it was, wherever the fork is started from."""
    trace = Path("trace.csv")
    rows = [f"2023-11-16 18:17:{i:02}.0,{50 + i},{9 + i}" for i in range(30)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    parent = recorded("workload={kind: trace, path: trace.csv}", "load={kind: trace}")
    assert_equal_tables(parent.tables(), forked(parent, 10).tables())
    trace.write_text(trace.read_text().replace(",55,", ",56,"))
    with pytest.raises(ForkError, match=r"trace\.csv .* has changed"):
        prepare_fork(parent, ForkPoint(10), [], "items")
    trace.unlink()
    with pytest.raises(ForkError, match=r"trace\.csv: no such file"):
        prepare_fork(parent, ForkPoint(10), [], "items")


def damaged(run: RunReader, at: int, by: int) -> RunReader:
    """The run with one number of its journal changed."""
    journal = run.arrays(JOURNAL)["0"].copy()
    journal[at] += by
    np.savez(run.path / JOURNAL, **{"0": journal})
    return RunReader(run.path)


def test_a_replay_that_decides_otherwise_is_an_error() -> None:
    """A journal that differs before the step stops the fork there, and leaves no whole record."""
    parent = recorded(*settings("synthetic", "one"))
    at, steps = 0, 0
    for call in read_calls(parent.arrays(JOURNAL)["0"]):
        steps += call.op is Op.PLAN and bool(call.args)
        if steps == 12:
            break
        at += 3 + len(call.args)
    tampered = damaged(parent, at + 3 + 3, 1)  # the decode requests of the twelfth plan
    with pytest.raises(ReplayError, match=r"replica 0, step \d+: recorded plan.*numpy"):
        forked(tampered, last_step(parent) // 2)
    assert RunReader(Path("runs/run-2")).status == "failed"
    assert not Path("runs/run-2/summary.json").exists()


# The check itself


def journal_of(*calls: tuple[int, ...]) -> np.ndarray:
    """op, now, args... of each call."""
    return np.array([n for op, now, *args in calls for n in (op, now, len(args), *args)], np.int64)


def plan(now: int, step: int, prefills: int = 0) -> tuple[int, ...]:
    head = [step, -1, step, 5, 5, 50, 20, 0, 5, 8, 0, 5, 0, 90, 0, 0, 0, 0, prefills, 0]
    return (Op.PLAN, now, *head, *(1, 2, 3) * prefills)


def commit(now: int, step: int, *stopped: int) -> tuple[int, ...]:
    return (Op.COMMIT, now, step, 0, 0, len(stopped), 0, 0, 0, *stopped)


START = (plan(0, 0),)
SINGLE = (plan(1, 1), commit(2, 0), plan(2, 2), commit(3, 1), plan(3, 3), commit(4, 2), plan(4, 4))
SKIPPED = ((Op.ADVANCE, 4, 3), plan(4, 4))
IN_TWO = ((Op.ADVANCE, 3, 2), plan(3, 3), commit(4, 2), plan(4, 4))


@pytest.mark.parametrize("recorded_calls", [SINGLE, SKIPPED, IN_TWO])
@pytest.mark.parametrize("replayed_calls", [SINGLE, SKIPPED, IN_TWO])
def test_how_many_steps_are_skipped_at_once_is_no_decision(recorded_calls, replayed_calls) -> None:
    """Skipped and single decode steps are the same decisions, and so is any beginning of them."""
    record = journal_of(*START, *recorded_calls)
    assert check_replay(record, journal_of(*START, *replayed_calls), 0) == 5
    for count in range(len(replayed_calls)):
        check_replay(record, journal_of(*START, *replayed_calls[:count]), 0)


@pytest.mark.parametrize("recorded_calls", [SINGLE, SKIPPED, IN_TWO])
@pytest.mark.parametrize(
    "replayed_calls",
    [
        (plan(1, 1, prefills=1), commit(2, 0), plan(2, 2), commit(3, 1)),
        (plan(1, 1), commit(2, 0, 7), plan(2, 2), commit(3, 1)),
        (plan(1, 1), commit(2, 0), plan(2, 2), commit(3, 1), plan(3, 3), commit(5, 2)),
        ((Op.ADVANCE, 5, 3),),
        ((Op.ADVANCE, 5, 4),),
        (plan(1, 1), commit(2, 0), (Op.ABORT, 2, 7)),
        ((Op.ADVANCE, 4, 3), (Op.PLAN, 4)),
        (*SINGLE, plan(4, 5)),
    ],
)
def test_other_decisions_are_found(recorded_calls, replayed_calls) -> None:
    """A prefill, a stop, a time, an abort or a step too many is a difference."""
    with pytest.raises(ReplayError, match="replica 7"):
        check_replay(journal_of(*START, *recorded_calls), journal_of(*START, *replayed_calls), 7)


# On the command line


def test_fork_on_the_command_line() -> None:
    """`--fork RUN@STEP --set` prints the fork's result and records it beside its parent."""
    invoke("simulate", "quickstart", "--num-prompts", "150", "-q")
    change = ("--set", "deployment.pools.0.max_running_requests=4")
    result = invoke("simulate", "--fork", "quickstart-1@100", *change, "--json")
    assert result.exit_code == 0
    assert result.stderr == "recorded in runs/quickstart-2\n"
    fork = RunReader(Path("runs/quickstart-2"))
    assert json.loads(result.stdout) == fork.summary
    assert fork.header.forks[0].changes == {"deployment.pools.0.max_running_requests": (256, 4)}
    told = invoke("compare", "quickstart-1", "quickstart-2").stdout
    assert "forks[0].step" in told
    assert "100 steps are equal" in told or "first difference in step" in told


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "which scenario"),
        (["--fork", "runs/x-1"], 2, "RUN@STEP"),
        (["--fork", "runs/x-1@last"], 2, "RUN@STEP"),
        (["quickstart", "--fork", "x-1@5"], 2, "only --set"),
        (["--fork", "x-1@5", "--seed", "3"], 2, "only --set"),
        (["--fork", "x-1@5"], 1, "no run"),
    ],
)
def test_a_senseless_fork_says_what_would_make_sense(
    arguments: list[str], code: int, says: str
) -> None:
    """Wrong usage ends with 2, a run that is not there with 1; both say so in a line."""
    result = invoke("simulate", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
