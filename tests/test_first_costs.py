"""What a first call spends is counted by cause, and nothing stays patched afterwards."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.runtime.autotuner import Autotuner

from engine.kernels import nvrtc
from engine.profiling.first_costs import AUTOTUNE, CAPTURED, COMPILE, CUDA_CPP, LOAD, FirstCosts


def hooks() -> list:
    """All that is watched."""
    return [
        triton.knobs.compilation.listener, triton.knobs.runtime.kernel_load_start_hook,
        triton.knobs.runtime.kernel_load_end_hook, nvrtc.compile_source, Autotuner.run,
        torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.capture_end,
    ]  # fmt: skip


def test_compiling_and_loading_are_what_triton_says() -> None:
    """In us of its own; what it finds in its cache was not compiled."""
    costs = FirstCosts()
    with costs.watching():
        compiled = triton.knobs.compilation.listener
        times = SimpleNamespace(total=2_500)
        compiled(src=None, metadata={}, metadata_group={}, times=times, cache_hit=False)
        compiled(src=None, metadata={}, metadata_group={}, times=times, cache_hit=True)
        triton.knobs.runtime.kernel_load_start_hook(None, None, "k", {}, "h")
        time.sleep(0.005)
        triton.knobs.runtime.kernel_load_end_hook(None, None, "k", {}, "h")
    assert costs.ms[COMPILE] == 2.5
    assert costs.counts[COMPILE] == costs.counts[LOAD] == 1
    assert costs.ms[LOAD] >= 5


def test_tuning_is_what_is_left_of_a_tuned_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what it compiled; a run that knows its tile already is no tuning."""
    costs = FirstCosts()
    tuner = SimpleNamespace(cache={})

    def run(self: SimpleNamespace, key: int) -> int:
        if key not in self.cache:
            times = SimpleNamespace(total=1_000)
            triton.knobs.compilation.listener(times=times, cache_hit=False)
            time.sleep(0.01)
            self.cache[key] = 0
        return key

    monkeypatch.setattr(Autotuner, "run", run)
    with costs.watching():
        assert Autotuner.run(tuner, 3) == 3
        Autotuner.run(tuner, 3)
    assert costs.counts[AUTOTUNE] == 1
    assert costs.ms[AUTOTUNE] >= 10 - 1
    assert costs.ms[COMPILE] == 1.0


def test_captures_are_timed_from_begin_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is between."""
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda graph, **_: None)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_end", lambda graph: None)
    costs = FirstCosts()
    with costs.watching():
        graph = object.__new__(torch.cuda.CUDAGraph)
        graph.capture_begin(pool=None)
        time.sleep(0.005)
        graph.capture_end()
    assert costs.counts[CAPTURED] == 1
    assert costs.ms[CAPTURED] >= 5


def test_nothing_stays_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the watched call ends well or not; a source that does not compile costs, too."""
    before = hooks()
    costs = FirstCosts()

    def fails(source: str, name: str) -> bytes:
        raise nvrtc.NvrtcError(name)

    with pytest.raises(RuntimeError, match="over"), costs.watching():
        raise RuntimeError("over")
    assert hooks() == before
    monkeypatch.setattr(nvrtc, "compile_source", fails)
    with pytest.raises(nvrtc.NvrtcError), costs.watching():
        nvrtc.compile_source("x", "y")
    assert costs.counts[CUDA_CPP] == 1
    assert nvrtc.compile_source is fails
