"""From kernels to steps: fits as a calibration would make them, of models that never ran.

What a profile's fit says of steps (`simulator.profile.Fit`) is worked out instead of measured: a
decode table for each graph, a table of tokens, rates of the rest. So predictions are made by the
same code, with the same rounding, and rise where a profile's do.

Kernels are measured on a cool GPU; a long step with many tokens heats it while it runs, as it did
where it was calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.graph_sizes import default_graph_batch_sizes
from engine.core.model_spec import ModelSpec
from simulator.composition.kernel_curves import monotone
from simulator.composition.kernel_file import Correction, Lender
from simulator.composition.kernel_parts import KernelParts
from simulator.composition.kernel_tables import KernelTables
from simulator.power_state import PowerFit, calibrated_longer, usual_share
from simulator.profile import DecodeTable, Fit, HostFit, LaunchFit, MixedFit, SharedFit
from simulator.roofline import HostCosts
from simulator.waking import WakeFit

Float64 = NDArray[np.float64]

_ROW_CONTEXTS: Final = (1, 32, 128, 512, 1024, 2048, 8192, 32_768)  # knots, for each row
_DECODE_CONTEXTS: Final = (64, 1024, 4096, 16_384, 65_536, 262_144)  # knots beside prompts
_LAST: Final = 1.5  # of these: the end is at least this multiple of the knot before
_USUAL_CONTEXT: Final = 1024  # of a decode item beside prompts
_FEW_REQUESTS, _SAME_CONTEXT = 32, 32_768  # to tell what requests add, and not their context
_OWN_TOKENS: Final = 64  # of a mixture's prompts: from there on they visit nearly all experts
_LOGIT_ROWS: Final = (1.0, 64.0)  # where the line of logits meets their times
_REACHED: Final = 0.8  # of the highest load of any lender's table
_LEAST_SHARE: Final = 0.3  # of the sum of kernels, that corrections leave


def compose_fit(
    parts: KernelParts,
    correction: Correction,
    lenders: Sequence[Lender],
    graph_tokens: Sequence[int],
    flops_per_token: int,
) -> Fit:
    """The fit of a model that never ran.

    Args:
        parts: sums of its kernels.
        correction: how steps differ from them.
        lenders: models that were measured whole, for what no kernel tells.
        graph_tokens: to which the engine pads steps with prompts.
        flops_per_token: of the model's matrices.
    """
    limits = {
        "prefill_tokens": int(parts.rows[-1]),
        "prefill_requests": parts.prompts.chunks,
        "prefill_context": parts.prompts.context,
        "prefill_max_context": parts.prompts.longest,
        "decode_context": parts.most_context,
        "decode_max_context": parts.longest,
        "graph_batch": parts.most_requests,
    }
    if not parts.covered:
        limits["prefill_tokens"] = -1  # which every step exceeds
    power = _power(parts, lenders, flops_per_token, graph_tokens)
    launches = _launches(lenders, parts.layers)
    return Fit(
        decode=_decode_tables(parts, correction),
        mixed=_mixed(parts, correction, graph_tokens, power, launches),
        host=_host(lenders, parts.tables),
        limits=limits,
        residuals=(),
        shared=_shared(lenders, flops_per_token),
        power=power,
        wake=_wake(lenders, flops_per_token),
    )


def decode_base(parts: KernelParts, correction: Correction, batches: Float64) -> Float64:
    """float64[n]: decode graphs but for their attention."""
    products, small = parts.decode_products(batches), parts.decode_small(batches)
    corrected = (
        correction.decode_products * products + small + correction.decode_layer_ns * parts.layers
    )
    return monotone(np.maximum(corrected, _LEAST_SHARE * (products + small)))


def token_knots(parts: KernelParts, graph_tokens: Sequence[int]) -> Float64:
    """Where the table of tokens bends."""
    return np.union1d(parts.rows, [size for size in graph_tokens if size <= parts.rows[-1]])


def mixed_base(
    parts: KernelParts, correction: Correction, tokens: Float64, graph_tokens: Sequence[int]
) -> Float64:
    """float64[n]: steps with so many tokens, but for what depends on the rest of their shape."""
    products, small = parts.products(tokens), mixed_small(parts, tokens, graph_tokens)
    attention = parts.layers * (parts.prefill.call_ns + parts.prefill.token_ns * tokens)
    corrected = (
        correction.products * products
        + small
        + correction.attention * attention
        + correction.layer_ns * parts.layers
        + correction.step_ns
    )
    return monotone(np.maximum(corrected, _LEAST_SHARE * (products + small)))


def mixed_small(parts: KernelParts, tokens: Float64, graph_tokens: Sequence[int]) -> Float64:
    """float64[n]: what is around the layers, and the attention of decode items that are not there.

    A graph has room for them, and launches their attention whether there are any or not.
    """
    graphed = tokens <= (graph_tokens[-1] if graph_tokens else 0)
    return parts.small(tokens) + np.where(graphed, _idle_attention(parts), 0.0)


def _idle_attention(parts: KernelParts) -> float:
    """Of all layers, without anything to attend to, or as good as."""
    return float(parts.decode_attention(1, np.array([1.0]))[0])


def mixed_decode_attention(parts: KernelParts, contexts: Float64) -> Float64:
    """float64[n]: attention of decode items with so much context, of which there are a usual many.

    Uncorrected; what it takes besides that of none at all, 0 at 0.
    """
    idle = _idle_attention(parts)
    ns = [
        parts.decode_attention(_usual_requests(parts, context), np.array([context]))[0] - idle
        for context in contexts.tolist()
        if context > 0
    ]
    return monotone(np.maximum(0.0, [0.0] * (len(contexts) - len(ns)) + ns))


def decode_request(parts: KernelParts) -> float:
    """ns that each more decode item adds where the context of all is the same, uncorrected."""
    most, context = parts.most_requests, np.array([float(_SAME_CONTEXT)])
    few = min(_FEW_REQUESTS, most - 1)
    if few < 1:
        return 0.0
    more = parts.decode_attention(most, context) - parts.decode_attention(few, context)
    return max(0.0, float(more[0]) / (most - few))


def logit_line(parts: KernelParts) -> tuple[float, float]:
    """(ns of a step with logits, ns of each row), uncorrected."""
    first, last = _LOGIT_ROWS
    at = parts.logits(np.array(_LOGIT_ROWS))
    slope = float(at[1] - at[0]) / (last - first)
    return max(0.0, float(at[0]) - slope * first), slope


def decode_contexts(parts: KernelParts) -> Float64:
    """Where the table of decode_context bends: ascending from 0."""
    inside = [float(each) for each in _DECODE_CONTEXTS if _LAST * each < parts.most_context]
    return np.array([0.0, *inside, float(parts.most_context)])


def _usual_requests(parts: KernelParts, context: float) -> int:
    return int(min(parts.most_requests, max(1.0, context // _USUAL_CONTEXT)))


def _decode_tables(parts: KernelParts, correction: Correction) -> tuple[DecodeTable, ...]:
    batches = default_graph_batch_sizes(parts.most_requests)
    bases = decode_base(parts, correction, np.array(batches, np.float64)).tolist()
    idle = correction.decode_products * idle_row_ns(parts, np.array(batches, np.float64))
    return tuple(
        _decode_table(parts, correction, *each)
        for each in zip(batches, bases, idle.tolist(), strict=True)
    )


def idle_row_ns(parts: KernelParts, batches: Float64) -> Float64:
    """float64[n]: what a row without a request saves, uncorrected, of graphs of so many rows.

    One of them chooses experts, the others choose the same; from a full graph to one as empty as
    can be, all save as much.
    """
    sizes = np.array(default_graph_batch_sizes(parts.most_requests), np.float64)
    fewest = np.minimum(sizes, np.concatenate([[0.0], sizes[:-1]]) + 2)
    saved = parts.mixtures(sizes) - parts.mixtures(fewest)
    row_ns: Float64 = np.interp(batches, sizes, saved / np.maximum(1.0, sizes - fewest))
    return row_ns


def _decode_table(
    parts: KernelParts, correction: Correction, batch: int, base_ns: float, idle_row_ns: float
) -> DecodeTable:
    contexts = [batch * each for each in _ROW_CONTEXTS if batch * each <= parts.most_context]
    contexts = contexts if len(contexts) > 1 else [batch, 2 * batch]
    attention = parts.decode_attention(batch, np.array(contexts, np.float64))
    ns = monotone(base_ns + correction.decode_attention * attention)
    return DecodeTable(
        graph_batch=batch,
        context=tuple(contexts),
        ns=tuple(ns.tolist()),
        idle_row_ns=idle_row_ns,
    )


def _mixed(
    parts: KernelParts,
    correction: Correction,
    graph_tokens: Sequence[int],
    power: PowerFit | None,
    launches: LaunchFit,
) -> MixedFit:
    tokens, contexts = token_knots(parts, graph_tokens), decode_contexts(parts)
    base = mixed_base(parts, correction, tokens, graph_tokens)
    attention, layers = parts.prefill, correction.attention * parts.layers
    of_decodes = correction.decode_attention * mixed_decode_attention(parts, contexts)
    logits_ns, logit_row_ns = logit_line(parts)
    return MixedFit(
        tokens=tuple(tokens.astype(np.int64).tolist()),
        ns=tuple(_heated(base, tokens, power).tolist()),
        pair_ns=layers * attention.pair_ns,
        context_ns=layers * attention.context_ns,
        max_context_ns=layers * attention.max_context_ns,
        decode_context=tuple(contexts.astype(np.int64).tolist()),
        decode_context_ns=tuple(of_decodes.tolist()),
        prefill_request_ns=layers * attention.chunk_ns + correction.chunk_ns,
        decode_request_ns=correction.decode_attention * decode_request(parts),
        logits_ns=correction.products * logits_ns,
        logit_row_ns=correction.products * logit_row_ns,
        launches=launches,
        own_tokens=_OWN_TOKENS if parts.mixture else 0,
    )


def _host(lenders: Sequence[Lender], tables: KernelTables) -> HostFit:
    """The mean of theirs; without any, the host's own parts and what launching usually takes."""
    if not lenders:
        usual, parts = HostCosts(), tables.host_work
        step_ns, request_ns = (0.0, usual.request_ns) if parts is None else parts
        return HostFit(
            step_ns=usual.step_ns + step_ns, request_ns=request_ns,
            prefill_request_ns=0.0, prefill_token_ns=0.0,
        )  # fmt: skip
    every = [msgspec.structs.astuple(lender.host) for lender in lenders]
    means = [sum(column) / len(column) for column in zip(*every, strict=True)]
    return HostFit(**dict(zip(HostFit.__struct_fields__, means, strict=True)))


