"""The simulator decides as the engine did: its own parts, at the recorded times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import invoke
from engine_runs import SMALL, Played, play
from fake_executor import MS, Faults
from test_engine_run import CONVERSATION, LOADS, few

from engine.core.journal import Journal, Op, read_calls
from engine.core.plan import StepPlan
from workbench.running.parity import Parity, ParityError, follow
from workbench.scenario.source import shipped_names

PRESSURE = (
    "deployment.pools.0.num_pages=160",
    "workload.num_requests=40",
    "load={kind: all_at_once}",
    "load.warmup_requests=0",
    "scheduler.schedule_conservativeness=0.02",
    "workload.prompt_len={kind: uniform, min: 20, max: 200}",
    "workload.output_len={kind: uniform, min: 40, max: 300}",
)


def journal_of(played: Played) -> np.ndarray:
    (journal,) = played.ended.journals
    assert isinstance(journal, Journal)
    return journal.to_array()


def parity(played: Played, journal: np.ndarray | None = None) -> Parity:
    files = {key: facts.path for key, facts in played.ready.header.inputs.items()}
    return follow(played.ready.header, journal_of(played) if journal is None else journal, files)


def uneven(plan: StepPlan) -> int:
    """Steps that take long and short times without a pattern that a simulation would have."""
    return MS * (1 + plan.plan_id * 7919 % 23) + 1_000 * plan.prefill_tokens


@pytest.mark.parametrize("name", shipped_names())
def test_of_every_shipped_scenario(name: str, tmp_path: Path) -> None:
    """Prefix hits, chunks, conversations, traces: every plan is the engine's."""
    played = play(name, *few(name, tmp_path), step_ns=uneven)
    same = parity(played)
    assert same.steps == len(played.runner.plans)
    assert same.requests == len(played.ready.workload)


@pytest.mark.parametrize("name", LOADS)
def test_of_every_kind_of_load(name: str) -> None:
    """Open and closed loops, a cap at the client, aborts, texts that end early."""
    played = play("quickstart", *SMALL, *LOADS[name], step_ns=uneven)
    same = parity(played)
    assert same.steps == len(played.runner.plans)
    assert (same.aborts > 0) == ("aborts" in name)
    assert (same.stops > 0) == ("early" in name)


def test_of_conversations_and_of_full_memory() -> None:
    """Turns that follow a turn's end, requests that lose their pages and compute again."""
    same = parity(play("quickstart", CONVERSATION, "load.warmup_requests=0", step_ns=uneven))
    assert same.requests == 24
    pressed = play("quickstart", *PRESSURE, step_ns=uneven)
    assert pressed.summary["retractions"] > 0
    assert parity(pressed).steps == len(pressed.runner.plans)


def test_failing_steps_are_taken_over() -> None:
    """That a step fails, or a token is no number, is the device's doing; what follows is not."""
    faults = Faults(fails={4, 9}, not_numbers={3})
    played = play("quickstart", *SMALL, faults=faults, step_ns=uneven)
    assert parity(played).steps >= len(played.runner.plans) - 1


@pytest.mark.parametrize("what", ["plan", "send", "end"])
def test_a_difference_is_named(what: str) -> None:
    """The step, the time, what the engine did and what the simulator would do."""
    played = play("quickstart", *SMALL, *LOADS["early ends"], step_ns=uneven)
    calls = [[int(c.op), c.now, list(c.args)] for c in read_calls(journal_of(played))]
    changed: dict[str, Any] = {
        "plan": next(c for c in calls[40:] if c[0] == Op.PLAN and c[2]),
        "send": next(c for c in calls if c[0] == Op.ADD),
        "end": next(c for c in calls if c[0] == Op.COMMIT and c[2][3]),
    }
    args = changed[what][2]
    args[{"plan": 3, "send": 0, "end": 7}[what]] += 1
    flat = [n for op, now, rest in calls for n in (op, now, len(rest), *rest)]
    wanted = {
        "plan": "engine plans .*; the simulator plans",
        "send": "engine sends r1; the simulator sends r0",
        "end": "engine ends .*; the simulator ends",
    }
    with pytest.raises(ParityError, match=rf"after \d+ equal steps, at .* {wanted[what]}"):
        parity(played, np.array(flat, np.int64))


def test_a_simulation_has_nothing_to_compare(tmp_path: Path) -> None:
    """It is the simulator that decided; a run without a journal cannot be asked."""
    done = invoke("simulate", "quickstart", "--num-prompts", "120", "--runs-dir", str(tmp_path))
    assert done.exit_code == 0
    result = invoke("parity", "quickstart-1", "--runs-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "is a simulation" in result.stderr


def test_on_the_command_line(tmp_path: Path) -> None:
    """A run of the real engine on a CPU, recorded and compared."""
    done = invoke(
        "run", "engine_on_cpu", "--load-format", "dummy", "--device", "cpu", "--num-prompts", "8",
        "--runs-dir", str(tmp_path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = invoke("parity", "engine_on_cpu-1", "--runs-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (
        "8 requests, 0 aborts and every text's end, all as the simulator decides" in result.stdout
    )
