"""Small traces made by hand, in the format of torch's profiler."""

from __future__ import annotations

from typing import Any

from engine.profiling.op_classes import LABELLED, MEASURED, RANGE, STEP

THREAD = {"pid": 1, "tid": 7}


def kernel(name: str, start: float, length: float, correlation: int = -1, **arguments: Any) -> dict:
    """A kernel."""
    return {
        "ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": length, "pid": 0, "tid": 7,
        "args": {"stream": 7, "correlation": correlation, **arguments},
    }  # fmt: skip


def copied(start: float, length: float, correlation: int = -1) -> dict:
    """A copy to the host."""
    event = kernel("Memcpy DtoH (Device -> Pinned)", start, length, correlation)
    return {**event, "cat": "gpu_memcpy"}


def call(name: str, start: float, length: float, correlation: int = -1) -> dict:
    """A call of CUDA."""
    return {
        "ph": "X", "cat": "cuda_runtime", "name": name, "ts": start, "dur": length, **THREAD,
        "args": {"correlation": correlation},
    }  # fmt: skip


def op(name: str, start: float, length: float) -> dict:
    """An op of torch on the host."""
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": start, "dur": length, **THREAD}


def ranged(name: str, start: float, length: float) -> dict:
    """One of our ranges."""
    event = op(RANGE + name, start, length)
    return {**event, "cat": "user_annotation"}


LAYER = ("_rms_norm_kernel", "linear_hopper", "_rotary_kernel", "_decode_attention_kernel",
         "linear_hopper", "_rms_norm_kernel", "_skinny_kernel", "linear_hopper")  # fmt: skip
LAYER_CLASSES = ("norm", "qkv", "rotary", "attention_decode", "output", "norm", "gate_up", "down")
BEGIN, END = ("_write_pages_kernel", "_embed_tokens_kernel"), ("_rms_norm_kernel", "linear_hopper",
    "_scan_kernel", "_choose_kernel")  # fmt: skip
BEGIN_CLASSES, END_CLASSES = ("page_table", "embedding"), ("norm", "lm_head", "sampling",
                                                           "sampling")  # fmt: skip
STEP_KERNELS = BEGIN + 2 * LAYER + END
STEP_CLASSES = BEGIN_CLASSES + 2 * LAYER_CLASSES + END_CLASSES


def graph_steps(steps: int = 2, length: float = 5.0, gap: float = 1.0) -> list[dict]:
    """Steps of a model of two layers that a CUDA Graph replays, and one launched kernel by kernel.

    Each kernel takes `length` us and is followed by `gap` us of nothing; between two steps there
    are 30 us more, in which the host prepares the next.
    """
    events: list[dict] = []
    at, host, correlation = 100.0, 50.0, 1
    whole = (length + gap) * len(STEP_KERNELS)
    for _ in range(steps):
        events += [ranged(STEP, host, 60.0), op("aten::copy_", host + 1, 44.0),
                   call("cudaGraphLaunch", host + 46, 4.0, correlation)]  # fmt: skip
        for place, name in enumerate(STEP_KERNELS):
            events.append(kernel(name, at + place * (length + gap), length, correlation))
        at += whole + 30.0 - gap
        host = at - 45.0
        correlation += 1
    events.append(ranged(MEASURED, 40.0, at - 45.0))
    return events + labelled_step(at + 1000.0, correlation + 100)


def labelled_step(at: float, correlation: int) -> list[dict]:
    """A step of which every op is in its range; the norm belongs to the product after it."""
    events: list[dict] = []
    host = at
    for place, (name, kind) in enumerate(zip(STEP_KERNELS, STEP_CLASSES, strict=True)):
        inside = STEP_CLASSES[place + 1] if kind == "norm" else kind
        events += [ranged(inside, host, 8.0), call("cuLaunchKernelEx", host + 1, 2.0, correlation),
                   kernel(name, host + 5, 3.0, correlation)]  # fmt: skip
        host += 10.0
        correlation += 1
    return [*events, ranged(LABELLED, at - 1, host - at + 2)]


def even_trace(kernels: int, length: float, gap: float) -> list[dict]:
    """Kernels that are all alike, each launched just before it runs."""
    events: list[dict] = []
    at = 10.0
    for number in range(kernels):
        events += [call("cudaLaunchKernel", at - 2.0, 1.5, number), kernel("k", at, length, number)]
        at += length + gap
    return events
