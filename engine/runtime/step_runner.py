"""Runs steps on a device: kernel by kernel, or by replaying CUDA Graphs.

A pure decode step replays the graph of its bucket, a step with few tokens of prefill that of its
number of tokens. Everything else is launched as it comes. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from engine.core.config import MAX_PLANS_IN_FLIGHT
from engine.kernels.launching import compile_only
from engine.kernels.linear_tilings import HOPPER_ROWS
from engine.kernels.sampling_batch import SampleResult
from engine.models.kv_cache import KvCache
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.models.transformer import Transformer
from engine.nvtx_ranges import annotate
from engine.runtime.decode_graphs import DecodeColumns, DecodeGraphs, DecodeOutputs
from engine.runtime.device_state import COMMON_ASKS, NOTHING_SPECIAL, DeviceState, SamplingAsks
from engine.runtime.graph_capture import GraphSpace
from engine.runtime.host_step import HostPrefill, HostStep
from engine.runtime.prefill_graphs import PrefillGraphs
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.transfers_to_device import Upload
from engine.runtime.trial_steps import trial_decode, trial_prefill


class StepRunner:
    """Runs the steps of one replica in the order in which it is asked to.

    Args:
        config: as resolved.
        transformer: the model.
        cache: its KV pages.

    Attributes:
        state: what the device remembers of the requests.
        max_pages: places in a row of the page table.
    """

    def __init__(self, config: RunnerConfig, transformer: Transformer, cache: KvCache) -> None:
        if config.max_model_len is None:
            raise ValueError("max_model_len must be resolved before a runner is made")
        self._config, self._transformer, self._cache = config, transformer, cache
        self._max_model_len = config.max_model_len
        self.max_pages = -(-config.max_model_len // cache.page_size)
        device = cache.pool.device
        # Besides the running requests, those whose last token an earlier plan in flight brings.
        rows = MAX_PLANS_IN_FLIGHT * config.max_running_requests
        counters = (config.max_running_requests + 1) * transformer.spec.num_kv_heads
        self.state = DeviceState(rows, self.max_pages, cache.dummy_page, counters, device)
        self._upload = Upload(device, 5 * config.max_num_batched_tokens + 64)
        self._logits: torch.Tensor | None = None  # of any captured step that does not choose
        self._decode_graphs: DecodeGraphs | None = None
        self._prefill_graphs: PrefillGraphs | None = None
        if device.type == "cuda" and config.cuda_graph_batch_sizes:
            space, dummy_row = GraphSpace(device), self.state.dummy_row
            self._decode_graphs = DecodeGraphs(self._run_decode, dummy_row, device, space)
            shape = (config.cuda_graph_batch_sizes[-1], transformer.spec.vocab_size)
            self._logits = torch.empty(shape, dtype=cache.pool.dtype, device=device)
            if config.graph_tokens:
                nothing = torch.empty(0, dtype=torch.int32, device=device)
                template = self._inputs(nothing, nothing, nothing)
                self._prefill_graphs = PrefillGraphs(
                    transformer, cache, template, config.graph_tokens,
                    config.max_running_requests, space,
                )  # fmt: skip

    def run(self, host: HostStep, asks: SamplingAsks, graph_batch: int = 0) -> SampleResult:
        """Queue a step.

        Args:
            host: the step.
            asks: what its rows want of the sampler.
            graph_batch: bucket of a pure decode step; 0: it has none.
        """
        if graph_batch and self._decode_graphs is not None:
            return self._replay(self._decode_graphs, graph_batch, host, asks)
        if (chunks := host.prefill) is not None and (graphs := self._prefill_graphs) is not None:
            size = graphs.size_for(len(host.rows), len(chunks.rows))
            if size is not None:
                return self._replay_prefill(graphs, size, host, chunks, asks)
        return self._run_eagerly(host, asks)

    def close(self) -> None:
        """Let go of the graphs, which refer to this object."""
        self._decode_graphs = self._prefill_graphs = None

    def graph_captures(self) -> list[tuple[Callable[[int], object], tuple[int, ...]]]:
        """For each kind of CUDA Graph, what captures one of a size, and the sizes, ascending."""
        captures: list[tuple[Callable[[int], object], tuple[int, ...]]] = []
        if self._prefill_graphs is not None:
            captures.append((self._prefill_graphs.get, self._config.graph_tokens))
        if (graphs := self._decode_graphs) is not None:
            sizes = self._config.cuda_graph_batch_sizes
            captures.append((lambda size: graphs.get(size, chooses=True), sizes))
        return captures

    def capture_graphs(self) -> None:
        """Capture all CUDA Graphs, the largest first, so that the others fit into its memory."""
        with torch.inference_mode():
            for capture, sizes in self.graph_captures():
                for size in reversed(sizes):
                    capture(size)

    def compile_kernels(self) -> None:
        """Compile what steps of all kinds need, side by side.

        The dry run leaves values undefined, which kernels that are not launched do not mind; with
        a library's implementation among them, kernels compile as they come instead.
        """
        if set(self._transformer.kernels.chosen.values()) != {"triton"}:
            return
        with torch.inference_mode(), compile_only(self._cache.pool.device):
            nowhere = torch.full((1,), -1, dtype=torch.int32, device=self._cache.pool.device)
            self._write_pages(nowhere, nowhere)
            # Prefill first: its attention is what takes longest to compile.
            longest = min(self._config.max_num_batched_tokens, self._max_model_len)
            # An odd number of tokens is another variant of some kernels; few tokens are, too.
            lengths = {longest, longest - 1, *HOPPER_ROWS, 5, 2} - {0}
            for tokens in sorted(length for length in lengths if length <= longest):
                for context in (0, 1):
                    chunk = max(1, min(tokens, self._max_model_len - 1))
                    self._trial_prefill(tokens, chunk, context)
            if (graphs := self._prefill_graphs) is not None:
                for size in self._config.graph_tokens:
                    graphs.walk(size)
            for asks in (NOTHING_SPECIAL, *COMMON_ASKS):
                step = trial_decode(2, self.state.dummy_row)
                self._run_eagerly(step, asks)
            most = self._config.max_running_requests
            for batch in sorted({1, most, *HOPPER_ROWS, *self._config.cuda_graph_batch_sizes}):
                if batch <= most:
                    self._run_decode_eagerly(batch)

    def run_largest_steps(self) -> None:
        """Prefill as many tokens as a step may hold, and decode as many requests as may run.

        Libraries allocate what they need meanwhile. One chunk that is as long as it may be costs
        more memory than several.
        """
        longest = max(1, self._max_model_len - 1)
        most = min(self._config.max_num_batched_tokens, self._config.max_running_requests * longest)
        with torch.inference_mode():
            for context in (0, 1):
                self._trial_prefill(most, min(most, longest), context)
            self._run_decode_eagerly(self._config.max_running_requests)

    def _trial_prefill(self, tokens: int, longest: int, context: int) -> None:
        step = trial_prefill(tokens, longest, self.state.dummy_row, context=context)
        if len(step.sampled) <= self._config.max_running_requests:
            self._run_eagerly(step, NOTHING_SPECIAL)

    def _run_decode_eagerly(self, batch: int) -> None:
        self._run_eagerly(trial_decode(batch, self.state.dummy_row), NOTHING_SPECIAL)

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
                if self._logits is None:
                    raise AssertionError("only captured steps leave logits")
                return DecodeOutputs(self._logits[: len(logits)].copy_(logits), None)
            sampled = self._sample(logits, columns.rows, columns.positions, NOTHING_SPECIAL)
        return DecodeOutputs(None, sampled)

    def _replay_prefill(
        self,
        graphs: PrefillGraphs,
        size: int,
        host: HostStep,
        chunks: HostPrefill,
        asks: SamplingAsks,
    ) -> SampleResult:
        captured = graphs.get(size)
        arrays = [graphs.columns(host, chunks, size), host.logit_rows, host.new_at, host.new_pages]
        inputs, logit_rows, new_at, new_pages = self._upload.send(arrays)
        captured.inputs.copy_(inputs)
        self._write_pages(new_at, new_pages)
        step = replace(captured.step, logit_rows=logit_rows)
        with annotate("forward"):
            captured.graph.replay()
            logits = self._transformer.finish(captured.query, captured.residual, step, self._cache)
        return self._sample_some(logits, step, asks)

    def _run_eagerly(self, host: HostStep, asks: SamplingAsks) -> SampleResult:
        """A step too large for graphs, or of a kind that has none."""
        chunks = host.prefill
        arrays = [host.token_ids, host.positions, host.rows, host.logit_rows]
        arrays += [host.new_at, host.new_pages]
        if chunks is not None:
            arrays += [chunks.starts, chunks.rows, chunks.contexts]
            arrays += [column[: chunks.decodes] for column in (host.rows, host.positions)]
        ids, positions, rows, logit_rows, new_at, new_pages, *rest = self._upload.send(arrays)
        self._write_pages(new_at, new_pages)
        prefill = None if chunks is None else PrefillInputs(*rest)
        step = self._inputs(ids, positions, rows, prefill, logit_rows)
        with annotate("forward"):
            logits = self._transformer.forward(step, self._cache)
        return self._sample_some(logits, step, asks)

    def _sample_some(
        self, logits: torch.Tensor, step: StepInputs, asks: SamplingAsks
    ) -> SampleResult:
        """Tokens of the step's logit rows."""
        if step.logit_rows is None or not len(logits):
            return SampleResult(step.token_ids[:0])
        with annotate("sample"):
            columns = (
                part.index_select(0, step.logit_rows) for part in (step.rows, step.positions)
            )
            return self._sample(logits, *columns, asks)

    def _inputs(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        prefill: PrefillInputs | None = None,
        logit_rows: torch.Tensor | None = None,
    ) -> StepInputs:
        state = self.state
        return StepInputs(
            token_ids, positions, rows, state.page_table, state.last_tokens, state.counters,
            prefill, logit_rows,
        )  # fmt: skip

    def _write_pages(self, at: torch.Tensor, pages: torch.Tensor) -> None:
        self._transformer.kernels.write_pages(self.state.page_table, at, pages)

    def _sample(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        asks: SamplingAsks,
    ) -> SampleResult:
        batch = self.state.sampling_batch(rows, positions, asks)
        return self._transformer.kernels.sample(logits, batch, self.state.last_tokens, rows)
