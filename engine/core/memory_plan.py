"""How many KV pages a GPU has room for: memory minus weights minus a stated reserve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from engine.core.defaults import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_RUNNING_REQUESTS,
    MEMORY_FRACTION,
    PAGE_SIZE,
)
from engine.core.dtypes import dtype_bytes
from engine.core.hardware_spec import HardwareSpec, gpu_names, load_hardware_spec
from engine.core.model_spec import ModelSpec, TensorParallelError

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20

# Assumed until an engine reports its own. vLLM's start-up logs show 0.2 to 1.8 GiB outside of torch
# (CUDA context, libraries, workspaces) and 0.3 to 0.7 GiB for the CUDA Graphs of an 8B model.
CONTEXT_BYTES: Final = 1 * _GIB
GRAPH_BYTES: Final = 1 * _GIB


class MemoryPlanError(ValueError):
    """The model leaves no room for KV pages. The message shows the sum and what would fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the memory of one GPU of a replica goes.

    Attributes:
        title: model, GPU and parallelism, for the first line.
        memory_bytes: of the GPU.
        memory_fraction: part of it that the engine may use.
        usable_bytes: memory_bytes * memory_fraction, rounded down.
        weight_bytes: on this GPU.
        weight_dtype: of the quantizable weights.
        activation_bytes: largest working set of one step of `max_num_batched_tokens`.
        logits_bytes: logits of `logits_rows` rows.
        context_bytes: CUDA context, libraries and their workspaces.
        graph_bytes: CUDA Graphs.
        page_size: tokens per page.
        page_bytes: bytes per page on this GPU.
        kv_dtype: of the KV cache.
    """

    title: str
    memory_bytes: int
    memory_fraction: float
    usable_bytes: int
    weight_bytes: int
    weight_dtype: str
    max_num_batched_tokens: int
    activation_bytes: int
    logits_rows: int
    logits_bytes: int
    context_bytes: int
    graph_bytes: int
    page_size: int
    page_bytes: int
    kv_dtype: str

    @property
    def reserve_bytes(self) -> int:
        """What is kept free for everything but weights and KV."""
        return self.activation_bytes + self.logits_bytes + self.context_bytes + self.graph_bytes

    @property
    def kv_bytes(self) -> int:
        """What is left for KV pages; negative if weights and reserve alone do not fit."""
        return self.usable_bytes - self.weight_bytes - self.reserve_bytes

    @property
    def num_pages(self) -> int:
        """Whole pages that fit."""
        return max(0, self.kv_bytes // self.page_bytes)

    @property
    def num_tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return self.num_pages * self.page_size

    def lines(self) -> tuple[str, ...]:
        """The sum, one aligned line per summand."""
        rows = (
            ("memory", self.memory_bytes),
            (f"usable, memory_fraction {self.memory_fraction:g}", self.usable_bytes),
            (f"- weights, {self.weight_dtype}", -self.weight_bytes),
            (f"- activations of {self.max_num_batched_tokens:,} tokens", -self.activation_bytes),
            (f"- logits of {self.logits_rows:,} rows", -self.logits_bytes),
            ("- CUDA context and libraries (assumed)", -self.context_bytes),
            ("- CUDA Graphs (assumed)", -self.graph_bytes),
            (f"= KV cache, {self.kv_dtype}", self.kv_bytes),
        )
        width = max(len(label) for label, _ in rows)
        pages = f"{self.num_pages:,} pages = {self.num_tokens:,} tokens"
        return (
            self.title,
            *(f"  {label:<{width}}  {size / _GIB:>9.2f} GiB" for label, size in rows),
            f"  / {self.page_bytes / _MIB:.3f} MiB a page of {self.page_size} tokens = {pages}",
        )


def plan_kv_pages(
    model: ModelSpec,
    gpu: HardwareSpec,
    *,
    page_size: int = PAGE_SIZE,
    tensor_parallel_size: int = 1,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    memory_fraction: float = MEMORY_FRACTION,
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    max_running_requests: int = MAX_RUNNING_REQUESTS,
    num_speculative_tokens: int = 0,
    context_bytes: int = CONTEXT_BYTES,
    graph_bytes: int = GRAPH_BYTES,
) -> MemoryPlan:
    """The KV capacity of one replica, with the sum that leads to it.

    `memory_fraction` is the part of the GPU's memory that the engine may use, in (0, 1]. A
    `weight_dtype` of None is the checkpoint's own, a `kv_dtype` of None the model's dtype.

    Raises:
        MemoryPlanError: not even one page fits; the message shows the sum and what would fit.
        TensorParallelError: the model does not divide over that many GPUs.
    """
    if not 0 < memory_fraction <= 1:
        raise MemoryPlanError(f"memory_fraction = {memory_fraction:g} must be in (0, 1]")
    if min(page_size, max_num_batched_tokens, max_running_requests) < 1:
        raise MemoryPlanError(
            "page_size, max_num_batched_tokens and max_running_requests must be at least 1"
        )
    kv_token_bytes = model.kv_bytes_per_token(kv_dtype, tensor_parallel_size)
    logits_rows = max_running_requests * (1 + num_speculative_tokens)
    plan = MemoryPlan(
        title=f"{model.name} on {gpu.title}, tensor_parallel_size {tensor_parallel_size}, per GPU",
        memory_bytes=gpu.memory_bytes,
        memory_fraction=memory_fraction,
        usable_bytes=int(gpu.memory_bytes * memory_fraction),
        weight_bytes=model.weight_bytes(weight_dtype, tensor_parallel_size),
        weight_dtype=weight_dtype or model.weight_dtype,
        max_num_batched_tokens=max_num_batched_tokens,
        activation_bytes=max_num_batched_tokens
        * activation_bytes_per_token(model, tensor_parallel_size),
        logits_rows=logits_rows,
        logits_bytes=logits_rows * logits_bytes_per_row(model),
        context_bytes=context_bytes,
        graph_bytes=graph_bytes,
        page_size=page_size,
        page_bytes=page_size * kv_token_bytes,
        kv_dtype=kv_dtype or model.dtype,
    )
    if plan.num_pages == 0:
        raise MemoryPlanError(_does_not_fit(plan, model, gpu, tensor_parallel_size))
    return plan


def activation_bytes_per_token(model: ModelSpec, tensor_parallel_size: int = 1) -> int:
    """Largest set of activations alive at one point of a layer, bytes per token of the step.

    The residual stream and its normalised copy, and beside them the larger of attention (queries,
    keys, values, output) and MLP (gate, up, their product; of each expert that the token visits,
    with its output row). Vectors are in the model's dtype.
    """
    tp, hidden = tensor_parallel_size, model.hidden_size
    heads = model.num_heads // tp
    if model.mla is None:
        kv_heads = max(1, model.num_kv_heads // tp)
        attention = (2 * heads + 2 * kv_heads) * model.head_dim
    else:
        expanded = model.mla.qk_nope_head_dim + model.mla.v_head_dim
        attention = heads * (model.head_dim + expanded + model.mla.v_head_dim)
    mlp = 3 * model.intermediate_size // tp if model.num_dense_layers else 0
    if model.moe is not None:
        shared = model.moe.num_shared_experts * 3 * model.moe.intermediate_size // tp
        visited = model.moe.experts_per_token * (3 * model.moe.intermediate_size // tp + hidden)
        mlp = max(mlp, shared + visited)
    return dtype_bytes(model.dtype) * (2 * hidden + max(attention, mlp))


def logits_bytes_per_row(model: ModelSpec) -> int:
    """A row of logits as the GEMM writes it and once more in fp32 for sampling."""
    return model.vocab_size * (dtype_bytes(model.dtype) + dtype_bytes("fp32"))


def _does_not_fit(plan: MemoryPlan, model: ModelSpec, gpu: HardwareSpec, tp: int) -> str:
    missing = plan.page_bytes - plan.kv_bytes
    fixes = _fixes(plan, model, gpu, tp) or ("no single change of these is enough",)
    return "\n".join(
        (
            f"{model.name} does not fit: {missing / _GIB:.2f} GiB short of one KV page",
            *plan.lines(),
            *(f"  fix: {fix}" for fix in fixes),
        )
    )


def _fixes(plan: MemoryPlan, model: ModelSpec, gpu: HardwareSpec, tp: int) -> tuple[str, ...]:
    """Single changes that were checked to leave room for at least one page."""
    fixes = []
    per_token = plan.activation_bytes // plan.max_num_batched_tokens
    tokens = (plan.kv_bytes + plan.activation_bytes - plan.page_bytes) // per_token
    if tokens >= 1:
        fixes.append(f"max_num_batched_tokens <= {tokens:,}")
    larger_tp = next((size for size in (2, 4, 8, 16) if size > tp and _fits(plan, model, size)), 0)
    if larger_tp:
        fixes.append(f"tensor_parallel_size {larger_tp}")
    others = [load_hardware_spec(name) for name in gpu_names() if name != gpu.name]
    roomy = [other.name for other in others if _with_memory(plan, other).num_pages]
    if roomy:
        fixes.append(f"a larger GPU: {', '.join(roomy)}")
    return tuple(fixes)


def _with_memory(plan: MemoryPlan, gpu: HardwareSpec) -> MemoryPlan:
    usable = int(gpu.memory_bytes * plan.memory_fraction)
    return replace(plan, memory_bytes=gpu.memory_bytes, usable_bytes=usable)


def _fits(plan: MemoryPlan, model: ModelSpec, tp: int) -> bool:
    try:
        weights = model.weight_bytes(plan.weight_dtype, tp)
        page_bytes = plan.page_size * model.kv_bytes_per_token(plan.kv_dtype, tp)
    except TensorParallelError:
        return False
    activations = plan.max_num_batched_tokens * activation_bytes_per_token(model, tp)
    smaller = replace(
        plan, weight_bytes=weights, page_bytes=page_bytes, activation_bytes=activations
    )
    return smaller.num_pages > 0
