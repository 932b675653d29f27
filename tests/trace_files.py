"""Trace files for the tests of their readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.workload.trace_errors import TraceError
from workbench.workload.traces import read_trace

FIXTURES = Path(__file__).parent / "fixtures" / "traces"
NAMES = ("azure_2023.csv", "azure_2024.csv", "burstgpt_v1.csv", "burstgpt_v2.csv", "mooncake.jsonl")
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "trace"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    return str(caught.value)
