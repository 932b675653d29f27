"""What the steps of a model are made of: the sums of kernels that its layers launch.

R rows of a layer are a norm with the product for queries, keys and values, rotation with the write
to the cache, attention, the product that brings it back, and the MLP: a norm, two products and the
activation between them, or a norm, the router, the choice and the experts. Tables that have these
parts measured in one piece say what the pieces take; of others single kernels are summed up. A step
adds embedding, the product for logits and sampling. With several GPUs each has its shard, and sums
are exchanged.

In a step with prompts the last layer goes on only with the rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.composition.exchange_curves import (
    AnalyticExchange,
    Exchange,
    LongerExchange,
    MeasuredExchange,
    NoExchange,
    knows,
    most_below,
)
from simulator.composition.kernel_curves import (
    Sizes,
    linear,
    monotone,
)
from simulator.composition.kernel_tables import KernelTables
from simulator.profile import ProfileError

Float64 = NDArray[np.float64]

_ROW_OPS: Final = (
    "norm_linear", "residual_linear", "norm_gated_linear", "lm_head", "linear", "norm",
    "embed_tokens", "sample", "rotary_kv_write", "route", "moe_mlp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a model's ops on one GPU."""

    heads: Sizes
    qkv: Sizes
    output: Sizes
    gate_up: Sizes
    down: tuple[int, int]
    lm_head: Sizes
    experts: tuple[int, int, int, int]


class KernelParts:
    """Sums of kernels of one model, in ns, uncorrected.

    Args:
        tables: of the GPU.
        model: without latent attention.
        gpu: for what GPUs send to each other, where no table tells.
        tensor_parallel_size: GPUs.
        expert_skew: how unevenly tokens choose experts (`simulator.composition.kernel_experts`).

    Attributes:
        tables: as given.
        layers: of the model.
        mixture: whether its tokens choose experts.
        prefill: attention of prompts in one layer.
        rows: ascending numbers of tokens at which products were measured.
        most_requests, most_context, longest: of decode items, up to which their attention was
            measured: how many, with how much context in total, and of one.
        prompts: up to which attention of prompts was.

    Raises:
        ProfileError: the tables lack an op of this model, or the model has ops of another kind.
        TensorParallelError: the model does not divide over that many GPUs.
    """

    def __init__(
        self,
        tables: KernelTables,
        model: ModelSpec,
        gpu: HardwareSpec,
        tensor_parallel_size: int,
        expert_skew: float = 0.0,
    ) -> None:
        model.check_tensor_parallel(tensor_parallel_size)
        if model.mla is not None:
            raise ProfileError(f"{model.name} has latent attention, which kernel tables have not")
        self.tables, self._model, self._tp = tables, model, tensor_parallel_size
        self._sizes = _sizes(model, tensor_parallel_size)
        self.layers, self.mixture = model.num_layers, model.moe is not None
        self.prefill = tables.prefill(self._sizes.heads)
        self.rows = tables.rows("norm_linear").rows
        self.most_requests, self.most_context, self.longest = tables.decode.most(self._sizes.heads)
        self.prompts = tables.most_prompts(self._sizes.heads)
        self._exchange = _exchange(tables, model, gpu, tensor_parallel_size)
        self._skew = expert_skew

    @property
    def covered(self) -> bool:
        """Whether all of it was measured on this GPU, or lies among sizes that were."""
        sizes, model = self._sizes, self._model
        parts = [("norm_linear", sizes.qkv), ("residual_linear", sizes.output)]
        if model.num_dense_layers:
            parts += [("norm_gated_linear", sizes.gate_up), ("residual_linear", sizes.down)]
        if model.moe is not None:
            parts.append(("moe_mlp", sizes.experts))
        parts.append(("lm_head", sizes.lm_head))
        measured = self.tables.decode.covers(sizes.heads) and self._exchange_is_this_gpus
        return measured and all(self.tables.rows(op).covers(of) for op, of in parts)

    @property
    def _exchange_is_this_gpus(self) -> bool:
        tables = self.tables.exchange
        if self._tp == 1:
            return True
        return knows(tables, self._tp) and tables is not None and tables.gpu == self.tables.gpu

    def decode_products(self, rows: Float64) -> Float64:
        """All layers but for their attention, and the logits, of decode graphs."""
        mixtures = self.layers - self._model.num_dense_layers
        layers = self.layers * self._projections(rows)
        layers = layers + self._mlps(rows, self._model.num_dense_layers, mixtures)
        return layers + self._ns("lm_head", self._sizes.lm_head, rows)

    def mixtures(self, rows: Float64) -> Float64:
        """Of `decode_products`, what chooses experts and these take; only for rows with a token."""
        layers = self.layers - self._model.num_dense_layers
        return layers * self._mixture(rows) if layers else np.zeros(len(rows))

    def decode_small(self, rows: Float64) -> Float64:
        """Embedding, exchange and sampling of decode graphs."""
        return self.small(rows) + self._sampling(rows)

    def decode_attention(self, requests: int, contexts: Float64) -> Float64:
        """Attention of so many decode items in all layers, at each of some total contexts."""
        return self.layers * self.tables.decode.ns(self._sizes.heads, requests, contexts)

    def products(self, tokens: Float64) -> Float64:
        """All layers of a step with prompts but for attention, and for the last layer's end."""
        dense, mixtures = self._last_layer
        dense = self._model.num_dense_layers - dense
        mixtures = self.layers - self._model.num_dense_layers - mixtures
        layers = (self.layers - 1) * self._projections(tokens) + self._query(tokens)
        return layers + self._mlps(tokens, dense, mixtures)

    def small(self, tokens: Float64) -> Float64:
        """Embedding and exchange."""
        embedding = self._ns("embed_tokens", (self._model.hidden_size,), tokens)
        return embedding + self._exchange.sums(tokens)

    def logits(self, rows: Float64) -> Float64:
        """The end of the last layer, product for logits and sampling, of some rows."""
        end = self._ns("residual_linear", self._sizes.output, rows)
        end = end + self._mlps(rows, *self._last_layer)
        return end + self._ns("lm_head", self._sizes.lm_head, rows) + self._sampling(rows)

    @property
    def _last_layer(self) -> tuple[int, int]:
        """(1, 0) if its MLP is a dense one, (0, 1) if it is a mixture."""
        moe = self._model.moe
        return (0, 1) if moe is not None and self.layers - 1 in moe.layers else (1, 0)

    def _projections(self, rows: Float64) -> Float64:
        """Of one layer, what is around its attention."""
        if self.tables.has("projections"):
            sizes = (*self._rotary, self._model.hidden_size)
            return self._ns("projections", sizes, rows)
        return self._query(rows) + self._ns("residual_linear", self._sizes.output, rows)

    def _query(self, rows: Float64) -> Float64:
        """Of one layer, what comes before its attention."""
        rotary = self._ns("rotary_kv_write", self._rotary, rows)
        return self._ns("norm_linear", self._sizes.qkv, rows) + rotary

    @property
    def _rotary(self) -> Sizes:
        return (*self._sizes.heads, int(self._model.qk_norm))

    def _mlps(self, rows: Float64, dense: int, mixtures: int) -> Float64:
        """What follows attention, in so many layers of each kind."""
        total = np.zeros(len(rows))
        if dense:
            total = total + dense * self._mlp(rows)
        if mixtures:
            total = total + mixtures * self._mixture(rows)
        return total

    def _mlp(self, rows: Float64) -> Float64:
        hidden, width = self._sizes.down
        if self.tables.has("mlp"):
            return self._ns("mlp", (hidden, width), rows)
        gated = self._ns("norm_gated_linear", self._sizes.gate_up, rows)
        return gated + self._ns("residual_linear", self._sizes.down, rows)

    def _mixture(self, rows: Float64) -> Float64:
        experts, top_k, hidden, _ = self._sizes.experts
        if self.tables.has("moe_layer"):
            return self._chosen("moe_layer", rows)
        routed = self._ns("norm", (hidden,), rows) + self._ns("linear", (experts, hidden), rows)
        routed = routed + self._ns("route", (experts, top_k), rows)
        return routed + self._chosen("moe_mlp", rows)

    def _chosen(self, op: str, rows: Float64) -> Float64:
        """A mixture whose tokens choose as is assumed, which takes no less for more of them."""
        sizes, measured = self._sizes.experts, self.tables.rows(op)
        knots = measured.rows
        factors = self.tables.choice(op).factor(sizes, knots, self._skew)
        return linear(rows, knots, monotone(measured.ns(sizes, knots) * factors))

    def _sampling(self, rows: Float64) -> Float64:
        return self._ns("sample", (self._model.vocab_size,), rows) + self._exchange.logits(rows)

    def _ns(self, op: str, sizes: Sizes, rows: Float64) -> Float64:
        return self.tables.rows(op).ns(sizes, rows)


