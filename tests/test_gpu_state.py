"""What `nvidia-smi` says of a GPU while it is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.profiling.gpu_state import GpuState

SCRIPT = """#!/bin/sh
test "$1" = --id=0000:3b:00.0 || exit 1
echo '1980, 3201, 600.5, 41'
echo '1755, 3201, 699.0, 60'
echo '[N/A], 3201, 1.0, 2'
echo '1800, 3201, 690.0, 55'
printf 17
touch told
exec sleep 60
"""


def test_least_median_and_greatest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every quantity, over the lines that are whole and known."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SCRIPT, encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with GpuState("0000:3b:00.0") as state:
        while not (tmp_path / "told").exists():
            time.sleep(0.01)
    assert state.summary() == {
        "sm_clock_mhz": {"min": 1755.0, "median": 1800.0, "max": 1980.0},
        "memory_clock_mhz": {"min": 3201.0, "median": 3201.0, "max": 3201.0},
        "power_w": {"min": 600.5, "median": 690.0, "max": 699.0},
        "temperature_c": {"min": 41.0, "median": 55.0, "max": 60.0},
    }


@pytest.mark.parametrize("bus_id", [None, "0000:3b:00.0"])
def test_nobody_to_ask(bus_id: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no such state, and a container may lack the tool: measuring goes on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuState(bus_id) as state:
        pass
    assert state.summary() == {}
