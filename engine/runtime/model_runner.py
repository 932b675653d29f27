"""Carries out plans: turns them into tensors, runs the model, chooses tokens.

Nothing waits for the device: tokens stay there and feed the next step, and their copy on the host
is asked for later. On a CPU a step is done when `launch` returns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from traceback import clear_frames
from typing import Any

import torch

from engine.core.model_spec import ModelSpec
from engine.core.plan import StepPlan
from engine.kernels.nvrtc import NvrtcError, nvrtc_version
from engine.models.kv_cache import KvCache
from engine.models.transformer import Transformer
from engine.nvtx_ranges import annotate
from engine.runtime.ceilings import measure_ceilings
from engine.runtime.device_state import SamplingAsks
from engine.runtime.executor import RunningStep, StepFailedError
from engine.runtime.host_step import HostStep, StepBuilder
from engine.runtime.request_rows import RequestRows
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.running_step import (
    DoneStep,
    GpuStep,
    is_out_of_memory,
    on_device,
    raise_if_device_is_lost,
    step_output,
    to_host,
)
from engine.runtime.step_clock import StepClock, StepEvents
from engine.runtime.step_runner import StepRunner
from engine.sampling_params import SamplingParams


class ModelRunner:
    """One replica of a model on one device; an `engine.runtime.executor.Executor`.

    Args:
        config: as resolved: nothing in it is left open.
        transformer: the model.
        cache: its KV pages.
        clock: ns since the start of the run.
        eos_token_ids: tokens that end a text.

    Attributes:
        transformer: the model.
        max_model_len: longest prompt plus output.
    """

    def __init__(
        self,
        config: RunnerConfig,
        transformer: Transformer,
        cache: KvCache,
        clock: Callable[[], int],
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        if config.max_model_len is None:
            raise ValueError("max_model_len must be resolved before a runner is made")
        self.config = config
        self.max_model_len = config.max_model_len
        self.eos_token_ids = eos_token_ids
        self.device = cache.pool.device
        self.transformer = transformer
        self._cache, self._clock = cache, clock
        self._runner = StepRunner(config, transformer, cache)
        state = self._runner.state
        rows = RequestRows(state.rows, state.assign)
        self._builder = StepBuilder(rows, self._runner.max_pages, cache.page_size)
        self._steps = StepClock(clock)
        self._on_gpu = self.device.type == "cuda"

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.transformer.spec

    @property
    def num_pages(self) -> int:
        """KV pages that requests may hold."""
        return self._cache.num_pages

    def facts(self) -> dict[str, Any]:
        """What a run's header should say of the engine."""
        name = torch.cuda.get_device_name(self.device) if self._on_gpu else "cpu"
        return {
            "device": name,
            "dtype": str(self._cache.pool.dtype).removeprefix("torch."),
            "kernels": dict(self.transformer.kernels.chosen),
            "num_pages": self.num_pages,
            "page_size": self._cache.page_size,
            "cuda_graph_batch_sizes": list(self.config.cuda_graph_batch_sizes),
            "cuda_graph_tokens": list(self.config.graph_tokens if self._on_gpu else ()),
            "kv_cache_bytes": self._cache.pool.nbytes,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "cuda": torch.version.cuda if self._on_gpu else None,
            "nvrtc": _nvrtc() if self._on_gpu else None,
            "pci_bus_id": _pci_bus_id(self.device) if self._on_gpu else None,
        }

    def ceilings(self) -> dict[str, float]:
        """As `measure_ceilings`; nothing on a CPU."""
        if not self._on_gpu:
            return {}
        with on_device(self.device):
            return measure_ceilings(self.device)

    def register(self, request_id: int, params: SamplingParams) -> None:
        """Tell how a request samples, before it is planned; one that is not told of is greedy."""
        self._runner.state.register(request_id, params)

    def forget(self, request_id: int) -> None:
        """A request has ended."""
        self._runner.state.forget(request_id)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self._cache.pool.dtype

    @property
    def steps(self) -> StepRunner:
        """What runs the steps, to warm it up."""
        return self._runner

    def launch(self, plan: StepPlan) -> RunningStep:
        """Queue a step; see `Executor.launch`."""
        try:
            with on_device(self.device):
                return self._launch(plan)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise_if_device_is_lost(error)
                raise
            self._clean_up(error)
            tokens = plan.prefill_tokens + plan.decode_tokens
            raise StepFailedError(
                f"out of memory in a step of {tokens} tokens: {str(error).splitlines()[0]}"
            ) from error

    def fill_cache_with_noise(self) -> None:
        """Random keys and values in all pages, for steps over texts that nobody has computed."""
        with torch.inference_mode():
            self._cache.pool.normal_()

    def close(self) -> None:
        """Let go of the graphs and the cache; the runner cannot be used afterwards."""
        self._runner.close()
        del self._cache, self.transformer, self._runner, self._builder
        if self._on_gpu:
            with suppress(RuntimeError):  # of a lost device, which gives nothing back
                torch.cuda.empty_cache()

    def _launch(self, plan: StepPlan) -> RunningStep:
        with annotate("prepare"):
            host = self._builder.build(plan)
        asks = self._runner.state.asks(host.sampled)
        with torch.inference_mode():
            if not self._on_gpu:
                return self._run_now(host, asks)
            return self._launch_on_gpu(plan, host, asks)

    def _clean_up(self, error: RuntimeError) -> None:
        """After a step that could not be queued as a whole: wait for what was, and make room.

        Buffers that the rest of it may still read are used again only then. Whoever keeps the error
        must not keep the step's tensors with it.
        """
        clear_frames(error.__traceback__)
        if not self._on_gpu:
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as lost:
            raise_if_device_is_lost(lost)
            raise

    def _run_now(self, host: HostStep, asks: SamplingAsks) -> RunningStep:
        launched_ns = self._clock()
        sampled = self._runner.run(host, asks)
        taken_ns = self._clock() - launched_ns
        return DoneStep(step_output(sampled, launched_ns, taken_ns, in_launch=True))

    def _launch_on_gpu(self, plan: StepPlan, host: HostStep, asks: SamplingAsks) -> RunningStep:
        events = StepEvents(
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(),
        )
        launched_ns = self._clock()
        events.begin.record()
        sampled = self._runner.run(host, asks, plan.graph_batch)
        events.end.record()
        on_host = to_host(sampled, len(host.sampled))
        events.copied.record()
        return GpuStep(events, on_host, self._steps, launched_ns)


def _pci_bus_id(device: torch.device) -> str:
    """As `nvidia-smi` names a GPU."""
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.pci_domain_id:08x}:{facts.pci_bus_id:02x}:{facts.pci_device_id:02x}.0"


def _nvrtc() -> str | None:
    """Its version; None: it is not there, and nothing that runs needs it."""
    try:
        return nvrtc_version()
    except NvrtcError:
        return None


def _version(module: str) -> str | None:
    found = sys.modules.get(module)
    return getattr(found, "__version__", None)
