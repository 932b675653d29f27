"""Gap stories of workloads that are made up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from profile_traces import call, even_trace, kernel

from workbench.profile.gap_story import GapStory, stories_to_json, story_of
from workbench.profile.latest_gaps import MEASURED_HERE

UNITS, KERNELS = 10, 40


def phases(folder: Path, eager_gap: float, graph_gap: float) -> GapStory:
    """The story of a folder as `engine.profiling.phases` leaves it."""
    first = [call("cudaMalloc", 5, 3_000, 1), kernel("k", 9, 2_000, 2)]
    traces = {
        "cold": first, "capture": first,
        "eager": even_trace(UNITS * KERNELS, 3.0, eager_gap),
        "graph": even_trace(UNITS * KERNELS, 3.0, graph_gap),
    }  # fmt: skip
    found: dict = {}
    for name, events in traces.items():
        file = folder / f"{name}.json.gz"
        file.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
        gap = eager_gap if name == "eager" else graph_gap
        found[name] = {"trace": file.name, "wall_ms": 100.0, "causes_ms": {"compiling": 60.0},
                       "counts": {"compiling": 4}, "unit_ms": KERNELS * (3.0 + gap) / 1e3,
                       "units": UNITS}  # fmt: skip
    about = {"what": "a workload", "unit": "step", "gpu": "a GPU", "torch": "2", "cuda": "13"}
    (folder / "phases.json").write_text(json.dumps({**about, "phases": found}))
    return story_of(folder)


def left_here(folder: Path) -> list[GapStory]:
    """Two stories in the file of the current folder, made in another one."""
    stories = [phases(folder, 5.0, 0.5), phases(folder, 0.3, 0.1)]
    MEASURED_HERE.parent.mkdir(exist_ok=True)
    MEASURED_HERE.write_text(json.dumps(stories_to_json(stories, None)))
    return stories
