"""Carries out plans: turns them into tensors, runs the model, chooses tokens.

On a GPU a pure decode step replays the CUDA Graph of the plan's bucket; other steps are launched
kernel by kernel. Nothing waits for the device: tokens stay there and feed the next step, and their
copy on the host is asked for later. On a CPU a step is done when `launch` returns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.core.config import MAX_PLANS_IN_FLIGHT
from engine.core.model_spec import ModelSpec
from engine.core.plan import StepPlan
from engine.kernels.launching import compile_only
from engine.kernels.sampling_batch import SampleResult
from engine.models.kv_cache import KvCache
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.models.transformer import Transformer
from engine.nvtx_ranges import annotate
from engine.runtime.decode_graphs import DecodeColumns, DecodeGraphs, DecodeOutputs
from engine.runtime.device_state import COMMON_ASKS, NOTHING_SPECIAL, DeviceState, SamplingAsks
from engine.runtime.executor import (
    ExecutorDiedError,
    RunningStep,
    StepFailedError,
    StepOutput,
    TopLogprobs,
)
from engine.runtime.host_step import HostStep, StepBuilder
from engine.runtime.request_rows import RequestRows
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.step_clock import StepClock, StepEvents
from engine.runtime.token_graphs import TokenGraphs
from engine.runtime.transfers_to_device import Upload
from engine.runtime.trial_steps import trial_decode, trial_prefill
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
        self._transformer, self._cache, self._clock = transformer, cache, clock
        # Besides the running requests, those whose last token an earlier plan in flight brings.
        rows = MAX_PLANS_IN_FLIGHT * config.max_running_requests
        max_pages = -(-self.max_model_len // cache.page_size)
        heads = transformer.spec.num_kv_heads
        self._state = DeviceState(
            rows,
            max_pages,
            cache.dummy_page,
            (config.max_running_requests + 1) * heads,
            self.device,
        )
        self._builder = StepBuilder(
            RequestRows(rows, self._state.assign), max_pages, cache.page_size
        )
        self._upload = Upload(self.device, 4 * config.max_num_batched_tokens + 64)
        self._on_gpu = self.device.type == "cuda"
        self._steps = StepClock(clock)
        self._graphs = (
            DecodeGraphs(self._run_decode, self._state.dummy_row, self.device)
            if self._on_gpu and config.cuda_graph_batch_sizes
            else None
        )
        empty = torch.empty(0, dtype=torch.int32, device=self.device)
        self._token_graphs = (
            TokenGraphs(
                transformer, cache, self._inputs(empty, empty, empty), config.graph_tokens,
                self._graphs.pool,
            )
            if self._graphs is not None and config.graph_tokens
            else None
        )  # fmt: skip

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self._transformer.spec

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
            "kernels": dict(self._transformer.kernels.chosen),
            "num_pages": self.num_pages,
            "page_size": self._cache.page_size,
            "cuda_graph_batch_sizes": list(self.config.cuda_graph_batch_sizes),
            "cuda_graph_tokens": list(self.config.graph_tokens if self._on_gpu else ()),
            "kv_cache_bytes": self._cache.pool.nbytes,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "cuda": torch.version.cuda if self._on_gpu else None,
        }

    def register(self, request_id: int, params: SamplingParams) -> None:
        """Tell how a request samples, before it is planned; one that is not told of is greedy."""
        self._state.register(request_id, params)

    def forget(self, request_id: int) -> None:
        """A request has ended."""
        self._state.forget(request_id)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self._cache.pool.dtype

    def graph_captures(self) -> list[tuple[Callable[[int], object], tuple[int, ...]]]:
        """For each kind of CUDA Graph, what captures one of a size, and the sizes, ascending."""
        captures: list[tuple[Callable[[int], object], tuple[int, ...]]] = []
        if self._token_graphs is not None:
            captures.append((self._token_graphs.get, self.config.graph_tokens))
        if (graphs := self._graphs) is not None:
            sizes = self.config.cuda_graph_batch_sizes
            captures.append((lambda size: graphs.get(size, chooses=True), sizes))
        return captures

    def capture_graphs(self) -> None:
        """Capture all CUDA Graphs, the largest first, so that the others fit into its memory."""
        with torch.inference_mode():
            for capture, sizes in self.graph_captures():
                for size in reversed(sizes):
                    capture(size)

    def compile_kernels(self) -> None:
        """Compile what steps of all kinds need, side by side."""
        with torch.inference_mode(), compile_only():
            for asks in (NOTHING_SPECIAL, *COMMON_ASKS):
                step = trial_decode(2, self._state.dummy_row)
                self._run_eagerly(step, asks, allow_graphs=False)
            for batch in {*self.config.cuda_graph_batch_sizes, 1, self.config.max_running_requests}:
                self._run_decode_eagerly(batch)
            longest = min(self.config.max_num_batched_tokens, self.max_model_len)
            # An odd number of tokens is another variant of some kernels; few tokens are, too.
            for tokens in sorted({longest, longest - 1, *self.config.graph_tokens, 5, 2} - {0}):
                for context in (0, 1):
                    self._trial_prefill(tokens, min(tokens, self.max_model_len - 1), context)

    def run_largest_steps(self) -> None:
        """Prefill as many tokens as a step may hold, and decode as many requests as may run.

        Libraries allocate what they need meanwhile. One chunk that is as long as it may be costs
        more memory than several.
        """
        most, longest = self.config.max_num_batched_tokens, self.max_model_len - 1
        with torch.inference_mode():
            for context in (0, 1):
                self._trial_prefill(most, max(1, min(most, longest)), context)
            self._run_decode_eagerly(self.config.max_running_requests)

    def _trial_prefill(self, tokens: int, longest: int, context: int) -> None:
        step = trial_prefill(tokens, longest, self._state.dummy_row, context=context)
        if len(step.sampled) <= self.config.max_running_requests:
            self._run_eagerly(step, NOTHING_SPECIAL, allow_graphs=False)

    def _run_decode_eagerly(self, batch: int) -> None:
        self._run_eagerly(
            trial_decode(batch, self._state.dummy_row), NOTHING_SPECIAL, allow_graphs=False
        )

    def launch(self, plan: StepPlan) -> RunningStep:
        """Queue a step; see `Executor.launch`."""
        with annotate("prepare"):
            host = self._builder.build(plan)
        asks = self._state.asks(host.sampled)
        try:
            with torch.inference_mode():
                if not self._on_gpu:
                    return self._run_now(host, asks)
                return self._launch_on_gpu(plan, host, asks)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                _raise_if_device_is_lost(error)
                raise
            if self._on_gpu:
                torch.cuda.empty_cache()
            raise StepFailedError(
                f"out of memory in a step of {len(host.token_ids)} tokens: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Let go of the graphs and the cache; the runner cannot be used afterwards."""
        self._graphs = self._token_graphs = None
        del self._cache, self._transformer, self._state
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _run_now(self, host: HostStep, asks: SamplingAsks) -> RunningStep:
        launched_ns = self._clock()
        sampled = self._run_eagerly(host, asks)
        return _DoneStep(_output(sampled, launched_ns, self._clock() - launched_ns))

    def _launch_on_gpu(self, plan: StepPlan, host: HostStep, asks: SamplingAsks) -> RunningStep:
        events = StepEvents(
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(),
        )
        launched_ns = self._clock()
        events.begin.record()
        if plan.graph_batch and self._graphs is not None:
            sampled = self._replay(self._graphs, plan.graph_batch, host, asks)
        else:
            sampled = self._run_eagerly(host, asks)
        events.end.record()
        on_host = _to_host(sampled, len(host.sampled))
        events.copied.record()
        return _GpuStep(events, on_host, self._steps, launched_ns)

    def _replay(
        self, graphs: DecodeGraphs, batch: int, host: HostStep, asks: SamplingAsks
    ) -> SampleResult:
        chooses = asks == NOTHING_SPECIAL
        captured = graphs.get(batch, chooses=chooses)
        count = len(host.rows)
        # A member begins at most one page in a step, so the new pages fit too.
        columns = [host.token_ids, host.positions, host.rows, host.new_at, host.new_pages]
        self._upload.send(graphs.padded(columns, batch), into=captured.inputs)
        captured.graph.replay()
        outputs = captured.outputs
        if outputs.sampled is not None:
            return outputs.sampled
        if outputs.logits is None:
            raise AssertionError("a captured step leaves tokens or logits")
        rows, positions = captured.columns.rows[:count], captured.columns.positions[:count]
        return self._sample(outputs.logits[:count], rows, positions, asks)

    def _run_decode(self, columns: DecodeColumns, chooses: bool) -> DecodeOutputs:
        """A decode step on its columns; captured, hence free of anything that waits."""
        with torch.inference_mode():
            self._write_pages(columns.new_at, columns.new_pages)
            logits = self._transformer.forward(
                self._inputs(columns.token_ids, columns.positions, columns.rows), self._cache
            )
            if not chooses:
                return DecodeOutputs(logits, None)
            sampled = self._sample(logits, columns.rows, columns.positions, NOTHING_SPECIAL)
        return DecodeOutputs(None, sampled)

    def _run_eagerly(
        self, host: HostStep, asks: SamplingAsks, *, allow_graphs: bool = True
    ) -> SampleResult:
        """A step with prefill, or one too large for the graphs of decode steps."""
        chunks, graphs = host.prefill, self._token_graphs if allow_graphs else None
        arrays = [host.token_ids, host.positions, host.rows, host.logit_rows]
        arrays += [host.new_at, host.new_pages]
        if chunks is not None:
            arrays += [chunks.starts, chunks.rows, chunks.contexts]
        ids, positions, rows, logit_rows, new_at, new_pages, *rest = self._upload.send(arrays)
        self._write_pages(new_at, new_pages)
        size = graphs.size_for(len(ids)) if graphs is not None else None
        prefill = None
        if chunks is not None:
            no_context = size is None and not chunks.contexts.any()
            prefill = PrefillInputs(*rest, lengths=chunks.lengths, no_context=no_context)
        step = self._inputs(ids, positions, rows, prefill, logit_rows)
        with annotate("forward"):
            if graphs is not None and size is not None:
                logits = self._replay_pieces(graphs, size, step)
            else:
                logits = self._transformer.forward(step, self._cache)
        if not len(logits):
            return SampleResult(ids[:0])
        with annotate("sample"):
            rows, positions = (part.index_select(0, logit_rows) for part in (rows, positions))
            return self._sample(logits, rows, positions, asks)

    def _replay_pieces(self, graphs: TokenGraphs, size: int, step: StepInputs) -> torch.Tensor:
        captured = graphs.get(size)
        graphs.fill(captured, step, self._state.dummy_row)
        return self._transformer.logits(graphs.run(captured, step), step.logit_rows)

    def _inputs(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        prefill: PrefillInputs | None = None,
        logit_rows: torch.Tensor | None = None,
    ) -> StepInputs:
        state = self._state
        return StepInputs(
            token_ids, positions, rows, state.page_table, state.last_tokens, state.counters,
            prefill, logit_rows,
        )  # fmt: skip

    def _write_pages(self, at: torch.Tensor, pages: torch.Tensor) -> None:
        self._transformer.kernels.write_pages(self._state.page_table, at, pages)

    def _sample(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        asks: SamplingAsks,
    ) -> SampleResult:
        batch = self._state.sampling_batch(rows, positions, asks)
        return self._transformer.kernels.sample(logits, batch, self._state.last_tokens, rows)