def _heated(ns: Float64, tokens: Float64, power: PowerFit | None) -> Float64:
    """What steps take that heat the GPU while they run."""
    return monotone(ns * heat(power, ns, tokens))


def heat(power: PowerFit | None, ns: Float64, tokens: Float64) -> Float64:
    """How many times as long steps of some tokens take as on a GPU that stays cool: float64[n].

    Args:
        power: what clocks do; None: nothing.
        ns: float64[n], about as long as the steps take.
        tokens: float64[n].
    """
    if power is None:
        return np.ones(len(ns))
    factors = []
    for taken, count in zip(ns.tolist(), tokens.tolist(), strict=True):
        busy = min(1.0, count * power.token_ns / taken)
        factors.append(calibrated_longer(power, taken, usual_share(power, busy), busy))
    return np.array(factors)


def _launches(lenders: Sequence[Lender], layers: int) -> LaunchFit:
    """What kernels take that are launched one by one, of so many layers: as any lender shows it.

    Where a step is a graph nothing is lent: a step that waits for launches cannot be told from one
    that waits for its weights.
    """
    found = {}
    for name in ("eager_prefill_ns", "eager_mixed_ns", "eager_decode_ns"):
        each = [getattr(lender.launches, name) / lender.layers for lender in lenders]
        found[name] = layers * min((ns for ns in each if ns > 0), default=0.0)
    return LaunchFit(**found)


