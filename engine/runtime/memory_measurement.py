"""How many KV pages fit: measured on the device, after everything else has had its turn.

The model runs once with the largest step that it may get and its largest decode step, over a cache
of a few pages; the CUDA Graphs of the two largest buckets are captured on trial. What is free then,
less what must stay free and the graphs yet to come, is for pages.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from engine.core.model_spec import ModelSpec
from engine.models.kv_cache import KvCache, allocate_kv_cache
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.models.transformer import Transformer
from engine.runtime.device_state import DeviceState
from engine.runtime.executor import EngineError
from engine.runtime.runner_config import RunnerConfig

_MIB = 1 << 20
_GRAPH_BYTES = 8 * _MIB  # each further graph: nodes and their arguments, measured 3 to 6 MiB
_GRAPH_POOL_BYTES = 256 * _MIB  # what all graphs share: activations and logits of the largest
_TRIAL_CONTEXT = 4096  # tokens of the trial's longest chunk


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a device's memory went, in bytes.

    Attributes:
        total: of the device.
        free_before_cache: after the trial step.
        kept_free: not for this engine.
        graphs: set aside for CUDA Graphs.
        page: of one page, all layers.
        num_pages: that fit.
    """

    total: int
    free_before_cache: int
    kept_free: int
    graphs: int
    page: int
    num_pages: int


def page_bytes(spec: ModelSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return per_token * page_size * dtype.itemsize


def measure(config: RunnerConfig, transformer: Transformer, dtype: torch.dtype) -> Memory:
    """Run the largest step, and count what is left for pages on the GPU.

    Raises:
        EngineError: not even one page is left, or the largest step does not fit.
    """
    device = transformer.weights.embed.device
    run_largest_step(config, transformer, dtype)
    gc.collect()
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    kept_free = int(total * (1 - config.memory_fraction))
    buckets = len(config.cuda_graph_batch_sizes)
    graphs = _GRAPH_POOL_BYTES + buckets * _GRAPH_BYTES if buckets else 0
    page = page_bytes(transformer.spec, config.page_size, dtype)
    # The dummy page is one more than requests may hold.
    fit = (free - kept_free - graphs) // page - 1
    wanted = config.num_pages
    if fit < (wanted or 1):
        raise EngineError(
            f"{transformer.spec.name}: {wanted or 1:,} KV pages of {page / _MIB:.2f} MiB do not"
            f" fit: {free / _MIB:,.0f} of {total / _MIB:,.0f} MiB are free, {kept_free / _MIB:,.0f}"
            f" must stay so (memory_fraction {config.memory_fraction:g}), {graphs / _MIB:,.0f} are"
            f" for CUDA Graphs: {max(fit, 0):,} pages fit"
        )
    return Memory(total, free, kept_free, graphs, page, wanted or fit)


def run_largest_step(config: RunnerConfig, transformer: Transformer, dtype: torch.dtype) -> None:
    """Prefill as many tokens as a step may hold, and decode as many requests as may run.

    Also compiles what these steps need and makes libraries allocate their workspaces. The chunks
    are as long as prompts usually are at most, since one chunk costs the most memory.

    Raises:
        EngineError: out of memory.
    """
    spec, device = transformer.spec, transformer.weights.embed.device
    longest = min(config.max_num_batched_tokens, config.max_model_len or _TRIAL_CONTEXT)
    cache = allocate_kv_cache(spec, 4, config.page_size, device, dtype)
    pages = -(-longest // config.page_size) + 1
    rows = config.max_running_requests
    state = DeviceState(rows, pages, cache.dummy_page, (rows + 1) * spec.num_kv_heads, device)
    try:
        with torch.inference_mode():
            _prefill(transformer, cache, state, config.max_num_batched_tokens, longest)
            _decode(transformer, cache, state, rows)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{spec.name} does not fit: out of memory in a trial step of "
            f"{config.max_num_batched_tokens:,} tokens; lower max_num_batched_tokens"
        ) from error


def _prefill(
    transformer: Transformer, cache: KvCache, state: DeviceState, tokens: int, longest: int
) -> None:
    lengths = [longest] * (tokens // longest)
    if rest := tokens - sum(lengths):
        lengths.append(rest)
    device = state.device

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = int32([sum(lengths[:at]) for at in range(len(lengths) + 1)])
    positions = torch.cat([torch.arange(n, dtype=torch.int32, device=device) for n in lengths])
    rows = int32([0] * len(lengths))
    zeros = torch.zeros(tokens, dtype=torch.int32, device=device)
    sampled = min(len(lengths), state.rows)
    for no_context in (True, False):
        chunks = PrefillInputs(starts, rows, int32([0] * len(lengths)), tuple(lengths), no_context)
        step = StepInputs(
            zeros, positions, zeros, state.page_table, state.last_tokens, state.counters, chunks,
            starts[1 : sampled + 1] - 1,
        )  # fmt: skip
        transformer.forward(step, cache)


def _decode(transformer: Transformer, cache: KvCache, state: DeviceState, rows: int) -> None:
    zeros = torch.zeros(rows, dtype=torch.int32, device=state.device)
    step = StepInputs(
        zeros, zeros, zeros + state.dummy_row, state.page_table, state.last_tokens, state.counters
    )
    logits = transformer.forward(step, cache)
    logits.float()  # samplers may want them so
