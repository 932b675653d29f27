"""Runs the fuzzer for hours and keeps a ledger of what was run, which goes on where it ended.

    python benchmarks/fuzz_volume.py --machine scheduler --minutes 60

The ledger (benchmarks/results/fuzz_ledger.json) has one entry per machine, commit and stretch of
seeds: how many runs from which seed on, operations checked, processor time, violations. Stretches
of one machine never overlap, so the runs of all entries add up. A violation ends the stretch after
its block; fix it, and go on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ["WORKBENCH_NATIVE"] = "0"

from workbench.fuzz.campaign import BLOCK_RUNS, run_block
from workbench.fuzz.canary import runs_until_found
from workbench.fuzz.machines import FAULTS, MACHINES
from workbench.record.provenance import source_commit

LEDGER = Path(__file__).parent / "results" / "fuzz_ledger.json"
WRITE_EVERY_S = 20.0


def read(path: Path) -> list[dict[str, Any]]:
    """All entries."""
    return json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []


def next_seed(entries: list[dict[str, Any]], machine: str) -> int:
    """Where the next stretch of a machine starts."""
    ends = [e["first_seed"] + e["runs"] for e in entries if e["machine"] == machine]
    return max(ends, default=0)


def totals(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Sums by machine, and over all."""
    sums: dict[str, dict[str, float]] = {}
    for entry in entries:
        for name in (entry["machine"], "all"):
            row = sums.setdefault(name, dict(runs=0, checked_operations=0, cpu_s=0.0, violations=0))
            row["runs"] += entry["runs"]
            row["checked_operations"] += entry["checked_operations"]
            row["cpu_s"] = round(row["cpu_s"] + entry["cpu_s"], 1)
            row["violations"] += len(entry["violations"])
    for row in sums.values():
        hours = row["cpu_s"] / 3600
        row["runs_per_core_hour"] = round(row["runs"] / hours) if hours else 0
    return sums


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Put the file in place whole."""
    scratch = path.with_suffix(".new")
    text = json.dumps({"totals": totals(entries), "entries": entries}, indent=1)
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(path)


def run(machine: str, minutes: float, path: Path) -> None:
    """One stretch."""
    runs_until_found()
    first = next_seed(read(path), machine)
    entry: dict[str, Any] = dict(
        machine=machine, commit=source_commit(), python=platform.python_version(),
        first_seed=first, runs=0, checked_operations=0, cpu_s=0.0, violations=[], unreached=[],
    )  # fmt: skip
    marks: set[str] = set()
    until_s = time.monotonic() + 60 * minutes
    written_s = 0.0
    while time.monotonic() < until_s and not entry["violations"]:
        tally = run_block(first + entry["runs"], BLOCK_RUNS, FAULTS, (machine,))
        entry["runs"] += sum(tally.runs.values())
        entry["checked_operations"] += sum(tally.checks.values())
        entry["cpu_s"] = round(entry["cpu_s"] + tally.cpu_s, 2)
        entry["violations"] += [[seed, what] for _, seed, what in tally.failures]
        marks |= tally.marks
        entry["unreached"] = sorted({f"{machine}: {m}" for m in MACHINES[machine].marks} - marks)
        if time.monotonic() - written_s > WRITE_EVERY_S:
            written_s = time.monotonic()
            keep(path, entry)
    keep(path, entry)
    print(json.dumps(entry))


def keep(path: Path, entry: dict[str, Any]) -> None:
    """Write the entry in the place of its last state."""
    key = (entry["machine"], entry["first_seed"])
    others = [e for e in read(path) if (e["machine"], e["first_seed"]) != key]
    write(path, [*others, entry])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--machine", choices=list(MACHINES), required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args()
    run(options.machine, options.minutes, options.ledger)
