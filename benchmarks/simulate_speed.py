"""How fast the simulator is: requests per minute of CPU, simulated seconds per second, memory.

    python benchmarks/simulate_speed.py [--only NAME ...] [--repeat 3] [--traces DIR] [--json FILE]

Every case runs in a process of its own, so that its peak memory is its own, `--repeat` times; the
fastest counts. CPU is that of all threads, so it does not shrink by what runs beside, but shared
caches and clocks still make it vary: run it on an idle machine.

The run alone is `World.run` with `--detail none` and the very scheduler of the engine; end to end
adds making the workload and the metrics; the whole process adds the start of Python and all
imports. Cases on traces run the command `workbench simulate` and have only the whole process; they
need `--traces`, a folder with `azure_llm_2023_code.csv` and `mooncake_synthetic.jsonl`. Nothing is
asserted.

A build made by `workbench native` is used if it fits; the first line says so. `WORKBENCH_NATIVE=0`
measures Python.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from speed_cases import Case

Result = dict[str, Any]


def run_here(name: str) -> Result:
    """One case in this process; CPU in seconds."""
    from speed_cases import CASES, MODEL

    from engine.core.events import Detail, EventLog
    from simulator.world import World
    from workbench.metrics.run_metrics import SummaryTables, summarize
    from workbench.record.header import LoadFacts, ReplicaFacts, RunHeader

    build = CASES[name].build
    if build is None:
        raise ValueError(f"case {name} runs the command")
    start = time.process_time()
    made = build()
    built = time.process_time()
    kept = SummaryTables()
    world = World(made.workload, made.replicas, made.router, log=EventLog(Detail.NONE, kept.add))
    result = world.run()
    ran = time.process_time()
    header = RunHeader(
        name=name,
        kind="simulation",
        detail="none",
        seed=1,
        model=MODEL,
        gpu="",
        cost_model=made.replicas[0].cost_model.name,
        replicas=tuple(
            ReplicaFacts(
                num_pages=r.scheduler.num_pages,
                page_size=r.scheduler.page_size,
                max_num_batched_tokens=r.scheduler.max_num_batched_tokens,
                max_running_requests=r.scheduler.max_running_requests,
            )
            for r in made.replicas
        ),
        load=LoadFacts(kind="poisson"),
    )
    summary = summarize(kept.tables(), header)
    done = time.process_time()
    return {
        "requests": len(made.workload),
        "steps": result.steps,
        "simulated_s": result.end_ns / 1e9,
        "run_cpu_s": ran - built,
        "end_to_end_cpu_s": done - start,
        "hit_rate_percent": summary["prefix_hit_rate_percent"],
        "overloaded": summary["overloaded"],
    }


def run_child(command: list[str]) -> tuple[Result, str]:
    """A process's CPU, wall time and peak memory, and what it printed."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        pid = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
        )
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - start
        out.seek(0)
        text = out.read().decode()
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    process = {
        "process_cpu_s": usage.ru_utime + usage.ru_stime,
        "process_wall_s": wall_s,
        "peak_bytes": usage.ru_maxrss * scale,
    }
    return process, text


def measure(name: str, case: Case, traces: Path | None, repeat: int) -> Result | None:
    """The fastest of `repeat` runs of a case; None without the trace it needs."""
    if case.build is None and traces is None:
        return None
    results = [_once(name, case, traces) for _ in range(repeat)]
    key = "run_cpu_s" if case.build is not None else "process_cpu_s"
    best = min(results, key=lambda result: float(result[key]))
    return {"case": name, "about": case.about, "goal": case.goal, "goal_s": case.goal_s, **best}


def _once(name: str, case: Case, traces: Path | None) -> Result:
    if case.build is not None:
        process, text = run_child([sys.executable, __file__, "--case", name])
        return {**json.loads(text), **process}
    with tempfile.TemporaryDirectory() as runs:
        arguments = [part.format(folder=traces) for part in case.scenario]
        options = ["--detail", "none", "--runs-dir", runs, "--quiet", "--json"]
        command = [sys.executable, "-m", "workbench", "simulate", *arguments, *options]
        process, text = run_child(command)
    summary = json.loads(text)
    return {
        "requests": summary["completed"] + summary["failed"],
        "steps": summary["steps"],
        "simulated_s": summary["duration"],
        "hit_rate_percent": summary["prefix_hit_rate_percent"],
        "overloaded": summary["overloaded"],
        **process,
    }


def provenance() -> Result:
    """Which code ran where."""
    import numpy as np

    from engine.compiled import active_build
    from workbench.record.provenance import source_commit

    return {
        "commit": source_commit(),
        "code": "native" if active_build() else "Python",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


HEADINGS = (
    "case", "requests", "steps", "us/req", "req/min", "goal", "e2e req/min", "sim s/s",
    "process s", "goal", "peak MB",
)  # fmt: skip


def row(result: Result) -> list[str]:
    """One line of the table."""
    requests, run_s = result["requests"], result.get("run_cpu_s")
    whole_s = result.get("end_to_end_cpu_s")
    return [
        result["case"],
        f"{requests:,}",
        f"{result['steps']:,}",
        f"{run_s / requests * 1e6:.1f}" if run_s else "-",
        f"{requests / run_s * 60:,.0f}" if run_s else "-",
        f"{result['goal']:,}" if result["goal"] else "-",
        f"{requests / whole_s * 60:,.0f}" if whole_s else "-",
        f"{result['simulated_s'] / (run_s or result['process_cpu_s']):,.0f}",
        f"{result['process_cpu_s']:.2f}",
        f"{result['goal_s']:g}" if result["goal_s"] else "-",
        f"{result['peak_bytes'] / 1e6:,.0f}",
    ]


def show(results: list[Result]) -> None:
    """Print the table."""
    rows = [list(HEADINGS), *map(row, results)]
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEADINGS))]
    for line in rows:
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join((first, *others)))
    for result in results:
        print(f"{result['case']}: {result['about']}")


def main() -> None:
    """Measure and print."""
    from speed_cases import CASES

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.case:
        print(json.dumps(run_here(wish.case)))
        return
    results = []
    for name in wish.only or CASES:
        result = measure(name, CASES[name], wish.traces, wish.repeat)
        if result is None:
            print(f"{name}: left out, it needs --traces", file=sys.stderr)
        else:
            print(f"{name}: {result['process_cpu_s']:.2f} s", file=sys.stderr)
            results.append(result)
    facts = provenance()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    show(results)
    if wish.json:
        report = {**facts, "repeat": wish.repeat, "results": results}
        wish.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
