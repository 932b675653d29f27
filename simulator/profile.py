"""A hardware profile: what an engine's steps were measured to cost, and what was fitted to it.

`workbench calibrate` writes one, the simulator predicts with it (`simulator.calibrated`). It keeps
the raw samples beside the fit, so that another fit can be made of it and every prediction can be
traced to what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from engine.core.bounded_file import read_bounded
from engine.core.defaults import MEMORY_FRACTION
from simulator.cost_model import StepFeatures, StepShape
from simulator.power_state import Cost, PowerFit

SCHEMA: Final = "profile/v4"
_SLOWEST: Final = 9.0  # no GPU lowers its clocks to less than a tenth

# Checked when a profile is read or written: whole numbers that a float64 holds, finite costs.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]


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

    num_pages: Count
    max_num_batched_tokens: Positive
    max_running_requests: Positive
    memory_fraction: float = MEMORY_FRACTION
    graph_batch_sizes: tuple[Positive, ...] = ()
    graph_tokens: tuple[Positive, ...] = ()


class Samples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured steps, one entry a distinct shape; before each, the GPU's clocks could recover.

    Attributes:
        shapes: `simulator.cost_model.StepShape` fields, in its order.
        gpu_ns: median over the repetitions.
        spread_ns: median absolute deviation from it.
        repeats: how many were counted.
    """

    shapes: tuple[tuple[int, ...], ...]
    gpu_ns: tuple[Positive, ...]
    spread_ns: tuple[Count, ...]
    repeats: tuple[Positive, ...]

    def features(self) -> StepFeatures:
        """The shapes as columns."""
        return StepFeatures.from_shapes([StepShape(*shape) for shape in self.shapes])

    def __len__(self) -> int:
        return len(self.shapes)


class HostSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of the host for steps, as measured while it served: one entry a step.

    Attributes:
        requests: of a step, those that prefill among them.
        prefill_requests, prefill_tokens: those, and their tokens.
        host_ns: CPU time.
    """

    requests: tuple[Count, ...]
    prefill_requests: tuple[Count, ...]
    prefill_tokens: tuple[Count, ...]
    host_ns: tuple[Count, ...]

    def __len__(self) -> int:
        return len(self.host_ns)


class PowerSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps that ran one right after the other, so that the GPU computed more and more.

    Attributes:
        tokens: of each step.
        gpu_ns: of each step.
    """

    tokens: tuple[Positive, ...]
    gpu_ns: tuple[Positive, ...]

    def __len__(self) -> int:
        return len(self.gpu_ns)


class DecodeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pure decode steps that run as the CUDA Graph of one batch size.

    Attributes:
        graph_batch: the size.
        context: ascending totals of the KV lengths of a step.
        ns: the step's time at each, not descending; linear in between, what the first says before
            it, and beyond the last with its slope.
    """

    graph_batch: Positive
    context: tuple[Count, ...]
    ns: tuple[Cost, ...]


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
        tokens: ascending counts of tokens of a step, padding included.
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


class SharedFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Context that costs decode items nothing, because others of the step attend to it as well.

    Attributes:
        shared: ascending tokens that an item shares, from 0 on; the mean of all items is looked up.
        saved: tokens that it saves, not descending and no more than those; linear in between, and
            beyond the last with its slope. By default nothing is saved, or it is not known.
    """

    shared: tuple[Count, ...] = (0, 1)
    saved: tuple[Cost, ...] = (0.0, 0.0)


class HostFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Host time of a step: `step_ns`, and so much for each request, each prompt and each token."""

    step_ns: Cost
    request_ns: Cost
    prefill_request_ns: Cost
    prefill_token_ns: Cost


class Residual(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far predictions were from samples that the fit had not seen, in percent of the sample.

    Attributes:
        region: which steps, as `simulator.fitting` names them.
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
    conditions: dict[str, Any] = {}


class _Header(msgspec.Struct):
    """What is read first: complaints about the fields of another schema would mislead."""

    schema: str


def read_profile(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ProfileError: it is not there, is no profile, or one of another version.
    """
    try:
        data = read_bounded(path)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from None
    return _decode(data, str(path))


