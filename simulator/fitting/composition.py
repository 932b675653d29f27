"""Fits what makes steps of kernels: attention of prompts, and how steps differ from their kernels.

The differences (gaps, overlap with neighbours of another kind, clocks, copies) are learnt from
models that were measured whole on the same GPU: `lenders`. They are few numbers, held near what
they would be if a step were the sum of its kernels, so that a model without any lender is still
composed. What that is worth is shown by leaving each lender out: its steps are predicted from the
tables and the other lenders, and compared with what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.composition.composed import ComposedCostModel
from simulator.composition.composing import (
    decode_contexts,
    decode_request,
    flops_per_token,
    heat,
    idle_row_ns,
    logit_line,
    mixed_decode_attention,
    mixed_small,
    token_knots,
)
from simulator.composition.kernel_curves import linear, of_op
from simulator.composition.kernel_file import (
    AttentionFit,
    ComposedError,
    Composition,
    Correction,
    KernelFile,
    Lender,
    Series,
)
from simulator.composition.kernel_parts import KernelParts
from simulator.composition.kernel_tables import KernelTables
from simulator.cost_model import CostModel, StepFeatures
from simulator.fitting.base import Float64, nonnegative_costs, residual_of
from simulator.fitting.decode import idle_rows
from simulator.fitting.profile_fit import (
    DECODE,
    EAGER_DECODE,
    MIXED,
    PREFILL,
    PREFIX,
    REGIONS,
    SHARED,
)
from simulator.mixed_costs import launch_kinds, padded_tokens
from simulator.profile import LaunchFit, Profile
from simulator.roofline import RooflineCostModel

_ERROR: Final = 0.02  # of a step: what corrections are weighed against
_FACTOR_SPREAD: Final = 0.03  # how far factors are expected to be from 1
_LAYER_NS: Final = 1500.0  # and a layer from the sum of its kernels
_STEP_NS: Final = 50_000.0
_CHUNK_NS: Final = 10_000.0
_FACTORS: Final = (0.5, 2.0)  # bounds
_ROUNDS: Final = 4  # of reweighting: steps that are missed by far count less
_OUTLIER: Final = 2.5
_WAITING: Final = 1.1  # times what launches take: steps up to there may have waited for them
_SERIAL_TOKENS: Final = 256  # of a chunk after a prefix: at first guess bound by its longest prompt


@dataclass(frozen=True, slots=True)
class Measured:
    """A model that was measured whole.

    Attributes:
        profile: what was measured.
        model: its shape.
    """

    profile: Profile
    model: ModelSpec


def fit_composition(
    kernels: KernelFile, measured: Sequence[Measured], gpu: HardwareSpec
) -> KernelFile:
    """The same tables, with what makes steps of them.

    A mixture was measured whole with random weights, which choose experts evenly in steps that
    decode: so are its steps composed to be compared, whatever is assumed of those to be predicted.
    Tokens of a prompt choose few experts then, nobody counted how few: such steps teach nothing.

    Args:
        kernels: tables; of their composition only the assumed skew of experts is kept.
        measured: models with profiles of the same GPU, which lend what no kernel tells.
        gpu: that was measured.

    Raises:
        ProfileError: the tables lack attention of prompts, or an op of a lender.
    """
    attention = tuple(_attention_fits(of_op(kernels.series, "prefill_attention")))
    bare = msgspec.structs.replace(
        kernels, composition=Composition(attention=attention, expert_skew=0.0)
    )
    errors = [
        error
        for index, left_out in enumerate(measured)
        for error in _errors(bare, [*measured[:index], *measured[index + 1 :]], left_out, gpu)
    ]
    composition = _composition(bare, measured, gpu)
    composition = msgspec.structs.replace(
        composition, errors=tuple(errors), expert_skew=kernels.composition.expert_skew
    )
    return msgspec.structs.replace(kernels, composition=composition)


def _composition(
    kernels: KernelFile, measured: Sequence[Measured], gpu: HardwareSpec
) -> Composition:
    """Corrections by some models, and what they lend."""
    tables = KernelTables(kernels)
    every = [_StepParts(KernelParts(tables, each.model, gpu, 1), each) for each in measured]
    return Composition(
        attention=kernels.composition.attention,
        correction=_correction(every),
        lenders=tuple(_lender(each) for each in measured),
        expert_skew=kernels.composition.expert_skew,
    )


def _lender(measured: Measured) -> Lender:
    fit, mixture = measured.profile.fit, measured.model.moe is not None
    # Requests that share a text choose the same experts, too: what that saves a mixture is no
    # context, and far more than a dense model saves.
    shares = not mixture and bool(measured.profile.samples.features().shared_context.any())
    return Lender(
        model=measured.profile.identity.model,
        flops_per_token=flops_per_token(measured.model, 1),
        layers=measured.model.num_layers,
        mixture=mixture,
        host=fit.host,
        launches=LaunchFit() if fit.mixed is None else fit.mixed.launches,
        power=fit.power,
        shared=fit.shared if shares else None,
        wake=fit.wake,
    )


# Attention of prompts.


def _attention_fits(series: Sequence[Series]) -> Iterator[AttentionFit]:
    for each in series:
        heads, kv_heads, head_dim = each.sizes
        call, chunk, token, pair, context, longest = _attention_costs(each).tolist()
        yield AttentionFit(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, call_ns=call, chunk_ns=chunk,
            token_ns=token, pair_ns=pair, context_ns=context, max_context_ns=longest,
        )  # fmt: skip


def _attention_costs(series: Series) -> Float64:
    """The costs of `AttentionFit`, in its order: float64[6]."""
    chunks, tokens, prefix = np.array(series.points, np.float64).T
    ns = np.array(series.ns)
    pairs = chunks * (tokens * prefix + tokens * (tokens + 1) / 2)
    longest = tokens + prefix
    work = np.column_stack([pairs, chunks * prefix])
    rest = np.column_stack([np.ones(len(ns)), chunks, chunks * tokens])
    serial = (prefix > 0) & (tokens <= _SERIAL_TOKENS) & (chunks == 1)
    costs = np.zeros(6)
    for _ in range(10):
        columns = np.column_stack([rest, work * ~serial[:, None], longest * serial])
        costs = nonnegative_costs(columns, ns, 1 / ns)
        before, serial = serial, longest * costs[5] > work @ costs[3:5]
        if np.array_equal(before, serial):
            break
    return costs


# How steps differ from their kernels.


class _StepParts:
    """The steps of a measured model, and the uncorrected parts of each."""

    def __init__(self, parts: KernelParts, measured: Measured) -> None:
        samples, engine = measured.profile.samples, measured.profile.engine
        f = samples.features()
        ns = np.array(samples.gpu_ns, np.float64)
        alone = f.shared_context == 0
        graphed = alone & (f.prefill_tokens == 0) & (f.graph_batch > 0)
        self.layers = parts.layers
        self.decode = _decode_columns(parts, f, graphed), ns[graphed]
        others = alone & (f.prefill_tokens > 0) & ~_waiting(measured.profile, f, ns)
        if measured.model.moe is not None:
            others[:] = False  # which experts a prompt chose is not known
        tokens = padded_tokens(f, engine.graph_tokens)[others].astype(np.float64)
        cool_ns = ns[others] / heat(measured.profile.fit.power, ns[others], tokens)
        self.mixed = _mixed_columns(parts, f, others, tokens, engine.graph_tokens), cool_ns


def _decode_columns(
    parts: KernelParts, f: StepFeatures, rows: NDArray[np.bool_]
) -> tuple[Float64, ...]:
    """(products, attention, all else) of decode graphs."""
    batches, contexts = f.graph_batch[rows], f.decode_context[rows].astype(np.float64)
    products = parts.decode_products(batches.astype(np.float64))
    products -= idle_row_ns(parts, batches.astype(np.float64)) * idle_rows(f)[rows]
    attention = np.zeros(len(products))
    for batch in np.unique(batches).tolist():
        own = batches == batch
        attention[own] = parts.decode_attention(batch, contexts[own])
    return products, attention, parts.decode_small(batches.astype(np.float64))


def _waiting(profile: Profile, f: StepFeatures, ns: Float64) -> NDArray[np.bool_]:
    """Steps that waited for kernels to be launched one by one, which tell nothing of them."""
    if profile.fit.mixed is None:
        return np.zeros(len(ns), np.bool_)
    launches = profile.fit.mixed.launches
    least = {name: getattr(launches, name) for name in LaunchFit.__struct_fields__}
    eager = [ns if name.startswith("eager") else 0.0 for name, ns in least.items()]
    kinds = launch_kinds(f, profile.engine.graph_tokens)
    waiting: NDArray[np.bool_] = ns <= _WAITING * np.array(eager)[kinds]
    return waiting


def _mixed_columns(
    parts: KernelParts,
    f: StepFeatures,
    rows: NDArray[np.bool_],
    tokens: Float64,
    graph_tokens: Sequence[int],
) -> tuple[Float64, ...]:
    """(products, attention of prompts, attention of decode items, all else, chunks) of others."""
    knots = token_knots(parts, graph_tokens)
    fit, chunks = parts.prefill, f.prefill_requests[rows].astype(np.float64)
    logits_ns, row_ns = logit_line(parts)
    sampled = f.sampled_tokens[rows]
    products = linear(tokens, knots, parts.products(knots))
    products = products + np.where(sampled > 0, logits_ns + row_ns * sampled, 0.0)
    attention = (
        fit.call_ns
        + fit.token_ns * tokens
        + fit.chunk_ns * chunks
        + np.maximum(
            fit.pair_ns * f.prefill_pairs[rows] + fit.context_ns * f.prefill_context[rows],
            fit.max_context_ns * f.prefill_max_context[rows],
        )
    )
    places = decode_contexts(parts)
    contexts = f.decode_context[rows].astype(np.float64)
    of_decodes = linear(contexts, places, mixed_decode_attention(parts, places))
    of_decodes = of_decodes + decode_request(parts) * f.decode_requests[rows]
    small = linear(tokens, knots, mixed_small(parts, knots, graph_tokens))
    return products, parts.layers * attention, of_decodes, small, chunks


def _correction(every: Sequence[_StepParts]) -> Correction:
    """What explains the steps of all models, each of which counts as much."""
    if not every:
        return Correction()
    decode = _solve(
        [(np.column_stack([products, attention, np.full(len(ns), float(steps.layers))]), small, ns)
         for steps in every for (products, attention, small), ns in [steps.decode] if len(ns)],
        prior=(1.0, 1.0, 0.0),
        spread=(_FACTOR_SPREAD, _FACTOR_SPREAD, _LAYER_NS),
    )  # fmt: skip
    decode_products, decode_attention = np.clip(decode[:2], *_FACTORS).tolist()
    mixed = _solve(
        [(np.column_stack([products, attention, np.full(len(ns), float(steps.layers)),
                           np.ones(len(ns)), chunks]), small + decode_attention * of_decodes, ns)
         for steps in every
         for (products, attention, of_decodes, small, chunks), ns in [steps.mixed] if len(ns)],
        prior=(1.0, 1.0, 0.0, 0.0, 0.0),
        spread=(_FACTOR_SPREAD, _FACTOR_SPREAD, _LAYER_NS, _STEP_NS, _CHUNK_NS),
    )  # fmt: skip
    products, attention = np.clip(mixed[:2], *_FACTORS).tolist()
    return Correction(
        decode_products=decode_products,
        decode_attention=decode_attention,
        decode_layer_ns=float(decode[2]),
        products=products,
        attention=attention,
        layer_ns=float(mixed[2]),
        step_ns=max(0.0, float(mixed[3])),
        chunk_ns=max(0.0, float(mixed[4])),
    )


def _solve(
    groups: Sequence[tuple[Float64, Float64, Float64]],
    prior: tuple[float, ...],
    spread: tuple[float, ...],
) -> Float64:
    """Least squares of relative errors, held near a prior.

    Args:
        groups: (columns, what is added to them, measured ns) of the steps of each model.
        prior: what is expected of each column's factor.
        spread: how far it may be from that at the price of an error of `_ERROR`.
    """
    found = np.array(prior)
    for _ in range(_ROUNDS):
        lhs, rhs = [np.diag(1 / np.array(spread))], [np.array(prior) / np.array(spread)]
        for columns, fixed, ns in groups:
            errors = np.abs((columns @ found + fixed) / ns - 1)
            trust = np.sqrt(1 / np.maximum(1.0, errors / (_OUTLIER * max(1e-3, np.median(errors)))))
            weight = trust / (_ERROR * ns * np.sqrt(len(ns)))
            lhs.append(columns * weight[:, None])
            rhs.append((ns - fixed) * weight)
        found = np.linalg.lstsq(np.vstack(lhs), np.concatenate(rhs), rcond=None)[0]
    return np.asarray(found, np.float64)


# How well it does.


def _errors(
    bare: KernelFile, others: Sequence[Measured], left_out: Measured, gpu: HardwareSpec
) -> Iterator[ComposedError]:
    """Errors of the steps of a model that nothing is known of but its shape."""
    kernels = msgspec.structs.replace(bare, composition=_composition(bare, others, gpu))
    model, samples = left_out.model, left_out.profile.samples
    f = samples.features()
    padded = left_out.profile.engine.graph_tokens  # of the engine that was measured
    predicts = ComposedCostModel(kernels, model, gpu, graph_tokens=padded)
    composed = _percent(predicts, f, samples.gpu_ns)
    analytic = _percent(RooflineCostModel(model, gpu), f, samples.gpu_ns)
    regions = regions_of(f)
    for region in REGIONS:
        rows = regions == region
        if rows.any():
            yield ComposedError(
                model=left_out.profile.identity.model,
                composed=residual_of(region, composed[rows]),
                analytic=residual_of(region, analytic[rows]),
            )


def regions_of(f: StepFeatures) -> NDArray[np.str_]:
    """The region of each step."""
    decodes = f.prefill_tokens == 0
    conditions = [
        f.shared_context > 0, decodes & (f.graph_batch > 0), decodes, f.decode_tokens > 0,
        f.prefill_context > 0,
    ]  # fmt: skip
    return np.select(conditions, [SHARED, DECODE, EAGER_DECODE, MIXED, PREFIX], PREFILL)


def _percent(model: CostModel, f: StepFeatures, ns: Sequence[int]) -> Float64:
    errors: Float64 = 100.0 * (model.step_costs(f).gpu_ns / np.array(ns, np.float64) - 1.0)
    return errors
