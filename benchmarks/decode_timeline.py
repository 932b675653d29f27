"""Where the time of decode steps goes: kernels by total time, and how long the GPU was idle.

    python benchmarks/decode_timeline.py out.json [--model Llama-3.1-8B] [--batches 1,32,256]

The engine serves requests of 1,024 tokens under torch.profiler; kernels between the first and the
last decode step count. Idle is the time in which no kernel ran, as a share of the whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from engine_speed import Bench, Ceilings
from measure_ceilings import environment

PROMPT = 1024
STEPS = 40
SKIPPED = 8  # decode steps at either end that do not count


def timeline(bench: Bench, batch: int) -> dict[str, Any]:
    """Kernels and idle time of the middle decode steps of one batch."""
    bench.serve([PROMPT] * batch, [4] * batch, mode="prefill_first")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        bench.serve([PROMPT] * batch, [STEPS] * batch, mode="prefill_first")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    device = sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"], e["cat"])
        for e in events
        if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e
    )
    # A step ends with its one copy to the host.
    ends = [end for _, end, name, _ in device if "DtoH" in name]
    first, last = ends[-STEPS + SKIPPED], ends[-SKIPPED]
    inside = [e for e in device if first < e[1] <= last]
    busy, at, gaps = 0.0, first, []
    for start, end, _, _ in inside:
        if start > at:
            gaps.append(start - at)
        busy += max(0.0, end - max(start, at))
        at = max(at, end)
    steps = sum(first < end <= last for end in ends)
    total = last - first
    # With programmatic dependent launch a kernel starts while the one before it runs, and waits.
    # What it adds to the step is the time from the end of all kernels before it to its own end.
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    latest = first
    for start, end, name, _ in sorted(inside, key=lambda e: e[1]):
        by_name[name].append((end - latest, end - start))
        latest = end
    kernels = [
        {"name": name[:90], "per_step": len(times) / steps,
         "added_us_per_step": sum(t[0] for t in times) / steps,
         "added_us_each": sum(t[0] for t in times) / len(times),
         "us_each": sum(t[1] for t in times) / len(times)}
        for name, times in by_name.items()
    ]  # fmt: skip
    kernels.sort(key=lambda kernel: -kernel["added_us_per_step"])
    return {
        "batch": batch, "steps": steps, "us_per_step": total / steps,
        "idle_percent": 100 * (total - busy) / total, "gaps_per_step": len(gaps) / steps,
        "longest_gap_us": max(gaps, default=0.0), "kernels": kernels,
    }  # fmt: skip


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="Llama-3.1-8B")
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--commit")
    parser.add_argument("--top", type=int, default=14)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"schema": "decode_timeline/v1", **environment(arguments.commit)}
    result["model"] = arguments.model
    bench = Bench(arguments.model, Ceilings(1.0, 1.0))
    result["points"] = [timeline(bench, int(b)) for b in arguments.batches.split(",")]
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for point in result["points"]:
        print(
            f"{arguments.model} batch {point['batch']}: {point['us_per_step']:.0f} us a step, "
            f"idle {point['idle_percent']:.2f} %, longest gap {point['longest_gap_us']:.1f} us"
        )
        for kernel in point["kernels"][: arguments.top]:
            print(
                f"  {kernel['added_us_per_step']:9.1f} us  {kernel['per_step']:6.1f} x "
                f"{kernel['added_us_each']:8.2f} ({kernel['us_each']:.2f})  {kernel['name'][:70]}"
            )


if __name__ == "__main__":
    main()