def _exchange(tables: KernelTables, model: ModelSpec, gpu: HardwareSpec, gpus: int) -> Exchange:
    """What is exchanged, by whoever knows."""
    if gpus == 1:
        return NoExchange()
    if tables.exchange is not None and knows(tables.exchange, gpus):
        return MeasuredExchange(tables.exchange, model, gpus)
    analytic = AnalyticExchange(model, gpu, gpus)
    fewer = None if tables.exchange is None else most_below(tables.exchange, gpus)
    if tables.exchange is None or fewer is None:
        return analytic
    return LongerExchange(analytic, MeasuredExchange(tables.exchange, model, fewer))


def _sizes(model: ModelSpec, tensor_parallel_size: int) -> _Sizes:
    tp, hidden, dim = tensor_parallel_size, model.hidden_size, model.head_dim
    heads = model.num_heads // tp, max(1, model.num_kv_heads // tp), dim
    inner, moe = model.intermediate_size // tp, model.moe
    experts = (0, 0, hidden, 0)
    if moe is not None:
        width = moe.intermediate_size // tp
        experts = moe.num_experts, moe.experts_per_token, hidden, width
    return _Sizes(
        heads=heads,
        qkv=((heads[0] + 2 * heads[1]) * dim, hidden),
        output=(hidden, heads[0] * dim),
        gate_up=(2 * inner, hidden),
        down=(hidden, inner),
        lm_head=(-(-model.vocab_size // tp), hidden),
        experts=experts,
    )
