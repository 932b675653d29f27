"""How many pages fit, on a device whose memory is a number."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.runtime.executor import EngineError
from engine.runtime.memory_measurement import TRIAL_PAGES, measure, page_bytes
from engine.runtime.runner_config import RunnerConfig

MIB = 1 << 20
SPEC = SimpleNamespace(name="toy", num_layers=4, num_kv_heads=8, head_dim=64)
PAGE = 4 * 2 * 8 * 64 * 16 * 2  # bytes of 16 tokens in bf16
TOTAL, MODEL = 1000 * MIB, 300 * MIB


class Device:
    """A GPU and torch's allocator, which keeps what it has got until it is told to let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept = MODEL + (TRIAL_PAGES + 1) * PAGE
        self.reserved = self.peak = self.kept
        fakes: dict[str, Callable[[Any], Any]] = {
            "synchronize": lambda _: None,
            "mem_get_info": lambda _: (TOTAL - self.reserved, TOTAL),
            "memory_reserved": lambda _: self.reserved,
            "max_memory_reserved": lambda _: self.peak,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "empty_cache", self._let_go)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def use(self, size: int, kept: int = 0) -> None:
        """Allocate, and free all but `kept`."""
        self.kept += kept
        self.reserved += size
        self.peak = max(self.peak, self.reserved)

    def _let_go(self) -> None:
        self.reserved = self.kept

    def _reset(self, _: Any) -> None:
        self.peak = self.reserved


class Trial:
    """A trial runner whose steps and graphs take stated amounts of memory."""

    def __init__(self, device: Device, config: RunnerConfig, step: int = 80 * MIB) -> None:
        self.config, self.spec, self.dtype = config, SPEC, torch.bfloat16
        self.device = torch.device("cuda", 0)
        self.steps = self
        self._memory, self._step = device, step

    def run_largest_steps(self) -> None:
        if self._step > 500 * MIB:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._memory.use(30 * MIB)
        self._memory.use(self._step - 30 * MIB, kept=7 * MIB)  # a library's workspace stays

    def graph_captures(self) -> list[tuple[Callable[[int], None], tuple[int, ...]]]:
        if not self.config.cuda_graph_batch_sizes:
            return []
        return [(self._capture, self.config.cuda_graph_batch_sizes)]

    def _capture(self, size: int) -> None:
        most = max(self.config.cuda_graph_batch_sizes)
        cost = (40 if size == most else 3) * MIB
        self._memory.use(cost + 11 * MIB, kept=cost)


def config(**settings: Any) -> RunnerConfig:
    return RunnerConfig(model="toy", **settings)


def test_a_page_is_all_layers() -> None:
    """Keys and values of every layer, KV head and token of a page."""
    assert page_bytes(SPEC, 16, torch.bfloat16) == PAGE
    assert page_bytes(SPEC, 1, torch.float32) == PAGE // 8


def test_pages_take_what_nothing_else_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, workspaces, the largest step, the graphs, the dummy page and the share of others."""
    settings = config(memory_fraction=0.75, cuda_graph_batch_sizes=(1, 2, 4, 8))
    memory = measure(Trial(Device(monkeypatch), settings))
    assert memory.activations == (80 - 7) * MIB
    assert memory.graphs == (42 + 3 * 5) * MIB  # each as seen, and a granule of 2 MiB
    assert memory.kept_free == 250 * MIB
    left = TOTAL - MODEL - 7 * MIB - 250 * MIB - 73 * MIB - 57 * MIB - 64 * MIB  # libraries
    assert memory.num_pages == left // PAGE - 1
    assert memory.total == TOTAL


def test_a_stated_number_of_pages_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pages than fit are taken as they are asked for."""
    assert measure(Trial(Device(monkeypatch), config(num_pages=17))).num_pages == 17


def test_no_graphs_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that runs everything eagerly sets nothing aside for graphs."""
    assert measure(Trial(Device(monkeypatch), config())).graphs == 0


def test_too_many_pages_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how many were wanted, how many fit, and where the memory goes."""
    with pytest.raises(EngineError) as raised:
        measure(Trial(Device(monkeypatch), config(num_pages=10_000, memory_fraction=0.75)))
    parts = ("toy: 10,000 KV pages of 0.12 MiB do not fit", "250 must stay", "73 are for a step")
    for part in parts:
        assert part in str(raised.value)


def test_no_page_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the model leaves nothing, that is said before anything is served."""
    with pytest.raises(EngineError, match=r"1 KV pages .* 0 pages fit"):
        measure(Trial(Device(monkeypatch), config(memory_fraction=0.3)))


def test_a_step_that_does_not_fit_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the trial is told with what to lower."""
    with pytest.raises(EngineError, match="8,192 tokens; lower max_num_batched_tokens"):
        measure(Trial(Device(monkeypatch), config(), step=600 * MIB))
