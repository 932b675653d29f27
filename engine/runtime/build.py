"""Builds a model runner: finds the model, loads it, measures memory, warms up."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.core.graph_sizes import default_graph_tokens
from engine.core.model_spec import ModelSpec, load_model_spec
from engine.kernels.nvrtc import NvrtcError
from engine.kernels.registry import select_kernels
from engine.models.dummy_weights import dummy_weights
from engine.models.kv_cache import allocate_kv_cache
from engine.models.model_folder import find_model, special_tokens
from engine.models.transformer import Transformer
from engine.models.weight_loading import load_weights
from engine.runtime.executor import EngineError
from engine.runtime.memory_measurement import TRIAL_PAGES, measure, page_bytes
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.running_step import on_device

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_GIB = 1 << 30
_CPU_CACHE_BYTES = _GIB
_LEAST_CAPABILITY = (9, 0)  # tensor memory accelerator, programmatic dependent launch
_LEAST_HEAD_DIM = 16  # inner size of a matrix product


def build_runner(
    config: RunnerConfig,
    clock: Callable[[], int],
    on_progress: Callable[[str], None] = lambda _: None,
) -> ModelRunner:
    """A runner that is ready to serve.

    Args:
        config: what to build.
        clock: ns since the start of the run, never going back.
        on_progress: told what is being done, in a few words.

    Raises:
        EngineError: no such device, the model does not fit, or a library is missing.
        ModelNotFoundError: no such model on this machine.
        ModelConfigError, CheckpointError: it cannot be read.
    """
    device = find_device(config.device)
    try:
        with on_device(device):
            return _build(config, device, clock, on_progress)
    except NvrtcError as error:
        raise EngineError(str(error)) from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". If reserved")[0]
        raise EngineError(f"{config.model} does not fit on {device}: {reason}") from error


def _build(
    config: RunnerConfig,
    device: torch.device,
    clock: Callable[[], int],
    on_progress: Callable[[str], None],
) -> ModelRunner:
    found = find_model(config.model, config.load_format)
    folder, spec = found.folder, load_model_spec(found.shape)
    dtype = _DTYPES[config.dtype or ("fp32" if device.type == "cpu" else spec.dtype)]
    max_model_len = min(config.max_model_len or spec.max_model_len, spec.max_model_len)
    graphs = config.cuda_graph_batch_sizes if device.type == "cuda" else ()
    tokens = config.cuda_graph_tokens
    if tokens is None:
        tokens = default_graph_tokens(spec) if graphs else ()
    config = replace(
        config,
        max_model_len=max_model_len,
        cuda_graph_batch_sizes=graphs,
        cuda_graph_tokens=tokens,
    )
    kernels = select_kernels(device, config.kernels)
    cpu_pages = 0
    if device.type == "cuda":
        _check_gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
        _check_kernels_take(spec)
    else:
        cpu_pages = config.num_pages or _cpu_pages(config, spec, dtype)
        _check_host_memory(spec, dtype, cpu_pages * page_bytes(spec, config.page_size, dtype))
    if config.load_format == "dummy":
        on_progress("making random weights")
        weights = dummy_weights(spec, device, dtype, config.seed)
    else:
        if folder is None:
            raise EngineError(f"{config.model} has no weights")
        on_progress(f"loading {folder}")
        weights = load_weights(folder, spec, device, dtype)
    with torch.inference_mode():
        transformer = Transformer(spec, weights, kernels, max_model_len)

    known = special_tokens(folder).eos if folder is not None else ()
    eos = tuple(token for token in known if token < spec.vocab_size)

    def runner_over(model: Transformer, pages: int) -> ModelRunner:
        cache = allocate_kv_cache(model.spec, pages, config.page_size, device, dtype)
        return ModelRunner(config, model, cache, clock, eos)

    if device.type == "cpu":
        return runner_over(transformer, cpu_pages)
    on_progress("compiling kernels")
    with torch.inference_mode():
        shallow = transformer.shallow()
    runner_over(shallow, TRIAL_PAGES).steps.compile_kernels()
    on_progress("measuring memory")
    trial = runner_over(transformer, TRIAL_PAGES)
    pages = measure(trial).num_pages
    trial.close()
    del trial
    gc.collect()
    torch.cuda.empty_cache()
    runner = runner_over(transformer, pages)
    on_progress("capturing CUDA Graphs")
    runner.steps.capture_graphs()
    torch.cuda.empty_cache()  # what only capturing needed
    return runner


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU if there is one.

    Raises:
        EngineError: there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device {name!r} is not one of cpu, cuda, cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(f"device {name!r}: torch {torch.__version__} sees no GPU here")
        index = device.index if device.index is not None else torch.cuda.current_device()
        if index >= torch.cuda.device_count():
            raise EngineError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise EngineError(f"device {name!r} is not one of cpu, cuda, cuda:N")
    return device


def _check_gpu(name: str, capability: tuple[int, int]) -> None:
    """Refuse GPUs that lack what the kernels use, and on which they were never run."""
    if capability < _LEAST_CAPABILITY:
        needed, has = (".".join(map(str, pair)) for pair in (_LEAST_CAPABILITY, capability))
        raise EngineError(
            f"{name} has compute capability {has}; the engine's kernels need {needed} (Hopper)"
        )


def _check_kernels_take(spec: ModelSpec) -> None:
    """Refuse shapes that our kernels are not written for, before anything is loaded."""
    if spec.head_dim & (spec.head_dim - 1) or spec.head_dim < _LEAST_HEAD_DIM:
        raise EngineError(
            f"{spec.name}: the engine's attention kernels need a head_dim that is a power of two"
            f" and at least {_LEAST_HEAD_DIM}, not {spec.head_dim}; a CPU serves it (device cpu)"
        )


def _cpu_pages(config: RunnerConfig, spec: ModelSpec, dtype: torch.dtype) -> int:
    """Memory is shared with everybody: a fixed share of it, but room for one long text.

    Half of what the weights leave must do, even if a long text needs more.
    """
    page = page_bytes(spec, config.page_size, dtype)
    longest = -(-(config.max_model_len or 1) // config.page_size)
    left = max(0, _host_memory() - _weight_bytes(spec, dtype)) // 2
    wanted = max(_CPU_CACHE_BYTES // page, longest)
    return max(1, min(wanted, longest * config.max_running_requests, left // page))


def _check_host_memory(spec: ModelSpec, dtype: torch.dtype, cache_bytes: int) -> None:
    """Refuse what can never fit: the system would promise the memory and kill the process later."""
    weights, memory = _weight_bytes(spec, dtype), _host_memory()
    if weights + cache_bytes > memory:
        raise EngineError(
            f"{spec.name} does not fit on the CPU: {weights / _GIB:,.1f} GiB of weights"
            f" ({str(dtype).removeprefix('torch.')}) and {cache_bytes / _GIB:,.1f} GiB of KV pages,"
            f" but the machine has {memory / _GIB:,.1f} GiB of memory"
        )


def _weight_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    return spec.num_parameters * dtype.itemsize


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
