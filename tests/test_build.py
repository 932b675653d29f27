"""What is refused before, or while, a runner is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import engine.runtime.build
from engine.core.model_spec import load_model_spec
from engine.runtime.build import build_runner
from engine.runtime.executor import EngineError
from engine.runtime.runner_config import RunnerConfig


def config(**settings: Any) -> RunnerConfig:
    return RunnerConfig(model="Qwen3-0.6B", load_format="dummy", device="cpu", **settings)


def test_what_no_machine_can_hold_is_refused_at_once() -> None:
    """On a CPU the system promises memory that is not there, so the engine counts before."""
    said: list[str] = []
    with pytest.raises(EngineError, match=r"Qwen3-0.6B does not fit on the CPU: 2\.[0-9] GiB of"):
        build_runner(config(num_pages=10**9), lambda: 0, said.append)
    assert said == []


def test_a_long_context_does_not_keep_a_model_from_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that nobody asked for take at most half of the memory that the weights leave."""
    spec, page = load_model_spec("Qwen3-0.6B"), 2 * 28 * 8 * 128 * 16 * 4
    memory = 4 * spec.num_parameters + 200 * page
    monkeypatch.setattr(engine.runtime.build, "_host_memory", lambda: memory)
    assert engine.runtime.build._cpu_pages(config(), spec, torch.float32) == 100


def test_a_full_device_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory while weights or pages are made is an error of the engine, in a sentence."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB. If reserved but unused ...")

    monkeypatch.setattr(engine.runtime.build, "dummy_weights", full)
    with pytest.raises(EngineError, match=r"Qwen3-0.6B does not fit on cpu: CUDA.*Tried 9 GiB$"):
        build_runner(config(), lambda: 0)


@pytest.mark.parametrize("name", ["page_size", "num_pages", "max_model_len"])
@pytest.mark.parametrize("value", [1.5, "16", True])
def test_a_count_is_an_integer(name: str, value: object) -> None:
    """Anything else is named, where tensors would say something strange later."""
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        config(**{name: value})
