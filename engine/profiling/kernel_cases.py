"""Which single kernels a calibration measures, at which sizes.

An op is one of the engine's (`engine.kernels.registry`), named as there, except that `lm_head` is
`norm_linear` of the logits, whose result may not come in parts; or it is a part of a layer, whose
ops run one after the other as in a model: what kernels take depends on who comes before them.
`OPS` says which numbers tell what an op computes: its *sizes*, which a model and its number of GPUs
decide, and its *point*, which a step decides. All points of one op and one set of sizes are a
series.

The sizes are those of the common models on one GPU and of a shard on two, four and eight; between
them, other models are read off. Points are dense where the engine changes from one kernel to
another: rows of a product have classes (`engine.kernels.linear_tilings`), attention a tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.model_spec import ModelSpec
from engine.profiling.step_shapes import as_served


class Op(NamedTuple):
    """What the numbers of an op are called.

    Attributes:
        sizes: of its weights or heads.
        axes: of its points.
    """

    sizes: tuple[str, ...]
    axes: tuple[str, ...]


_PRODUCT: Final = Op(("out_features", "inner"), ("tokens",))
_HEADS: Final = ("heads", "kv_heads", "head_dim")
_EXPERTS: Final = Op(
    ("experts", "top_k", "hidden", "width"), ("tokens", "active_experts", "largest_load")
)
_PAGES: Final = Op(("page_bytes",), ("pages",))
_HOST: Final = Op((), ("requests",))
OPS: Final[dict[str, Op]] = {
    "norm_linear": _PRODUCT,
    "residual_linear": _PRODUCT,
    "norm_gated_linear": _PRODUCT,  # rows of gate and up together
    "lm_head": _PRODUCT,
    "linear": _PRODUCT,
    "norm": Op(("hidden",), ("tokens",)),
    "embed_tokens": Op(("hidden",), ("tokens",)),
    "sample": Op(("vocab",), ("tokens",)),
    "rotary_kv_write": Op((*_HEADS, "qk_norm"), ("tokens",)),
    "decode_attention": Op(_HEADS, ("requests", "context")),  # of all requests together
    "prefill_attention": Op(_HEADS, ("chunks", "tokens", "prefix")),  # of each chunk
    "route": Op(("experts", "top_k"), ("tokens",)),
    "moe_mlp": _EXPERTS,
    # Parts of a layer, one after the other on each other's results.
    "projections": Op((*_HEADS, "qk_norm", "hidden"), ("tokens",)),  # qkv, rotation, output
    "mlp": Op(("hidden", "width"), ("tokens",)),
    "moe_layer": _EXPERTS,  # norm, router, choice, experts
    # Pages of one layer, keys and values: to other pages, to pinned memory of the host, and back.
    "kv_copy": _PAGES,
    "kv_to_host": _PAGES,
    "kv_from_host": _PAGES,
    # Of the host, for a step in which so many requests decode (`engine.profiling.host_work`).
    "plan": _HOST,
    "prepare": _HOST,
    "commit": _HOST,
    "detokenize": _HOST,
}
COPIES: Final = ("kv_copy", "kv_to_host", "kv_from_host")
HOST_WORK: Final = ("plan", "prepare", "commit", "detokenize")

PAGE_SIZE: Final = 16  # tokens
SHARDS: Final = (1, 2, 4, 8)
ROWS: Final = (
    1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 72, 96, 128, 136, 160, 192, 200, 232, 240, 256, 320, 384,
    512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192,
)  # fmt: skip
_FEW_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAMPLED: Final = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 72, 96, 128, 136, 160, 192, 232, 240, 256)
_SMALL_ROWS: Final = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_CONTEXTS: Final = (32, 128, 512, 2048, 8192, 32768)
_MOST_CONTEXT: Final = 1 << 19
_MOST_LENGTH: Final = 1 << 16
_PROMPTS: Final = (16, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
_PREFIXES: Final = (256, 1024, 4096, 16384)
_CHUNKED: Final = (16, 128, 512, 2048)
_SEVERAL: Final = ((4, 16), (4, 128), (4, 512), (16, 64), (16, 512), (64, 16), (64, 128))
_SKEWED_ROWS: Final = (8, 32, 128, 512, 2048)
_SKEWS: Final = (50, 100)
_COPIED_PAGES: Final = (1, 4, 16, 64, 256, 1024)
MOST_COPIED_BYTES: Final = 64 << 20
_HOST_BATCHES: Final = (1, 4, 16, 64, 128, 256, 512)
_SEED: Final = 1


class Draw(NamedTuple):
    """How tokens choose their experts.

    Attributes:
        pool: experts that are chosen at all.
        skew: the n-th of them is chosen as often as 1 / n ** skew, in hundredths.
    """

    pool: int
    skew: int = 0


class KernelCase(NamedTuple):
    """One thing to measure.

    Attributes:
        op: of `OPS`.
        sizes, point: its numbers, in the order in which `OPS` names them.
        draw: of a mixture's experts.
    """

    op: str
    sizes: tuple[int, ...]
    point: tuple[int, ...]
    draw: Draw | None = None


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """What the device that is measured can hold.

    Attributes:
        weight_bytes: most bytes of the weights of one op.
        kv_bytes: most bytes of keys and values of one op, which are those of a layer.
        tokens: most tokens of a step.
        kv_layers: how many layers have so many: an engine's cache fills the memory, and its pages
            are more than the GPU remembers addresses of.
    """

    weight_bytes: int
    kv_bytes: int
    tokens: int
    kv_layers: int = 1


def design_kernels(
    models: Iterable[ModelSpec], limits: KernelLimits, shards: Iterable[int] = SHARDS
) -> list[KernelCase]:
    """Everything worth measuring for these models and their shards, none twice.

    Models with latent attention have ops that are none of `OPS`; they are left out.
    """
    found: dict[KernelCase, None] = dict.fromkeys(_host_work())
    for model, count in product(models, shards):
        if model.mla is None:
            found |= dict.fromkeys(_of_model(model, count))
    return [case for case in found if _fits(case, limits)]


def attention_heads(model: ModelSpec, shards: int) -> tuple[int, int, int]:
    """(query heads, KV heads, their size) on one of so many GPUs; KV heads are repeated if few."""
    return model.num_heads // shards, max(1, model.num_kv_heads // shards), model.head_dim


def _of_model(model: ModelSpec, shards: int) -> Iterator[KernelCase]:
    """Cases of a shard; those of a model that does not divide by it are left out."""
    hidden, heads = model.hidden_size, attention_heads(model, shards)
    if model.num_heads % shards or model.num_heads // shards < heads[1]:
        return
    query, width = heads[0] * heads[2], (heads[0] + 2 * heads[1]) * heads[2]
    yield from _rows("norm_linear", (width, hidden))
    yield from _rows("residual_linear", (hidden, query))
    if model.num_dense_layers and model.intermediate_size % shards == 0:
        inner = model.intermediate_size // shards
        yield from _rows("norm_gated_linear", (2 * inner, hidden))
        yield from _rows("residual_linear", (hidden, inner))
        yield from _rows("mlp", (hidden, inner))
    yield from _rows("lm_head", (-(-model.vocab_size // shards), hidden), SAMPLED)
    yield from _rows("embed_tokens", (hidden,), _SMALL_ROWS)
    yield from _rows("sample", (model.vocab_size,), SAMPLED)
    yield from _rows("rotary_kv_write", (*heads, int(model.qk_norm)), _SMALL_ROWS)
    yield from _rows("projections", (*heads, int(model.qk_norm), hidden))
    yield from _decodes(heads)
    yield from _prefills(heads)
    yield from _copies(heads)
    if model.moe is not None:
        yield from _experts(model, shards)


def _rows(op: str, sizes: tuple[int, ...], rows: Iterable[int] = ROWS) -> Iterator[KernelCase]:
    for tokens in rows:
        yield KernelCase(op, sizes, (tokens,))


def _decodes(heads: tuple[int, int, int]) -> Iterator[KernelCase]:
    for requests in _FEW_ROWS:
        for mean in _CONTEXTS:
            context = sum(decode_lengths(requests, mean))
            if context <= _MOST_CONTEXT:
                yield KernelCase("decode_attention", heads, (requests, context))


def decode_lengths(requests: int, mean: int) -> tuple[int, ...]:
    """KV lengths of requests that decode together."""
    return as_served(requests, mean, _MOST_LENGTH)


def lengths_of(requests: int, context: int) -> tuple[int, ...]:
    """`decode_lengths` that sum up to `context`, of a case."""
    for mean in _CONTEXTS:
        lengths = decode_lengths(requests, mean)
        if sum(lengths) == context:
            return lengths
    raise ValueError(f"no case has {requests} requests with {context} tokens")


def _prefills(heads: tuple[int, int, int]) -> Iterator[KernelCase]:
    points = [(1, tokens, 0) for tokens in _PROMPTS]
    points += [(1, tokens, prefix) for tokens in _CHUNKED for prefix in _PREFIXES]
    points += [(chunks, tokens, 0) for chunks, tokens in _SEVERAL]
    for point in points:
        yield KernelCase("prefill_attention", heads, point)


def _copies(heads: tuple[int, int, int]) -> Iterator[KernelCase]:
    _, kv_heads, head_dim = heads
    page_bytes = 4 * PAGE_SIZE * kv_heads * head_dim
    for op, pages in product(COPIES, _COPIED_PAGES):
        yield KernelCase(op, (page_bytes,), (pages,))


def _host_work() -> Iterator[KernelCase]:
    for op, requests in product(HOST_WORK, _HOST_BATCHES):
        yield KernelCase(op, (), (requests,))


def _experts(model: ModelSpec, shards: int) -> Iterator[KernelCase]:
    moe, hidden = model.moe, model.hidden_size
    if moe is None or moe.intermediate_size % (16 * shards):
        return
    experts, top_k = moe.num_experts, moe.experts_per_token
    yield from _rows("norm", (hidden,), _SMALL_ROWS)
    yield from _rows("linear", (experts, hidden), _SMALL_ROWS)
    yield from _rows("route", (experts, top_k), _SMALL_ROWS)
    sizes = (experts, top_k, hidden, moe.intermediate_size // shards)
    draws = [(rows, Draw(experts)) for rows in ROWS if rows in _SMALL_ROWS or rows in _FEW_ROWS]
    for rows in _SKEWED_ROWS:
        pools = sorted({max(top_k, experts // 2), max(top_k, experts // 4)} - {experts})
        draws += [(rows, Draw(pool)) for pool in pools]
        draws += [(rows, Draw(experts, skew)) for skew in _SKEWS]
    for rows, draw in draws:
        loads = np.bincount(draw_experts(rows, experts, top_k, draw).ravel(), minlength=experts)
        point = (rows, int(np.count_nonzero(loads)), int(loads.max()))
        yield KernelCase("moe_mlp", sizes, point, draw)
        yield KernelCase("moe_layer", sizes, point, draw)


def draw_experts(tokens: int, experts: int, top_k: int, draw: Draw) -> NDArray[np.int32]:
    """Experts of each token, all different: int32[tokens, top_k], the same at each call."""
    random = np.random.default_rng(_SEED)
    names = random.permutation(experts)[: draw.pool]
    chances = -draw.skew / 100 * np.log(1 + np.arange(draw.pool))
    keys = chances + random.gumbel(size=(tokens, draw.pool))
    chosen = np.argsort(-keys, axis=1)[:, :top_k]
    return names[chosen].astype(np.int32)


def _fits(case: KernelCase, limits: KernelLimits) -> bool:
    if case.op == "decode_attention":
        requests, context = case.point
        return _kv_bytes(case, context, requests) <= limits.kv_bytes
    if case.op in HOST_WORK:
        return case.point[0] <= limits.tokens
    if case.op in COPIES:
        # From some pages to as many others.
        copied = case.sizes[0] * case.point[0]
        return copied <= MOST_COPIED_BYTES and 2 * copied <= limits.kv_bytes
    if case.op == "prefill_attention":
        chunks, each, prefix = case.point
        needed = _kv_bytes(case, chunks * (each + prefix), chunks)
        return chunks * each <= limits.tokens and needed <= limits.kv_bytes
    return case.point[0] <= limits.tokens and weight_bytes(case) <= limits.weight_bytes


def _kv_bytes(case: KernelCase, context: int, requests: int) -> int:
    """Of all pages of some requests with so much context, each of which may need one more."""
    _, kv_heads, head_dim = case.sizes
    return 4 * (context + PAGE_SIZE * requests) * kv_heads * head_dim


def weight_bytes(case: KernelCase) -> int:
    """Bytes of the weights that an op may read, in 16-bit numbers; 0 if it has none."""
    if OPS[case.op] is _PRODUCT:
        out_features, inner = case.sizes
        return 2 * out_features * inner
    match case.op, case.sizes:
        case (("moe_mlp" | "moe_layer"), (experts, _, hidden, width)):
            return 6 * experts * hidden * width + 2 * experts * hidden
        case "mlp", (hidden, width):
            return 6 * hidden * width
        case "projections", (heads, kv_heads, head_dim, _, hidden):
            return 4 * (heads + kv_heads) * head_dim * hidden
    return 0
