"""On a GPU: a denoising loop as a graph is the loop; classes told by place are those of ranges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_device import ON_GPU

from engine.models.dit import Dit, DitSpec, random_weights
from engine.profiling.denoising import DenoisingLoop
from workbench.cli.profile_work import analysed
from workbench.profile.recording import StepRequest, record_step
from workbench.profile.step_text import parse_step
from workbench.profile.trace import read_trace

pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU: WORKBENCH_TEST_DEVICE=cuda")
SPEC = DitSpec(hidden_size=64, num_layers=2, num_heads=2, input_size=16, num_classes=3)


def test_replayed_steps_are_the_steps() -> None:
    """Bit for bit, from the first on; capturing leaves the images alone."""
    loop = DenoisingLoop(Dit(SPEC, random_weights(SPEC, "cuda", torch.bfloat16)), 2, steps=6)
    noise, classes = torch.randn(2, 4, 16, 16), torch.tensor([0, 2])
    made = []
    for step in (loop.step, loop.replay, loop.replay):
        loop.begin(noise, classes)
        made.append([])
        for _ in range(loop.steps):
            step()
            made[-1].append(loop.images.clone())
    for eager, first, again in zip(*made, strict=True):
        assert torch.equal(eager, first)
        assert torch.equal(eager, again)


@pytest.mark.parametrize("text", ["decode:1x100", "decode:8x100", "decode:64x100", "prefill:2x700",
                                  "mixed:1x300+16x100"])  # fmt: skip
@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-30B-A3B"])
def test_places_agree_with_ranges(model: str, text: str, tmp_path: Path) -> None:
    """Of every kernel of a step; busy and idle time are the whole."""
    request = StepRequest(text=text, design=parse_step(text), model=model, load_format="dummy",
                          layers=2, steps=5)  # fmt: skip
    path = tmp_path / "trace.json.gz"
    record_step(request, path)
    found = analysed(read_trace(path))
    assert found.labels_checked > 10
    assert not found.labels_wrong
    assert sum(found.groups.values()) + found.idle_us == pytest.approx(found.step_us, rel=1e-3)
    assert all(one.rate is not None for one in found.classes if one.kind in ("qkv", "output"))