def encode_profile(profile: Profile) -> bytes:
    """A profile as JSON, indented.

    Raises:
        ProfileError: it could not be read again.
    """
    data = msgspec.json.encode(profile)
    _decode(data, profile.name)
    return msgspec.json.format(data, indent=1) + b"\n"


def _decode(data: bytes, name: str) -> Profile:
    """The profile in `data`, complained of by `name`."""
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema != SCHEMA:
            raise ProfileError(
                f"{name} is {schema!r}, this version reads {SCHEMA!r}: calibrate again"
            )
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{name} is not a profile: {error}") from None
    samples = profile.samples, profile.host_samples, profile.power_samples
    problem = samples_problem(*samples) or _problem(profile)
    if problem:
        raise ProfileError(f"{name}: {problem}")
    return profile


def samples_problem(
    samples: Samples, host_samples: HostSamples, power_samples: PowerSamples | None = None
) -> str | None:
    """What keeps samples from being read as columns, if anything does."""
    if len({len(samples), len(samples.gpu_ns), len(samples.spread_ns), len(samples.repeats)}) > 1:
        return "its samples are of different lengths"
    if power_samples is not None and len(power_samples.tokens) != len(power_samples.gpu_ns):
        return "its samples of the power limit are of different lengths"
    if len({len(column) for column in msgspec.structs.astuple(host_samples)}) > 1:
        return "its samples of the host are of different lengths"
    if any(len(shape) != len(StepShape._fields) for shape in samples.shapes):
        return f"a sample has not the {len(StepShape._fields)} features of a step"
    return None


def _problem(profile: Profile) -> str | None:
    """What makes predictions of a profile meaningless, if anything does."""
    fit = profile.fit
    if not fit.decode and fit.mixed is None:
        return "it predicts nothing"
    for name, sizes in (
        ("its graph batch sizes", profile.engine.graph_batch_sizes),
        ("its graph tokens", profile.engine.graph_tokens),
        ("the graph batches of its decode tables", [t.graph_batch for t in fit.decode]),
    ):
        if np.any(np.diff(sizes) <= 0):
            return f"{name} do not ascend"
    for table in fit.decode:
        problem = _table_problem(table.context, table.ns)
        if problem:
            return f"the table of graph batch {table.graph_batch} {problem}"
    if fit.mixed is not None:
        problem = _table_problem(fit.mixed.tokens, fit.mixed.ns)
        if problem:
            return f"the table of tokens {problem}"
        problem = _table_problem(fit.mixed.decode_context, fit.mixed.decode_context_ns)
        if problem:
            return f"the table of decode_context {problem}"
    problem = _table_problem(fit.shared.shared, fit.shared.saved)
    if problem:
        return f"the table of shared context {problem}"
    if any(
        saved > shared for shared, saved in zip(fit.shared.shared, fit.shared.saved, strict=True)
    ):
        return "the table of shared context saves more than there is"
    if fit.power is not None and (problem := _power_problem(fit.power)):
        return f"the table of slowdowns {problem}"
    unknown = sorted(set(fit.limits) - set(StepShape._fields))
    if unknown:
        return f"it limits {unknown[0]!r}, which is no feature of a step"
    return None


def _power_problem(fit: PowerFit) -> str | None:
    if len(fit.load) != len(fit.slowdown) or not fit.load:
        return f"has {len(fit.load)} loads and {len(fit.slowdown)} values"
    if np.any(np.diff(fit.load) <= 0):
        return "does not ascend"
    if np.any(np.diff(fit.slowdown) < 0):
        return "has values that descend"
    if fit.slowdown[-1] > _SLOWEST:
        return f"says that steps take {1 + fit.slowdown[-1]:.0f} times as long"
    return None


def _table_problem(at: tuple[int, ...], ns: tuple[float, ...]) -> str | None:
    if len(at) != len(ns):
        return f"has {len(at)} places and {len(ns)} times"
    if len(at) < 2:
        return "has fewer than two places, hence no slope"
    if np.any(np.diff(at) <= 0):
        return "does not ascend"
    if np.any(np.diff(ns) < 0):
        return "has times that descend"
    return None
