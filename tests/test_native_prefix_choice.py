"""Which prefix cache a run gets: the one in C++ where it is built and was faster, else Python's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from engine.core.config import SchedulerConfig
from engine.core.scheduler import Scheduler
from engine.native import build, prefix_cache
from engine.native.cache_speed import measure_cache_speed
from engine.native.prefix_cache import inject, is_faster, native_cache
from workbench.cli import app

pytestmark = pytest.mark.usefixtures("prefix_cache_builds")


def scheduler(**settings: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(
        num_pages=100, max_model_len=512, max_num_batched_tokens=512, max_running_requests=8,
        **settings,
    ))  # fmt: skip


def test_only_a_faster_build_is_wanted(
    prefix_cache_builds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wanted is what is built and was measured to be faster here, and not if builds are off."""
    monkeypatch.setenv("WORKBENCH_NATIVE", "1")
    file = prefix_cache.speed_file()
    file.unlink(missing_ok=True)
    assert not is_faster()
    for native_us, wanted in ((1.0, True), (3.0, False)):
        file.write_text(json.dumps({"native_us": native_us, "python_us": 2.0}))
        assert is_faster() == wanted
        assert inject(scheduler()) == wanted
    file.write_text(json.dumps({"native_us": 1.0, "python_us": 2.0}))
    monkeypatch.setenv("WORKBENCH_NATIVE", "0")
    assert not inject(scheduler())
    monkeypatch.setenv("WORKBENCH_NATIVE", "1")
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(prefix_cache_builds / "none"))
    assert not inject(scheduler())


def test_nothing_is_injected_where_there_is_no_cache_or_no_place_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scheduler without a prefix cache gets none, and a core of machine code keeps its own."""
    assert not inject(scheduler(prefix_cache=False), lambda: True)
    monkeypatch.setattr(prefix_cache, "active_build", lambda: Path("somewhere"))
    assert not inject(scheduler(), lambda: True)


def test_a_scheduler_that_has_served_keeps_its_cache() -> None:
    """Changing the cache under cached pages is refused."""
    served = scheduler()
    served.kv.cache.match(np.array([1], np.int32))
    with pytest.raises(ValueError, match="before it serves"):
        inject(served, lambda: True)


def test_both_caches_are_timed_on_the_same_answers() -> None:
    """The comparison that decides has both caches give equal answers, in some time."""
    speed = measure_cache_speed()
    assert speed.equal
    assert min(speed.python_us, speed.native_us) > 0


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be built the error names what is missing, and nothing is injected."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NativeUnavailableError, match=r"g\+\+ is not installed; it takes pip"):
        native_cache(16)
    assert not is_faster()


def test_building_ahead_measures_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`workbench native --extensions-only` builds what it can and writes down who was faster."""
    monkeypatch.setattr(shutil, "which", lambda name, which=shutil.which: (
        None if name == "nvcc" else which(name)
    ))  # fmt: skip
    prefix_cache.speed_file().unlink(missing_ok=True)
    result = CliRunner().invoke(app, ["native", "--extensions-only"])
    assert result.exit_code == 0, result.output
    assert "workbench_ops_cuda: left out, nvcc is not installed" in result.output
    assert "us of CPU a request in C++" in result.output
    assert set(json.loads(prefix_cache.speed_file().read_text())) >= {"native_us", "python_us"}
