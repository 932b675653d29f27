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


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a device's memory went, in bytes.

    Attributes:
        total: of the device.
        free: after the trial steps, with nothing of the trial left but what libraries keep.
        kept_free: not for this engine.
        graphs: that the CUDA Graphs are going to take.
        page: of one page, all layers.
        num_pages: that requests may hold.
    """

    total: int
    free: int
    kept_free: int
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
    config, device = trial.config, trial.device
    try:
        trial.steps.run_largest_steps()
        graphs = _graph_bytes(trial)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{trial.spec.name} does not fit: out of memory in a trial step of"
            f" {config.max_num_batched_tokens:,} tokens; lower max_num_batched_tokens"
        ) from error
    free, total = _free(device), torch.cuda.mem_get_info(device)[1]
    page = page_bytes(trial.spec, config.page_size, trial.dtype)
    kept_free = int(total * (1 - config.memory_fraction))
    return Memory(total, free, kept_free, graphs, page, _num_pages(trial, free, kept_free, graphs))


def _num_pages(trial: ModelRunner, free: int, kept_free: int, graphs: int) -> int:
    config, page = trial.config, page_bytes(trial.spec, trial.config.page_size, trial.dtype)
    # The dummy page is one more than requests may hold, and the trial's pages will be free.
    fit = (free + (TRIAL_PAGES + 1) * page - kept_free - graphs) // page - 1
    wanted = config.num_pages or 1
    if fit < wanted:
        raise EngineError(
            f"{trial.spec.name}: {wanted:,} KV pages of {page / _MIB:.2f} MiB do not fit:"
            f" {free / _MIB:,.0f} MiB are free beside the model, {kept_free / _MIB:,.0f} must stay"
            f" so (memory_fraction {config.memory_fraction:g}), {graphs / _MIB:,.0f} are for CUDA"
            f" Graphs: {max(fit, 0):,} pages fit"
        )
    return config.num_pages or fit


def _graph_bytes(trial: ModelRunner) -> int:
    """What all graphs will take: the largest of a kind measured, others as much as the second."""
    total = 0
    for capture, sizes in trial.steps.graph_captures():
        taken = []
        for size in sizes[-1:-3:-1]:
            before = _free(trial.device)
            with torch.inference_mode():
                capture(size)
            taken.append(max(0, before - _free(trial.device)))
        if taken:
            total += taken[0] + taken[-1] * (len(sizes) - 1)
    return total


def _free(device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