def _shared(lenders: Sequence[Lender], flops_per_token: int) -> SharedFit:
    """What shared context saves, by the most similar model that tells; without any, nothing."""
    knowing = [lender for lender in lenders if lender.shared is not None]
    nearest = _nearest(knowing, flops_per_token)
    return SharedFit() if nearest is None or nearest.shared is None else nearest.shared


def _wake(lenders: Sequence[Lender], flops_per_token: int) -> WakeFit | None:
    """What idle times do, by the most similar model that tells; without any, nothing is known."""
    knowing = [lender for lender in lenders if lender.wake is not None]
    nearest = _nearest(knowing, flops_per_token)
    return None if nearest is None else nearest.wake


def _nearest(lenders: Sequence[Lender], flops_per_token: int) -> Lender | None:
    """The model with the most similar amount of arithmetic; None if there are no models."""

    def distance(lender: Lender) -> float:
        return abs(float(np.log(lender.flops_per_token / flops_per_token)))

    return min(lenders, key=distance, default=None)


def _power(
    parts: KernelParts,
    lenders: Sequence[Lender],
    flops_per_token: int,
    graph_tokens: Sequence[int],
) -> PowerFit | None:
    """That of the most similar model: arithmetic is what heats a GPU.

    A table that ends at low loads, as its model computed little, says nothing of higher ones.
    """
    reached = [each.power.load[-1] for each in lenders if each.power is not None]
    telling = [
        each
        for each in lenders
        if each.power is None or each.power.load[-1] >= _REACHED * max(reached)
    ]
    nearest = _nearest(telling, flops_per_token)
    if nearest is None or nearest.power is None:
        return None
    token_ns = nearest.power.token_ns * (flops_per_token / nearest.flops_per_token)
    pair_ns = parts.layers * parts.prefill.pair_ns
    return msgspec.structs.replace(
        nearest.power,
        token_ns=token_ns,
        pair_ns=pair_ns,
        light_ns=0.0,
        graph_tokens=tuple(graph_tokens),
        prompt_tokens=(),
        prompt_times=(),
        pair_times=0.0,
        few_times=1.0,
    )


def flops_per_token(model: ModelSpec, tensor_parallel_size: int) -> int:
    """Of a model's matrices on one GPU, but for logits."""
    flops = model.flops_per_token_by_group(tensor_parallel_size)
    return sum(count for group, count in flops.items() if group != "lm_head")
