"""A hardware profile: what an engine's steps were measured to cost, and what was fitted to it.

`workbench calibrate` writes one, the simulator predicts with it (`simulator.calibrated`). It keeps
the raw samples beside the fit, so that another fit can be made of it and every prediction can be
traced to what was measured.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.core.defaults import MEMORY_FRACTION
from simulator.power_state import Cost, PowerFit
from simulator.samples import (
    Count,
    HostSamples,
    HotSamples,
    Positive,
    PowerSamples,
    Samples,
    WakeSamples,
)
from simulator.waking import WakeFit

SCHEMA: Final = "profile/v5"
OLDER: Final = ("profile/v4",)  # of the same samples; their fits mean something else
CPU: Final = "cpu"  # instead of a GPU's name


class ProfileError(ValueError):
    """A profile that cannot be read or used; says which and why."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured. Predictions for anything else are extrapolations.

    Attributes:
        gpu: as the driver names it, or "cpu".
        model: the model's name.
        model_digest: of all facts that decide what a step computes.
        dtype: of weights and activations.
        kv_dtype: of the KV cache.
        tensor_parallel_size: GPUs.
        page_size: tokens of a KV page.
        engine_version: of the package.
        commit: of the tree, or None.
        versions: of torch, triton, cuda, driver, as far as known.
    """

    gpu: str
    model: str
    model_digest: str
    dtype: str
    kv_dtype: str
    page_size: Positive
    engine_version: str
    tensor_parallel_size: Positive = 1
    commit: str | None = None
    versions: dict[str, str] = {}


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine measured of itself at its start.

    Attributes:
        num_pages: KV pages that requests may hold.
        max_num_batched_tokens: token budget of a step.
        max_running_requests: requests in the batch at most.
        memory_fraction: share of the GPU that it was allowed.
        graph_batch_sizes: decode batches that run as one CUDA Graph.
        graph_tokens: token counts to which a step with prefill is padded, ascending; a larger one
            is not padded.
    """

    num_pages: Positive
    max_num_batched_tokens: Positive
    max_running_requests: Positive
    memory_fraction: float = MEMORY_FRACTION
    graph_batch_sizes: tuple[Positive, ...] = ()
    graph_tokens: tuple[Positive, ...] = ()


class DecodeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pure decode steps that run as the CUDA Graph of one batch size.

    Attributes:
        graph_batch: the size.
        context: ascending totals of the KV lengths of a step.
        ns: the time at each of a step that fills the graph, not descending; linear in between, what
            the first says before it, and beyond the last with its slope.
        idle_row_ns: as much less for each row without a request but the first. They are alike:
            where tokens choose experts, all of them choose the same, and fewer are read; otherwise
            they save hardly anything.
    """

    graph_batch: Positive
    context: tuple[Count, ...]
    ns: tuple[Cost, ...]
    idle_row_ns: Cost = 0.0


class LaunchFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the host takes to launch the kernels of a step, which no step is shorter than.

    Attributes:
        graph_prefill_ns, graph_mixed_ns: of a step with prompts that runs as a graph, alone and
            beside decode items.
        eager_prefill_ns, eager_mixed_ns: of one whose kernels are launched one by one.
        eager_decode_ns: of such a step without prompts.
    """

    graph_prefill_ns: Cost = 0.0
    graph_mixed_ns: Cost = 0.0
    eager_prefill_ns: Cost = 0.0
    eager_mixed_ns: Cost = 0.0
    eager_decode_ns: Cost = 0.0


class MixedFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All other steps: a table over their tokens, and what the rest of their shape adds.

    Attention of prompts takes `pair_ns` and `context_ns` of all of them, or `max_context_ns` of the
    longest if that is more: its keys follow each other, however many multiprocessors are idle.

    Attributes:
        tokens: ascending counts of tokens of a step, those included that only fill its graph.
        own_tokens: in a graph of up to so many its own count instead: where tokens choose experts,
            those that fill one are alike, and visit hardly any.
        ns: what they cost, not descending; read as a decode table is.
        pair_ns: of a (query, key) pair of a prompt.
        context_ns: of a token cached before a chunk.
        max_context_ns: of a token of the longest prompt as far as it goes.
        decode_context: ascending totals of the KV lengths of decode items, from 0 on.
        decode_context_ns: what attending to them costs, not descending, from 0 on; read as a decode
            table is.
        prefill_request_ns, decode_request_ns: of a chunk, of a decode item.
        logits_ns: of a step that samples at all; logit_row_ns: of each sampled row.
        launches: the least that a step takes.
    """

    tokens: tuple[Count, ...]
    ns: tuple[Cost, ...]
    pair_ns: Cost
    context_ns: Cost
    max_context_ns: Cost
    decode_context: tuple[Count, ...]
    decode_context_ns: tuple[Cost, ...]
    prefill_request_ns: Cost
    decode_request_ns: Cost
    logits_ns: Cost
    logit_row_ns: Cost
    launches: LaunchFit = LaunchFit()
    own_tokens: Count = 0


class SharedFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Context that costs decode items nothing, because others of the step attend to it as well.

    Attributes:
        shared: ascending tokens that an item shares, from 0 on; the mean of all items is looked up.
        saved: tokens that it saves, not descending and no more than those; linear in between, and
            beyond the last with its slope. By default nothing is saved, or it is not known.
        requests: ascending numbers of items that decode.
        times: how many times as much is saved by so many; linear in between, constant outside.
            Without any: once.
    """

    shared: tuple[Count, ...] = (0, 1)
    saved: tuple[Cost, ...] = (0.0, 0.0)
    requests: tuple[Count, ...] = ()
    times: tuple[Cost, ...] = ()


class HostFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Host time of a step.

    Attributes:
        step_ns: of any.
        request_ns: of each request.
        prefill_request_ns, prefill_token_ns: of each chunk of a prompt, of each token of it.
        prefill_step_ns: of a step with prompts.
        eager_prefill_step_ns: of one whose kernels are launched one by one, on top of that.
    """

    step_ns: Cost
    request_ns: Cost
    prefill_request_ns: Cost
    prefill_token_ns: Cost
    prefill_step_ns: Cost = 0.0
    eager_prefill_step_ns: Cost = 0.0


class Residual(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far predictions were from samples that the fit had not seen, in percent of the sample.

    Attributes:
        region: which steps, as `simulator.fitting.profile_fit` names them.
        count: how many samples.
        median_percent, p90_percent, p99_percent: of the absolute errors.
        bias_percent: median of the signed errors; above 0 where predictions are too long.
    """

    region: str
    count: Positive
    median_percent: float
    p90_percent: float
    p99_percent: float
    bias_percent: float


class Fit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What predictions are made of.

    Attributes:
        decode: tables, by ascending graph batch.
        mixed: all other steps, or None where none were measured.
        host: CPU time.
        shared: what is saved by context that decode items share.
        power: what lower clocks make of all that; None: it is not known.
        wake: what the first step after an idle time takes longer; None: it is not known.
        limits: feature -> largest value measured; beyond it a prediction extrapolates.
        residuals: by region of shapes, cross-validated.
    """

    decode: tuple[DecodeTable, ...]
    mixed: MixedFit | None
    host: HostFit
    limits: dict[str, int]
    residuals: tuple[Residual, ...]
    shared: SharedFit = SharedFit()
    power: PowerFit | None = None
    wake: WakeFit | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a calibration leaves.

    Attributes:
        name: `<gpu>-<model>-<config>`, which is also its file's.
        conditions: when and how it was measured: times, clocks, ceilings of each sitting that came
            to its end; for the reader.
    """

    schema: str
    name: str
    identity: Identity
    engine: EngineFacts
    samples: Samples
    host_samples: HostSamples
    fit: Fit
    power_samples: PowerSamples | None = None
    wake_samples: WakeSamples | None = None
    hot_samples: HotSamples | None = None
    conditions: dict[str, Any] = {}
