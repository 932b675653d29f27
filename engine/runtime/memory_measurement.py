"""How many KV pages fit: measured on the device, after everything else has had its turn.

A trial runner over a cache of a few pages runs the largest steps that may come and captures the
largest graphs of each kind. What is free then, less what must stay free and the graphs yet to come,
is for pages.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from engine.core.model_spec import ModelSpec
from engine.runtime.executor import EngineError
from engine.runtime.model_runner import ModelRunner

_MIB = 1 << 20
TRIAL_PAGES = 4
_LIBRARIES = 64 * _MIB  # they load kernels when a shape first comes, which no trial foresees
_GRANULE = 2 * _MIB  # in which the driver takes memory: what takes less shows now and then only


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a device's memory went, in bytes.

    Attributes:
        total: of the device.
        free: after the trial steps, when nothing is left of them but what libraries keep.
        kept_free: not for this engine.
        activations: what the largest step takes while it runs, and gives back.
        graphs: that the CUDA Graphs are going to take.
        page: of one page, all layers.
        num_pages: that requests may hold.
    """

    total: int
    free: int
    kept_free: int
    activations: int
    graphs: int
    page: int
    num_pages: int


def page_bytes(spec: ModelSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return per_token * page_size * dtype.itemsize


def measure(trial: ModelRunner) -> Memory:
    """Run the largest steps on a trial runner, capture some graphs, and count what is left.

    Raises:
        EngineError: not even one page is left, or the largest step does not fit.
    """
    config, device, spec = trial.config, trial.device, trial.spec
    try:
        activations = _activation_bytes(trial)
        free, total = _free(device), torch.cuda.mem_get_info(device)[1]
        graphs = _graph_bytes(trial)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{spec.name} does not fit: out of memory in a trial step of"
            f" {config.max_num_batched_tokens:,} tokens; lower max_num_batched_tokens"
        ) from error
    page = page_bytes(spec, config.page_size, trial.dtype)
    kept_free = int(total * (1 - config.memory_fraction))
    # The dummy page is one more than requests may hold, and the trial's pages will be free.
    left = free + (TRIAL_PAGES + 1) * page - kept_free - activations - graphs - _LIBRARIES
    fit, wanted = left // page - 1, config.num_pages or 1
    if fit < wanted:
        raise EngineError(
            f"{spec.name}: {wanted:,} KV pages of {page / _MIB:.2f} MiB do not fit:"
            f" {free / _MIB:,.0f} MiB are free beside the model, {kept_free / _MIB:,.0f} must stay"
            f" so (memory_fraction {config.memory_fraction:g}), {activations / _MIB:,.0f} are for a"
            f" step of {config.max_num_batched_tokens:,} tokens, {graphs / _MIB:,.0f} for CUDA"
            f" Graphs, {_LIBRARIES / _MIB:,.0f} for libraries: {max(fit, 0):,} pages fit"
        )
    return Memory(total, free, kept_free, activations, graphs, page, config.num_pages or fit)


def _activation_bytes(trial: ModelRunner) -> int:
    """What the allocator holds at the height of the largest steps and gives back after them."""
    device = trial.device
    _free(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial.steps.run_largest_steps()
    peak = torch.cuda.max_memory_reserved(device)
    _free(device)
    return peak - torch.cuda.memory_reserved(device)


def _graph_bytes(trial: ModelRunner) -> int:
    """What all graphs will take: the largest of a kind as measured, others as the second."""
    total = 0
    for capture, sizes in trial.steps.graph_captures():
        taken = []
        for size in sizes[-1:-3:-1]:
            before = _free(trial.device)
            with torch.inference_mode():
                capture(size)
            taken.append(max(0, before - _free(trial.device)))
        if taken:
            total += taken[0] + _GRANULE + (taken[-1] + _GRANULE) * (len(sizes) - 1)
    return total


def _free(device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
