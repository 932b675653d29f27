"""The denoising loop follows DDIM's formula, and takes an image apart and together again."""

from __future__ import annotations

import torch

from engine.models.dit import Dit, DitSpec, random_weights
from engine.profiling.denoising import DenoisingLoop, signal_left

SPEC = DitSpec(hidden_size=16, num_layers=1, num_heads=2, input_size=8, num_classes=3)


def test_the_loop_is_ddim_step_by_step() -> None:
    """Every step equals the formula in float64, up to float32's rounding."""
    model = Dit(SPEC, random_weights(SPEC, "cpu", torch.float32))
    loop = DenoisingLoop(model, batch=2, steps=5)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    classes = torch.tensor([0, 2])
    loop.begin(noise, classes)
    left, wanted = signal_left(), noise.double()
    times = torch.linspace(999, 0, 5).round().long().tolist()
    for number, time in enumerate(times):
        now = left[time]
        after = left[times[number + 1]] if number + 1 < len(times) else torch.ones(())
        predicted = model.forward(wanted.float(), torch.full((2,), float(time)), classes).double()
        clean = (wanted - (1 - now).sqrt() * predicted) / now.sqrt()
        wanted = after.sqrt() * clean + (1 - after).sqrt() * predicted
        loop.step()
        assert torch.allclose(loop.images.double(), wanted, rtol=1e-4, atol=1e-4)


def test_it_can_begin_again() -> None:
    """The same noise and classes give the same images, whatever was made before."""
    loop = DenoisingLoop(Dit(SPEC, random_weights(SPEC, "cpu", torch.float32)), batch=1, steps=2)
    noise, images = torch.randn(1, 4, 8, 8), []
    for classes in (torch.tensor([1]), torch.tensor([2]), torch.tensor([1])):
        loop.begin(noise, classes)
        loop.step()
        loop.step()
        images.append(loop.images.clone())
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_the_signal_fades_to_nothing() -> None:
    """Nearly all of it is left at the first time step, and next to nothing at the last."""
    left = signal_left()
    assert (left.diff() < 0).all()
    assert left[0] > 0.999
    assert left[-1] < 1e-4
