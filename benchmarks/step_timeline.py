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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine_speed import Bench, Ceilings
from measure_ceilings import environment

from engine.profiling.traced_steps import Tracer
from workbench.profile.gaps import occupation
from workbench.profile.trace import Trace, parse_events

PROMPT = 1024
STEPS = 40
SKIPPED = 8  # decode steps at either end that do not count


def device_work(work: Callable[[], object]) -> Trace:
    """What the GPU did during `work`, in order of start."""
    tracer = Tracer()
    tracer.start()
    work()
    tracer.stop()
    return parse_events(tracer.events)


def summarize(trace: Trace, first: float, last: float, steps: int) -> dict[str, Any]:
    """Idle time and kernels between two times in us, per step.

    With programmatic dependent launch a kernel starts while the one before it runs, and waits: what
    it adds is its time from the end of all kernels before it (`workbench.profile.gaps`).
    """
    inside = tuple(work for work in trace.device if first < work.end_us <= last)
    spent = occupation(Trace(inside, trace.host))
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for work, added in zip(inside, spent.added_us, strict=True):
        by_name[work.name].append((added, work.duration_us))
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
    idle = total - spent.busy_us
    return {
        "steps": steps,
        "us_per_step": total / steps,
        "idle_percent": 100 * idle / total,
        "gaps_per_step": len(spent.gaps) / steps,
        "longest_gap_us": max((gap.duration_us for gap in spent.gaps), default=0.0),
        "kernels": kernels,
    }


def decode_timeline(bench: Bench, batch: int) -> dict[str, Any]:
    """The middle decode steps of one batch."""
    bench.serve([PROMPT] * batch, [4] * batch, mode="prefill_first")
    trace = device_work(
        lambda: bench.serve([PROMPT] * batch, [STEPS] * batch, mode="prefill_first")
    )
    # A step ends with its one copy to the host.
    ends = [work.end_us for work in trace.device if "DtoH" in work.name]
    first, last = ends[-STEPS + SKIPPED], ends[-SKIPPED]
    steps = sum(first < end <= last for end in ends)
    return {"what": f"decode, batch {batch}", **summarize(trace, first, last, steps)}


def prefill_timeline(bench: Bench, prompts: int, tokens: int) -> dict[str, Any]:
    """All steps of some prompts that come at once, together as one."""
    bench.serve([tokens] * prompts, [1] * prompts)
    trace = device_work(lambda: bench.serve([tokens] * prompts, [1] * prompts))
    first, last = trace.device[0].start_us, max(work.end_us for work in trace.device)
    return {"what": f"prefill, {prompts}x{tokens}", **summarize(trace, first, last, 1)}


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
    result: dict[str, Any] = {"schema": "timeline/v2", **environment(arguments.commit)}
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
