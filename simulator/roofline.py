"""The analytic cost model: bytes over bandwidth, FLOPs over peak, launches and latencies.

It knows a model's shapes and a GPU's ceilings and has measured nothing of the engine; results made
with it say "analytic, uncalibrated". `docs/analytic_model.md` derives the formulas, compares them
with measured step times and lists what they leave out.

R are the rows of a step: its tokens, but at least the batch of the CUDA Graph that runs it. L are
its rows of logits, likewise. The terms of gpu_ns:

    linear             max(weight bytes, R rows of FLOPs) of the projections; also norms, routers
    experts            max(bytes of the experts visited, R rows of FLOPs)
    attention_prefill  max(FLOPs of the causal pairs, KV bytes read once)
    attention_decode   max(KV bytes read once, FLOPs)
    lm_head            max(weight bytes, L rows of FLOPs) + gather of and pass over the logits
    elementwise        bytes that R rows move between GEMMs and attention
    all_reduce         latency + bytes over the link: two per layer and one for the embedding
    launch             a gap before each kernel; without a graph at least what is missing to the
                       time that the CPU needs to launch them all

Rounding: each term is rounded by itself to whole ns, halves up; gpu_ns is the sum of the rounded
terms. Every float operation is one IEEE double +, * or max, in the same order in Python and in
numpy, so that both give the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.cost_model import (
    UNKNOWN,
    Int64,
    StepCosts,
    StepFeatures,
    StepShape,
    sum_of_terms,
    whole_ns,
)
from simulator.roofline_coefficients import expected_experts, roofline_coefficients

NAME: Final = "analytic, uncalibrated"

TERMS: Final = (
    "linear",
    "experts",
    "attention_prefill",
    "attention_decode",
    "lm_head",
    "elementwise",
    "all_reduce",
    "launch",
)

_EMPTY_STEP: Final = "a step has at least one token"
_REMEMBERED: Final = 1 << 14  # row counts whose costs are kept before starting over


@dataclass(frozen=True, slots=True)
class HostCosts:
    """CPU time around a step: `step_ns + request_ns * requests`.

    The figures are those that BLIS (inference-sim, "How BLIS learns latency") fitted to vLLM: 126
    us per step and 4.4 us per request. Launching kernels is not in them.
    """

    step_ns: int = 126_000
    request_ns: int = 4_400


class RooflineCostModel:
    """Analytic step costs of one replica; implements `CostModel`.

    Args:
        model: what runs.
        gpu: on what.
        tensor_parallel_size: on how many of them.
        weight_dtype: of the projections; None is the checkpoint's own.
        kv_dtype: of the KV cache; None is the model's dtype.
        host: CPU time around a step.

    Raises:
        TensorParallelError: the model does not divide over that many GPUs.
        UnknownDtypeError: no such dtype.
        UnsupportedGpuDtypeError: the GPU does not compute in that dtype.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: HardwareSpec,
        *,
        tensor_parallel_size: int = 1,
        weight_dtype: str | None = None,
        kv_dtype: str | None = None,
        host: HostCosts | None = None,
    ) -> None:
        self.coefficients = roofline_coefficients(
            model,
            gpu,
            tensor_parallel_size,
            weight_dtype or model.weight_dtype,
            kv_dtype or model.dtype,
        )
        self.host = host or HostCosts()
        self._visited = np.array(expected_experts(model))
        self._rows_cache: dict[int, tuple[int, int]] = {}
        self._logits_cache: dict[int, int] = {}
        self._decode_cache: dict[tuple[int, ...], tuple[int, float, int]] = {}
        # What the scalar methods need, in locals' reach: they run once per simulated step.
        c, kernels = self.coefficients, self.coefficients.kernels
        self._prefill_ns = (c.prefill_pair_ns, c.prefill_expand_ns, c.kv_token_ns)
        self._decode_ns = (c.kv_token_ns, c.decode_pair_ns)
        self._launch_ns = (c.graph_node_ns, c.eager_launch_ns)
        self._kernels = (kernels.always, kernels.prefill, kernels.decode, kernels.logits)
        self._host_ns = (self.host.step_ns, self.host.request_ns)

    @property
    def name(self) -> str:
        """Stands in every result that this model made."""
        return NAME

    @property
    def power(self) -> None:
        """Nobody measured what clocks do."""
        return None

    @property
    def wake(self) -> None:
        """Nor what idle times do."""
        return None

    def step_costs(self, features: StepFeatures) -> StepCosts:
        """Costs of many steps, with their terms."""
        f = features
        tokens = f.prefill_tokens + f.decode_tokens
        if len(f) and int(tokens.min()) < 1:
            raise ValueError(_EMPTY_STEP)
        rows = np.maximum(tokens, f.graph_batch)
        logits = np.where(f.sampled_tokens > 0, np.maximum(f.sampled_tokens, f.graph_batch), 0)
        terms = {
            "linear": self._linear(rows),
            "experts": self._experts(rows, f.active_experts),
            "attention_prefill": self._attention_prefill(f),
            "attention_decode": self._attention_decode(f),
            "lm_head": self._lm_head(logits),
            "elementwise": self._elementwise(rows),
            "all_reduce": self._all_reduce(rows),
        }
        terms["launch"] = self._launch(f, sum_of_terms(terms))
        host_ns = self.host.step_ns + self.host.request_ns * (
            f.prefill_requests + f.decode_requests
        )
        return StepCosts(sum_of_terms(terms), host_ns, terms, np.zeros(len(f), np.bool_))

    def _linear(self, rows: Int64) -> Int64:
        linear, plain = self.coefficients.linear, self.coefficients.plain
        return whole_ns(
            np.maximum(linear.weights_ns, linear.row_ns * rows)
            + np.maximum(plain.weights_ns, plain.row_ns * rows)
        )

    def _experts(self, rows: Int64, active: Int64) -> Int64:
        expected = self._visited[np.minimum(rows, len(self._visited) - 1)]
        visited = np.where(active >= 0, active, expected)
        c = self.coefficients
        return whole_ns(np.maximum(c.expert_ns * visited, c.experts_row_ns * rows))

    def _attention_prefill(self, f: StepFeatures) -> Int64:
        c = self.coefficients
        flops_ns = c.prefill_pair_ns * f.prefill_pairs + c.prefill_expand_ns * f.prefill_context
        bytes_ns = c.kv_token_ns * (f.prefill_context + f.prefill_tokens)
        return whole_ns(np.where(f.prefill_tokens > 0, np.maximum(flops_ns, bytes_ns), 0.0))

    def _attention_decode(self, f: StepFeatures) -> Int64:
        c = self.coefficients
        queries = f.decode_tokens / np.maximum(f.decode_requests, 1)
        per_token_ns = np.maximum(c.kv_token_ns, c.decode_pair_ns * queries)
        return whole_ns(np.where(f.decode_tokens > 0, per_token_ns * f.decode_context, 0.0))

    def _lm_head(self, logits: Int64) -> Int64:
        c = self.coefficients
        gemm_ns = np.maximum(c.lm_head.weights_ns, c.lm_head.row_ns * logits)
        rest_ns = c.gather_ns + (c.gather_row_ns + c.sampling_row_ns) * logits
        return whole_ns(np.where(logits > 0, gemm_ns + rest_ns, 0.0))

    def _elementwise(self, rows: Int64) -> Int64:
        return whole_ns(self.coefficients.elementwise_row_ns * rows)

    def _all_reduce(self, rows: Int64) -> Int64:
        c = self.coefficients
        return whole_ns(c.all_reduce_ns + c.all_reduce_row_ns * rows)

    def _launch(self, f: StepFeatures, work_ns: Int64) -> Int64:
        always, with_prefill, with_decode, with_logits = self._kernels
        kernels = (
            always
            + with_prefill * (f.prefill_tokens > 0)
            + with_decode * (f.decode_tokens > 0)
            + with_logits * (f.sampled_tokens > 0)
        )
        node_ns, eager_ns = self._launch_ns
        gaps_ns = kernels * node_ns
        exposed_ns = np.where(f.graph_batch > 0, 0, kernels * eager_ns - work_ns)
        launch_ns: Int64 = np.maximum(gaps_ns, exposed_ns)
        return launch_ns

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        """(gpu_ns, host_ns, extrapolated) of one step."""
        (
            prefill, prefills, _, _, _, decodes, tokens, context, _, _,
            sampled, graph_batch, active,
        ) = shape  # fmt: skip
        batch = (decodes, tokens, sampled, graph_batch, active)
        known = None if prefill else self._decode_cache.get(batch)
        if known is None:
            base_ns, kernels = self._base(shape)
            base_ns, least_ns = self._launched(base_ns, kernels, graph_batch)
            known = base_ns, self._context_ns(tokens, decodes), least_ns
            if not prefill:
                self._remember_decode(batch, known)
        base_ns, slope, least_ns = known
        gpu_ns = base_ns + int(slope * context + 0.5) if tokens else base_ns
        step_ns, request_ns = self._host_ns
        host_ns = step_ns + request_ns * (prefills + decodes)
        return gpu_ns if gpu_ns > least_ns else least_ns, host_ns, False

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        """gpu_ns of successive pure decode steps, the host_ns of each, whether extrapolated."""
        prefill, prefills, _, _, _, decodes, tokens, context, _, _, _, graph_batch, _ = shape
        if prefill or tokens < 1:
            raise ValueError("a decode run decodes and does not prefill")
        base_ns, kernels = self._base(shape)
        base_ns, least_ns = self._launched(base_ns, kernels, graph_batch)
        slope = self._context_ns(tokens, decodes)
        contexts = range(context, context + num_steps * tokens, tokens)
        gpu_ns = [base_ns + int(slope * total + 0.5) for total in contexts]
        if least_ns:
            gpu_ns = [max(least_ns, ns) for ns in gpu_ns]
        step_ns, request_ns = self._host_ns
        return gpu_ns, step_ns + request_ns * (prefills + decodes), False

    def _base(self, shape: StepShape) -> tuple[int, int]:
        """(ns of all terms but attention_decode and launch, number of kernels)."""
        prefill, _, context, pairs, _, _, decode, _, _, _, sampled, graph_batch, active = shape
        tokens = prefill + decode
        if tokens < 1:
            raise ValueError(_EMPTY_STEP)
        rows = max(graph_batch, tokens)
        rows_ns, experts_ns = self._rows_cache.get(rows) or self._remember_rows(rows)
        if active >= 0:
            c = self.coefficients
            experts_ns = int(max(c.expert_ns * active, c.experts_row_ns * rows) + 0.5)
        base_ns = rows_ns + experts_ns
        kernels, with_prefill, with_decode, with_logits = self._kernels
        if prefill:
            kernels += with_prefill
            pair_ns, expand_ns, token_ns = self._prefill_ns
            flops_ns = pair_ns * pairs + expand_ns * context
            bytes_ns = token_ns * (context + prefill)
            base_ns += int(max(bytes_ns, flops_ns) + 0.5)
        if decode:
            kernels += with_decode
        if sampled:
            kernels += with_logits
            logits = max(graph_batch, sampled)
            base_ns += self._logits_cache.get(logits) or self._remember_logits(logits)
        return base_ns, kernels

    def _context_ns(self, tokens: int, requests: int) -> float:
        """Slope of a decode step over its context; constant while the batch is."""
        token_ns, pair_ns = self._decode_ns
        flops_ns = pair_ns * (tokens / (requests or 1))
        return max(token_ns, flops_ns)

    def _launched(self, work_ns: int, kernels: int, graph_batch: int) -> tuple[int, int]:
        """(work with the gaps between kernels, what the step takes at least: CPU launches)."""
        node_ns, eager_ns = self._launch_ns
        return work_ns + kernels * node_ns, 0 if graph_batch else kernels * eager_ns

    def _remember_decode(self, batch: tuple[int, ...], known: tuple[int, float, int]) -> None:
        """Keep (ns without the context, ns per context token, least ns) of a batch."""
        if len(self._decode_cache) >= _REMEMBERED:
            self._decode_cache.clear()
        self._decode_cache[batch] = known

    def _remember_rows(self, rows: int) -> tuple[int, int]:
        """(ns of linear, elementwise and all_reduce, ns of experts if which is unknown)."""
        column = np.array([rows])
        rows_ns = self._linear(column) + self._elementwise(column) + self._all_reduce(column)
        known = int(rows_ns[0]), int(self._experts(column, np.array([UNKNOWN]))[0])
        if len(self._rows_cache) >= _REMEMBERED:
            self._rows_cache.clear()
        self._rows_cache[rows] = known
        return known

    def _remember_logits(self, logits: int) -> int:
        known = int(self._lm_head(np.array([logits]))[0])
        if len(self._logits_cache) >= _REMEMBERED:
            self._logits_cache.clear()
        self._logits_cache[logits] = known
        return known