class _DoneStep:
    """A step that was done when it was launched."""

    def __init__(self, output: StepOutput) -> None:
        self._output = output

    def is_done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return self._output


class _GpuStep:
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
            _raise_if_device_is_lost(error)
            raise
        return _output(self._sampled, start_ns, gpu_ns)


def _to_host(sampled: SampleResult, count: int) -> SampleResult:
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


def _output(sampled: SampleResult, start_ns: int, gpu_ns: int) -> StepOutput:
    top = None
    if sampled.top_ids is not None and sampled.top_logprobs is not None:
        top = TopLogprobs(sampled.top_ids.numpy(), sampled.top_logprobs.numpy())
    logprobs = None if sampled.logprobs is None else sampled.logprobs.numpy()
    tokens = sampled.tokens.numpy().astype(np.int32, copy=False)
    return StepOutput(tokens, logprobs, top, start_ns, gpu_ns)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, of a GPU or of the host (for which torch has no class)."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _raise_if_device_is_lost(error: RuntimeError) -> None:
    """An error of the device as what it means to a driver."""
    text = str(error)
    if "CUDA" in text or "cuda" in type(error).__name__.lower():
        raise ExecutorDiedError(f"the device is lost: {text.splitlines()[0]}") from error


def _version(module: str) -> str | None:
    found = sys.modules.get(module)
    return getattr(found, "__version__", None)
