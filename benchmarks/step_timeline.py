"""Where the time of steps goes: kernels by what they add, and how long the GPU was idle.

    python benchmarks/step_timeline.py out.json [--model Llama-3.1-8B] [--batches 1,32,256]
        [--prefills 1x8192,16x1024]

The engine serves requests of 1,024 tokens under torch.profiler; kernels of the middle decode steps
count. Idle is the time in which no kernel ran, as a share of the whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from engine_speed import Bench, Ceilings
from measure_ceilings import environment

PROMPT = 1024
STEPS = 40
SKIPPED = 8  # decode steps at either end that do not count


class Event(NamedTuple):
    """A kernel or copy, times in us."""

    start: float
    end: float
    name: str


def device_events(work: Callable[[], object]) -> list[Event]:
    """What the GPU did during `work`, in order of start."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return sorted(
        Event(e["ts"], e["ts"] + e["dur"], e["name"])
        for e in events
        if e.get("cat") in kinds and "dur" in e
    )


def summarize(events: list[Event], first: float, last: float, steps: int) -> dict[str, Any]:
    """Idle time and kernels between two times, per step.

    With programmatic dependent launch a kernel starts while the one before it runs, and waits. What
    it adds to the step is the time from the end of all kernels before it to its own end.
    """
    inside = [e for e in events if first < e.end <= last]
    busy, at, gaps = 0.0, first, []
    for event in inside:
        if event.start > at:
            gaps.append(event.start - at)
        busy += max(0.0, event.end - max(event.start, at))
        at = max(at, event.end)
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    latest = first
    for event in sorted(inside, key=lambda e: e.end):
        by_name[event.name].append((event.end - latest, event.end - event.start))
        latest = event.end
    kernels = [
        {
            "name": name[:90],
            "per_step": len(times) / steps,
            "added_us_per_step": sum(t[0] for t in times) / steps,
            "added_us_each": sum(t[0] for t in times) / len(times),
            "us_each": sum(t[1] for t in times) / len(times),
        }
        for name, times in by_name.items()
    ]
    kernels.sort(key=lambda kernel: -kernel["added_us_per_step"])
    total = last - first
    return {
        "steps": steps,
        "us_per_step": total / steps,
        "idle_percent": 100 * (total - busy) / total,
        "gaps_per_step": len(gaps) / steps,
        "longest_gap_us": max(gaps, default=0.0),
        "kernels": kernels,
    }


def decode_timeline(bench: Bench, batch: int) -> dict[str, Any]:
    """The middle decode steps of one batch."""
    bench.serve([PROMPT] * batch, [4] * batch, mode="prefill_first")
    events = device_events(
        lambda: bench.serve([PROMPT] * batch, [STEPS] * batch, mode="prefill_first")
    )
    # A step ends with its one copy to the host.
    ends = [event.end for event in events if "DtoH" in event.name]
    first, last = ends[-STEPS + SKIPPED], ends[-SKIPPED]
    steps = sum(first < end <= last for end in ends)
    return {"what": f"decode, batch {batch}", **summarize(events, first, last, steps)}


def prefill_timeline(bench: Bench, prompts: int, tokens: int) -> dict[str, Any]:
    """All steps of some prompts that come at once, together as one."""
    bench.serve([tokens] * prompts, [1] * prompts)
    events = device_events(lambda: bench.serve([tokens] * prompts, [1] * prompts))
    first, last = events[0].start, max(event.end for event in events)
    return {"what": f"prefill, {prompts}x{tokens}", **summarize(events, first, last, 1)}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="Llama-3.1-8B")
    parser.add_argument("--batches", default="1,32,256", help="decode batches; empty: none")
    parser.add_argument("--prefills", default="", help="as 1x8192,16x1024")
    parser.add_argument("--commit")
    parser.add_argument("--top", type=int, default=14)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"schema": "timeline/v1", **environment(arguments.commit)}
    result["model"] = arguments.model
    bench = Bench(arguments.model, Ceilings(1.0, 1.0))
    batches = [int(batch) for batch in arguments.batches.split(",") if batch]
    prefills = [part.split("x") for part in arguments.prefills.split(",") if part]
    points = [decode_timeline(bench, batch) for batch in batches]
    points += [prefill_timeline(bench, int(n), int(tokens)) for n, tokens in prefills]
    result["points"] = points
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for point in points:
        print(
            f"{arguments.model} {point['what']}: {point['us_per_step']:.0f} us a step, "
            f"idle {point['idle_percent']:.2f} %, longest gap {point['longest_gap_us']:.1f} us"
        )
        for kernel in point["kernels"][: arguments.top]:
            print(
                f"  {kernel['added_us_per_step']:9.1f} us  {kernel['per_step']:6.1f} x "
                f"{kernel['added_us_each']:8.2f} ({kernel['us_each']:.2f})  {kernel['name'][:70]}"
            )


if __name__ == "__main__":
    main()
