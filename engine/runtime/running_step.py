"""Steps in flight, and how their results and failures reach the host."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from engine.kernels.sampling_batch import SampleResult
from engine.runtime.executor import ExecutorDiedError, StepOutput, TopLogprobs
from engine.runtime.step_clock import StepClock, StepEvents


class DoneStep:
    """A step that was done when it was launched."""

    def __init__(self, output: StepOutput) -> None:
        self._output = output

    def is_done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return self._output


class GpuStep:
    """A step that the GPU is working on, or has queued."""

    def __init__(
        self, events: StepEvents, sampled: SampleResult, clock: StepClock, launched_ns: int
    ) -> None:
        self._events, self._sampled = events, sampled
        self._clock, self._launched_ns = clock, launched_ns

    def is_done(self) -> bool:
        try:
            return self._events.copied.query()
        except RuntimeError:
            return True  # `result` tells what happened

    def result(self) -> StepOutput:
        try:
            self._events.copied.synchronize()
            start_ns, gpu_ns = self._clock.place(self._events, self._launched_ns)
        except RuntimeError as error:
            raise_if_device_is_lost(error)
            raise
        return step_output(self._sampled, start_ns, gpu_ns)


def to_host(sampled: SampleResult, count: int) -> SampleResult:
    """The same in pinned memory, as soon as the device gets there."""

    def copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        host = torch.empty((count, *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor[:count], non_blocking=True)

    tokens = copy(sampled.tokens)
    if tokens is None:
        raise AssertionError("a sampler always gives tokens")
    return SampleResult(
        tokens, copy(sampled.logprobs), copy(sampled.top_logprobs), copy(sampled.top_ids)
    )


def step_output(
    sampled: SampleResult, start_ns: int, gpu_ns: int, *, in_launch: bool = False
) -> StepOutput:
    """What a step brought, of tensors on the host."""
    top = None
    if sampled.top_ids is not None and sampled.top_logprobs is not None:
        top = TopLogprobs(sampled.top_ids.numpy(), sampled.top_logprobs.numpy())
    logprobs = None if sampled.logprobs is None else sampled.logprobs.numpy()
    tokens = sampled.tokens.numpy().astype(np.int32, copy=False)
    return StepOutput(tokens, logprobs, top, start_ns, gpu_ns, in_launch)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the one that this thread launches kernels and records events on.

    Every thread has a present device of its own, which is the first one unless it says otherwise.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, of a GPU or of the host.

    Torch has a class for its own allocator only, not for what CUDA itself takes: a graph, say.
    """
    said = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def raise_if_device_is_lost(error: RuntimeError) -> None:
    """An error of the device as what it means to a driver."""
    text = str(error)
    if "CUDA" in text or "cuda" in type(error).__name__.lower():
        raise ExecutorDiedError(f"the device is lost: {text.splitlines()[0]}") from error
