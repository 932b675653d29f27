"""A diffusion transformer's denoising loop: deterministic DDIM. Needs torch.

x' = sqrt(a') x0 + sqrt(1 - a') noise, with x0 = (x - sqrt(1 - a) noise) / sqrt(a), where a is what
is left of the signal at a time step and a' at the next (Song et al. 2020, arXiv:2010.02502, eq. 12,
without its random part). All that changes from step to step is on the device, so that one CUDA
Graph is every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.dit import Dit

_TIMES = 1000
_FIRST_BETA, _LAST_BETA = 1e-4, 2e-2


def signal_left() -> Tensor:
    """float64[1000], the share of the signal's variance at each time step: linear betas."""
    betas = torch.linspace(_FIRST_BETA, _LAST_BETA, _TIMES, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


class DenoisingLoop:
    """Makes images of noise, in a number of equal steps.

    Args:
        model: predicts the noise.
        batch: images at a time.
        steps: from noise to image.
    """

    def __init__(self, model: Dit, batch: int, steps: int) -> None:
        table = model.weights.classes
        spec, device = model.spec, table.device
        self._model, self.steps = model, steps
        shape = (batch, spec.in_channels, spec.input_size, spec.input_size)
        self._latents = torch.zeros(shape, dtype=torch.float32, device=device)
        self._classes = torch.zeros(batch, dtype=torch.int64, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        times = torch.linspace(_TIMES - 1, 0, steps).round().to(torch.int64)
        left = torch.cat([signal_left()[times], torch.ones(1, dtype=torch.float64)])
        self._times = times.to(device, torch.float32)
        self._signal = left.sqrt().to(device, torch.float32)
        self._noise = (1 - left).sqrt().to(device, torch.float32)
        self._graph: torch.cuda.CUDAGraph | None = None

    def begin(self, noise: Tensor, classes: Tensor) -> None:
        """Take noise [B, C, S, S] and classes int64[B] to make images of."""
        self._latents.copy_(noise)
        self._classes.copy_(classes)
        self._at.zero_()

    @property
    def images(self) -> Tensor:
        """float32[B, C, S, S], as far as they are."""
        return self._latents

    def step(self) -> None:
        """One step, launched kernel by kernel."""
        with torch.inference_mode():
            at, after = self._at, self._at + 1
            batch = len(self._latents)
            latents = self._latents.to(self._model.weights.classes.dtype)
            times = self._times[at].expand(batch)
            noise = self._model.forward(latents, times, self._classes).to(torch.float32)
            clean = (self._latents - self._noise[at] * noise) / self._signal[at]
            self._latents.copy_(self._signal[after] * clean + self._noise[after] * noise)
            self._at.copy_(after)

    def replay(self) -> None:
        """One step, as a CUDA Graph, which is captured at first."""
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The graph of a step; the images stay as they are."""
        kept, at = self._latents.clone(), self._at.clone()
        stream = torch.cuda.Stream(self._latents.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()  # libraries make their workspaces now, which capturing cannot
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        self._latents.copy_(kept)
        self._at.copy_(at)
        return graph
