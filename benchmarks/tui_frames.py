"""What a frame of the TUI costs: processor time and bytes; and how long going to any step takes.

    python benchmarks/tui_frames.py [--requests 14000] [--seconds 4] [--json FILE]

Simulates one run of about 100,000 steps on a pool of 100,000 pages, keeps it in a store as the TUI
does, and plays it on the live screen at several sizes and speeds. The application draws for a
terminal that takes everything and counts it, in true colour. Processor time is that of the thread
that draws, so a busy machine makes frames rarer but hardly dearer. Frames per second are those
reached of 30. Seeks go to random steps, nothing cached: all pages, owners and nodes, and the tree.

The rules are 25 CPU-ms and 60 kB a frame at 120x36, and 2 ms a seek; the last line says whether
they are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("COLORTERM", "truecolor")
os.environ.pop("NO_COLOR", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from textual.driver import Driver

from workbench.record.provenance import source_commit
from workbench.running.simulate import prepare
from workbench.scenario.source import load_scenario
from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.compare.screen import CompareScreen
from workbench.tui.live.screen import LiveScreen
from workbench.tui.live.state import PAGE_MODES
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store import Player, RunStore
from workbench.tui.store.replica_log import ReplicaLog

SIZES = ((80, 24), (120, 36), (200, 60))
SPEEDS = (0.1, 1.0, 10.0, 100.0)
LIMIT_CPU_MS, LIMIT_BYTES, LIMIT_SEEK_MS = 25.0, 60_000, 2.0
SEEKS = 2000
COMPARED_S = 12.0  # until the comparison is surely there, so that it costs no frame
OVERRIDES = (
    "deployment.pools.0.num_pages=100000",
    "deployment.pools.0.page_size=8",
    "load.warmup_requests=0",
)

Result = dict[str, Any]


class CountingDriver(Driver):
    """A terminal that takes everything at once and counts the bytes."""

    written = 0

    def write(self, data: str) -> None:
        """Count."""
        type(self).written += len(data.encode())

    def start_application_mode(self) -> None:
        """Say how large it is."""

    def disable_input(self) -> None:
        """There is none."""

    def stop_application_mode(self) -> None:
        """Nothing to undo."""


def simulated(requests: int) -> RunStore:
    """One run, in a store."""
    overrides = (*OVERRIDES, f"workload.num_requests={requests}")
    simulation = prepare(load_scenario("quickstart", overrides), "pages")
    store = RunStore(simulation.header)
    ended = simulation.run([store.append])
    store.end("complete", ended.summary)
    return store


def folded(store: RunStore) -> Result:
    """Fold the memory tables, and say how much there is."""
    log = store.replicas[0]
    start = time.process_time()
    log.kv.fold()
    return {
        "steps": len(log.steps),
        "pages": log.facts.num_pages,
        "page_rows": len(log.kv.pages),
        "node_rows": len(log.kv.nodes),
        "fold_cpu_s": time.process_time() - start,
        "steps_bytes": log.steps.nbytes,
        "pages_bytes": log.kv.pages.nbytes,
        "nodes_bytes": log.kv.nodes.nbytes,
    }


def measured_seeks(log: ReplicaLog) -> Result:
    """CPU-ms of going to random steps."""
    random = np.random.default_rng(0)
    took = []
    for position in random.integers(log.steps.first, log.steps.end, SEEKS).tolist():
        start = time.thread_time()
        pages, _ = log.pages_after(position), log.tree_after(position)
        _ = pages.owner, pages.node
        took.append((time.thread_time() - start) * 1e3)
    p50, p95, most = np.percentile(took, [50, 95, 100]).tolist()
    return {"seeks": SEEKS, "p50_ms": p50, "p95_ms": p95, "max_ms": most}


async def measured_frames(
    store: RunStore,
    size: tuple[int, int],
    seconds: float,
    prepare_screen: Callable[[WorkbenchApp, Player], Awaitable[None]],
) -> Result:
    """Play for some seconds on a screen of a size."""
    player = Player(store)
    player.seek(store.replicas[0].steps.end // 3)
    with tempfile.TemporaryDirectory() as folder:
        app = WorkbenchApp(OpenedRun(store, player), state_file=Path(folder) / "state.json")
        app.driver_class = CountingDriver
        running = asyncio.create_task(app.run_async(size=size, headless=False))
        await asyncio.sleep(1.0)
        await prepare_screen(app, player)
        screen = app.screen
        if not isinstance(screen, ChartScreen):
            raise TypeError(f"{screen} has no charts")
        frames, cpu_s, written = screen.frames, time.thread_time(), CountingDriver.written
        began = time.monotonic()
        await asyncio.sleep(seconds)
        frames = screen.frames - frames
        result = {
            "size": f"{size[0]}x{size[1]}",
            "frames": frames,
            "fps": frames / (time.monotonic() - began),
            "cpu_ms": (time.thread_time() - cpu_s) * 1e3 / max(frames, 1),
            "bytes": (CountingDriver.written - written) / max(frames, 1),
        }
        app.exit()
        await running
    return result


async def all_frames(store: RunStore, seconds: float) -> list[Result]:
    """Every size at every speed, and every colouring of the page map."""
    results = []
    cases = [(size, speed, "state") for size in SIZES for speed in SPEEDS]
    cases += [((120, 36), 10.0, mode) for mode in PAGE_MODES if mode != "state"]
    for size, speed, mode in cases:

        async def play(
            app: WorkbenchApp, player: Player, speed: float = speed, mode: str = mode
        ) -> None:
            if isinstance(app.screen, LiveScreen):
                app.screen.state.page_mode = mode
            player.speed = speed
            player.play()
            await asyncio.sleep(0.5)

        result = await measured_frames(store, size, seconds, play)
        results.append({"speed": speed, "page_map": mode, **result})
        print(
            f"{result['size']:>8} {speed:>6g}x {mode:<11} {result['cpu_ms']:8.1f} CPU-ms "
            f"{result['bytes'] / 1e3:8.1f} kB {result['fps']:6.1f} frames/s"
        )
    return results


async def compare_frames(store: RunStore, seconds: float) -> Result:
    """The compare screen with the run beside itself, locked by arrival."""

    async def play(app: WorkbenchApp, player: Player) -> None:
        app.call_later(app.compare_runs, OpenedRun(store, player), OpenedRun(store, Player(store)))
        await asyncio.sleep(COMPARED_S)
        if not isinstance(app.screen, CompareScreen) or app.screen.state.comparison is None:
            raise TimeoutError(f"the comparison took more than {COMPARED_S} s")
        player.seek(store.replicas[0].steps.end // 3)
        player.speed = 10.0
        player.play()
        await asyncio.sleep(0.5)

    result = await measured_frames(store, (120, 36), seconds, play)
    print(
        f"{result['size']:>8}     10x compare     {result['cpu_ms']:8.1f} CPU-ms "
        f"{result['bytes'] / 1e3:8.1f} kB {result['fps']:6.1f} frames/s"
    )
    return result


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=14_000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    store = simulated(arguments.requests)
    run = folded(store)
    print(
        f"{run['steps']:,} steps, {run['pages']:,} pages, {run['page_rows']:,} page rows, "
        f"{run['node_rows']:,} node rows, folded in {run['fold_cpu_s']:.2f} CPU-s"
    )
    seeks = measured_seeks(store.replicas[0])
    print(
        f"seek: p50 {seeks['p50_ms']:.2f}, p95 {seeks['p95_ms']:.2f}, "
        f"max {seeks['max_ms']:.2f} CPU-ms"
    )
    frames = asyncio.run(all_frames(store, arguments.seconds))
    compare = asyncio.run(compare_frames(store, arguments.seconds))
    ruled = [compare, *(frame for frame in frames if frame["size"] == "120x36")]
    kept = (
        max(frame["cpu_ms"] for frame in ruled) <= LIMIT_CPU_MS
        and max(frame["bytes"] for frame in ruled) <= LIMIT_BYTES
        and seeks["p95_ms"] <= LIMIT_SEEK_MS
    )
    print("the rules are kept" if kept else "THE RULES ARE BROKEN")
    if arguments.json is not None:
        facts = {
            "schema": "tui-frames/v1",
            "commit": source_commit(),
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            "numpy": np.__version__,
            "run": run,
            "seeks": seeks,
            "frames": frames,
            "compare": compare,
            "rules_kept": kept,
        }
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
