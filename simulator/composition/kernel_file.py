"""Kernel tables: what single kernels of the engine were measured to take on one GPU.

`workbench calibrate --kernels` writes them as `kernels-<gpu>.json`; models that never ran are
composed of them (`composed`). The raw samples stay beside what was fitted to them and to the models
that were measured whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from engine.core.bounded_file import read_bounded
from simulator.composition.kernel_exchange import ExchangeTables, exchange_problem
from simulator.measured_file import encode_checked, read_measured_bytes
from simulator.power_state import Cost, PowerFit
from simulator.profile import HostFit, LaunchFit, ProfileError, Residual, SharedFit
from simulator.samples import Count, Positive
from simulator.waking import WakeFit

SCHEMA: Final = "kernels/v1"
PREFIX: Final = "kernels-"  # of the file's name

# What a trained router does, as far as one was looked at: docs/calibration.md.
EXPERT_SKEW: Final = 0.25

Time = Annotated[float, msgspec.Meta(gt=0)]

# Op -> names of the numbers that tell what it computes: its sizes, and a point of its series.
_PRODUCT: Final = (("out_features", "inner"), ("tokens",))
_HEADS: Final = ("heads", "kv_heads", "head_dim")
_EXPERTS: Final = (
    ("experts", "top_k", "hidden", "width"), ("tokens", "active_experts", "largest_load")
)  # fmt: skip
_PAGES: Final = (("page_bytes",), ("pages",))
_HOST: Final[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ("requests",))
OPS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "norm_linear": _PRODUCT,
    "residual_linear": _PRODUCT,
    "norm_gated_linear": _PRODUCT,
    "lm_head": _PRODUCT,
    "linear": _PRODUCT,
    "norm": (("hidden",), ("tokens",)),
    "embed_tokens": (("hidden",), ("tokens",)),
    "sample": (("vocab",), ("tokens",)),
    "rotary_kv_write": ((*_HEADS, "qk_norm"), ("tokens",)),
    "decode_attention": (_HEADS, ("requests", "context")),
    "prefill_attention": (_HEADS, ("chunks", "tokens", "prefix")),
    "route": (("experts", "top_k"), ("tokens",)),
    "moe_mlp": _EXPERTS,
    "projections": ((*_HEADS, "qk_norm", "hidden"), ("tokens",)),
    "mlp": (("hidden", "width"), ("tokens",)),
    "moe_layer": _EXPERTS,
    "kv_copy": _PAGES,
    "kv_to_host": _PAGES,
    "kv_from_host": _PAGES,
    "plan": _HOST,
    "prepare": _HOST,
    "commit": _HOST,
    "detokenize": _HOST,
}


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written down, and nothing besides."""


