"""Runs of small scenarios, recorded as the command line records them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.core.events import TABLES, Columns
from workbench.cli.simulation import Outputs, carry_out
from workbench.record.run_record import RunReader
from workbench.running.execution import DetailName
from workbench.running.fork import ForkPoint, prepare_fork
from workbench.running.simulate import Simulation, prepare
from workbench.scenario.source import load_scenario

SYNTHETIC = """{
  kind: synthetic, num_requests: 60, prompt_len: {kind: uniform, min: 1, max: 400},
  output_len: {kind: uniform, min: 1, max: 120}}"""
EARLY_ENDS = """{
  kind: synthetic, num_requests: 60, prompt_len: {kind: uniform, min: 1, max: 200},
  output_len: {kind: uniform, min: 1, max: 120}, max_tokens: 150, high_priority_fraction: 0.3}"""
SHARED_PREFIX = """{
  kind: shared_prefix, num_requests: 60, num_groups: 3, group_skew: 1, system_prompt_len: 96,
  question_len: 60, output_len: 50}"""
CONVERSATION = """{
  kind: conversation, num_conversations: 20, turns: 3, user_len: 60,
  output_len: {kind: uniform, min: 20, max: 90}, think_time_s: 0.2}"""

ONE = "{pools: [{num_pages: 120, max_running_requests: 24}]}"
SERIAL = """{pools: [
  {num_pages: 150, max_plans_in_flight: 1, max_num_batched_tokens: 300,
   max_running_requests: 12}]}"""
THREE = """{
  router: {policy: cache_aware, imbalance_threshold: 2},
  pools: [
    {replicas: 2, num_pages: 90, max_running_requests: 16},
    {num_pages: 400, page_size: 4, max_plans_in_flight: 3, max_num_batched_tokens: 128,
     max_running_requests: 16}]}"""

WORKLOADS = {
    "synthetic": {"workload": SYNTHETIC, "load": "{kind: poisson, request_rate: 200}"},
    "early ends": {
        "workload": EARLY_ENDS,
        "load": "{kind: closed_loop, max_concurrency: 20}",
        "aborts": "{fraction: 0.2, after_s: {kind: uniform, min: 0, max: 1}}",
    },
    "shared prefix": {
        "workload": SHARED_PREFIX,
        "load": "{kind: gamma, request_rate: 100, burstiness: 0.3}",
    },
    "conversation": {"workload": CONVERSATION, "load": "{kind: poisson, request_rate: 40}"},
}
DEPLOYMENTS = {
    "one": {"deployment": ONE},
    "serial": {"deployment": SERIAL, "scheduler": "{mode: prefill_first, policy: lpm}"},
    "three": {
        "deployment": THREE,
        "scheduler": "{policy: priority, schedule_conservativeness: 0.1}",
    },
}


def settings(workload: str, deployment: str) -> tuple[str, ...]:
    """The overrides that make quickstart a small scenario under memory pressure."""
    changes = {**WORKLOADS[workload], **DEPLOYMENTS[deployment], "slo": "null"}
    return (*(f"{key}={value}" for key, value in changes.items()), "too_long=truncate")


def simulation_of(workload: str, deployment: str, detail: DetailName = "items") -> Simulation:
    """That scenario, ready to run."""
    return prepare(load_scenario("quickstart", settings(workload, deployment)), detail)


def record(simulation: Simulation, folder: Path = Path("runs")) -> RunReader:
    """Run and record a simulation."""
    before = set(folder.iterdir()) if folder.exists() else set()
    carry_out(
        simulation,
        Outputs(runs_directory=folder, run_name="run", stream=False, trace=None, talk=False),
    )
    (made,) = set(folder.iterdir()) - before
    return RunReader(made)


def recorded(*overrides: str, detail: DetailName = "items", name: str = "quickstart") -> RunReader:
    """A recorded run of a shipped scenario with overrides."""
    return record(prepare(load_scenario(name, overrides), detail))


def forked(parent: RunReader, step: int, *overrides: str, replica: int = 0) -> RunReader:
    """A recorded fork of a run."""
    return record(prepare_fork(parent, ForkPoint(step, replica), overrides, "items"))


def by_replica(columns: Columns) -> Columns:
    """A table with its rows in the order of replicas, which act independently of each other."""
    order = np.argsort(columns["replica"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def assert_equal_tables(a: dict[str, Columns], b: dict[str, Columns]) -> None:
    """Every row of every table is the same."""
    for table in TABLES:
        left, right = by_replica(a[table]), by_replica(b[table])
        for name in TABLES[table]:
            np.testing.assert_array_equal(left[name], right[name], f"{table}.{name}")


def last_step(run: RunReader, replica: int = 0) -> int:
    """Number of the last step of a replica."""
    steps = run.table("steps", ("replica", "step"))
    return int(steps["step"][steps["replica"] == replica].max())
