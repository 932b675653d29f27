"""The measured costs of the TUI keep its rules."""

from __future__ import annotations

import json
from pathlib import Path

MEASURED = Path(__file__).parent.parent / "benchmarks/results/tui_frames.json"


def test_the_measured_frames_and_seeks_keep_the_rules() -> None:
    """25 CPU-ms and 60 kB a frame at 120x36 on 100,000 pages, 2 ms a seek in 100,000 steps."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert measured["run"]["pages"] >= 100_000
    assert measured["run"]["steps"] >= 100_000
    assert measured["seeks"]["p95_ms"] <= 2
    frames = [frame for frame in measured["frames"] if frame["size"] == "120x36"]
    assert {frame["page_map"] for frame in frames} == {"state", "owner", "age", "references"}
    for frame in [*frames, measured["compare"]]:
        assert frame["cpu_ms"] <= 25
        assert frame["bytes"] <= 60_000