class KernelIdentity(_Strict, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        gpu: as the driver names it, or "cpu".
        dtype: of weights, activations and KV.
        page_size: tokens of a KV page.
        engine_version: of the package; commit: of the tree, or None.
        versions: of torch, triton, cuda, as far as known.
        implementations: op -> whose kernel it was.
    """

    gpu: str
    dtype: str
    page_size: Positive
    engine_version: str
    commit: str | None = None
    versions: dict[str, str] = {}
    implementations: dict[str, str] = {}


class Series(_Strict, frozen=True, kw_only=True):
    """Times of one op with one set of sizes.

    Attributes:
        op: of `OPS`.
        sizes: its numbers, as `OPS` names them.
        points: where it was measured, each as `OPS` names its numbers.
        ns: median time of a launch at each point, the gap to the next one included.
        spread_ns: median absolute deviation from it.
        repeats: how many times were taken.
    """

    op: str
    sizes: tuple[Count, ...]
    points: tuple[tuple[Count, ...], ...]
    ns: tuple[Time, ...]
    spread_ns: tuple[Cost, ...]
    repeats: tuple[Positive, ...]


class AttentionFit(_Strict, frozen=True, kw_only=True):
    """What attention of prompts takes in one layer.

    `call_ns`, and for each chunk and each of their tokens something; and for pairs of query and key
    and for tokens before the chunks, or for tokens of the longest prompt if that is more.

    Attributes:
        heads, kv_heads, head_dim: whose.
        call_ns, chunk_ns, token_ns, pair_ns, context_ns, max_context_ns: costs.
    """

    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    call_ns: Cost
    chunk_ns: Cost
    token_ns: Cost
    pair_ns: Cost
    context_ns: Cost
    max_context_ns: Cost


class Correction(_Strict, frozen=True, kw_only=True):
    """How steps differ from the sum of their kernels, by steps of models that were measured whole.

    Attributes:
        decode_products, decode_attention: factors of these parts of a decode graph.
        decode_layer_ns: what each layer takes besides; less than 0 where kernels overlap more than
            they do among their like.
        products, attention: factors of steps with prompts; attention of decode items beside them
            has that of a decode graph.
        layer_ns: of each layer of such a step; step_ns: of the step.
        chunk_ns: of each chunk.
    """

    decode_products: Cost = 1.0
    decode_attention: Cost = 1.0
    decode_layer_ns: float = 0.0
    products: Cost = 1.0
    attention: Cost = 1.0
    layer_ns: float = 0.0
    step_ns: Cost = 0.0
    chunk_ns: Cost = 0.0


class ComposedError(_Strict, frozen=True, kw_only=True):
    """How far a model's steps were from what kernels and *other* models' steps say of them.

    Attributes:
        model: whose steps.
        composed: errors of the composition.
        analytic: of the analytic model, for the same steps.
    """

    model: str
    composed: Residual
    analytic: Residual


class Lender(_Strict, frozen=True, kw_only=True):
    """A model that was measured whole, and what others may take from it.

    Attributes:
        model: its name.
        flops_per_token: of its matrices.
        layers: of the model.
        mixture: whether it has experts.
        host, power, launches: of its profile.
        shared: of its profile, or None if no step was measured that tells it; of a mixture none
            does, as whoever shares a text shares experts, too.
        wake: of its profile, or None.
    """

    model: str
    flops_per_token: Positive
    layers: Positive
    mixture: bool = False
    host: HostFit
    launches: LaunchFit
    power: PowerFit | None
    shared: SharedFit | None
    wake: WakeFit | None = None


class Composition(_Strict, frozen=True, kw_only=True):
    """What makes steps of kernels.

    Attributes:
        attention: of prompts, by heads.
        correction: by all the lenders' steps.
        lenders: models that were measured whole on this GPU; without any, nothing is known of how
            steps differ from the sum of their kernels, nor of the host.
        errors: by model and region; of each model without its own steps.
        expert_skew: assumed of mixtures: the n-th expert is liked as 1 / n ** expert_skew.
    """

    attention: tuple[AttentionFit, ...]
    correction: Correction = Correction()
    lenders: tuple[Lender, ...] = ()
    errors: tuple[ComposedError, ...] = ()
    expert_skew: Annotated[float, msgspec.Meta(ge=0, le=4)] = EXPERT_SKEW


class KernelFile(_Strict, frozen=True, kw_only=True):
    """Everything that measuring kernels leaves.

    Attributes:
        name: `kernels-<gpu>`, which is also its file's.
        exchange: between GPUs, maybe of other ones; None: none was measured.
        conditions: when and how it was measured; for the reader.
    """

    schema: str
    name: str
    identity: KernelIdentity
    series: tuple[Series, ...]
    composition: Composition
    exchange: ExchangeTables | None = None
    conditions: dict[str, Any] = {}


class _Header(msgspec.Struct):
    schema: str


def read_kernel_file(path: Path) -> KernelFile:
    """The kernel tables in a file.

    Raises:
        ProfileError: it is not there, is none, is one of another version, or contradicts itself.
    """
    return _decode(read_measured_bytes(path), str(path))


def encode_kernel_file(kernels: KernelFile) -> bytes:
    """Kernel tables as JSON, indented.

    Raises:
        ProfileError: they could not be read again.
    """
    return encode_checked(kernels, lambda data: _decode(data, kernels.name))


def is_kernel_file(path: Path) -> bool:
    """Whether a file calls itself kernel tables; no if it cannot be read."""
    try:
        return msgspec.json.decode(read_bounded(path), type=_Header).schema.startswith("kernels/")
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False


def _decode(data: bytes, name: str) -> KernelFile:
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema != SCHEMA:
            raise ProfileError(
                f"{name} is {schema!r}, this version reads {SCHEMA!r}: measure again, with"
                " `workbench calibrate --kernels`"
            )
        kernels = msgspec.json.decode(data, type=KernelFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{name} holds no kernel tables: {error}") from None
    problem = series_problem(kernels.series)
    if not problem and kernels.exchange is not None:
        problem = exchange_problem(kernels.exchange)
    if problem:
        raise ProfileError(f"{name}: {problem}")
    return kernels


def series_problem(series: tuple[Series, ...]) -> str | None:
    """What keeps series from being read as tables, if anything does."""
    seen = set()
    for each in series:
        where = f"the series of {each.op} {list(each.sizes)}"
        if each.op not in OPS:
            return f"{where}: no such op; ops: {', '.join(OPS)}"
        sizes, axes = OPS[each.op]
        if len(each.sizes) != len(sizes):
            needed = f"needs the sizes {', '.join(sizes)}" if sizes else "takes no sizes"
            return f"{where} {needed}"
        if any(len(point) != len(axes) for point in each.points):
            return f"{where} has a point that is not of {', '.join(axes)}"
        lengths = {len(each.points), len(each.ns), len(each.spread_ns), len(each.repeats)}
        if len(lengths) > 1:
            return f"{where} has columns of different lengths"
        if len(set(each.points)) < len(each.points):
            return f"{where} has a point twice"
        if not each.points:
            return f"{where} is empty"
        if (each.op, each.sizes) in seen:
            return f"{where} is there twice"
        seen.add((each.op, each.sizes))
    return None
