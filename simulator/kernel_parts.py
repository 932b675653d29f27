"""What the steps of a model are made of: the sums of kernels that its layers launch.

R rows of a layer are a norm with the product for queries, keys and values, rotation with the write
to the cache, attention, the product that brings it back, and the MLP: a norm, two products and the
activation between them, or a norm, the router, the choice and the experts. A step adds embedding,
the product for logits and sampling. With several GPUs each has its shard, and sums are exchanged.

In a step with prompts the last layer goes on only with the rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.kernel_curves import DecodeAttention, RowCurves, Sizes, of_op, similar_heads
from simulator.kernel_file import AttentionFit, KernelFile
from simulator.profile import ProfileError
from simulator.roofline_coefficients import RooflineCoefficients, roofline_coefficients

Float64 = NDArray[np.float64]

_ROW_OPS: Final = (
    "norm_linear", "residual_linear", "norm_gated_linear", "lm_head", "linear", "norm",
    "embed_tokens", "sample", "rotary_kv_write", "route", "moe_mlp",
)  # fmt: skip


class KernelTables:
    """A file's series as functions.

    Args:
        kernels: the file.
    """

    def __init__(self, kernels: KernelFile) -> None:
        self.attention_fits: dict[Sizes, AttentionFit] = {
            (fit.heads, fit.kv_heads, fit.head_dim): fit for fit in kernels.composition.attention
        }
        self._series = kernels.series
        self._curves: dict[str, RowCurves] = {}

    def rows(self, op: str) -> RowCurves:
        """An op that depends on rows. Raises ProfileError if it was not measured."""
        if op not in self._curves:
            self._curves[op] = RowCurves(of_op(self._series, op))
        return self._curves[op]

    @cached_property
    def decode(self) -> DecodeAttention:
        """Attention of decode items. Raises ProfileError if it was not measured."""
        return DecodeAttention(of_op(self._series, "decode_attention"))

    def prefill(self, heads: Sizes) -> AttentionFit:
        """Attention of prompts; of heads that were not measured in proportion to similar ones.

        Raises:
            ProfileError: it was not measured at all.
        """
        if not self.attention_fits:
            raise ProfileError("the kernel tables have no prefill_attention")
        nearest = similar_heads(heads, self.attention_fits)
        fit = self.attention_fits[nearest]
        if nearest == heads:
            return fit
        scale = heads[0] * heads[2] / (nearest[0] * nearest[2])
        return AttentionFit(
            heads=heads[0], kv_heads=heads[1], head_dim=heads[2], call_ns=fit.call_ns,
            chunk_ns=fit.chunk_ns * scale, token_ns=fit.token_ns * scale,
            pair_ns=fit.pair_ns * scale, context_ns=fit.context_ns * scale,
            max_context_ns=fit.max_context_ns,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a model's ops on one GPU."""

    heads: Sizes
    qkv: Sizes
    output: Sizes
    gate_up: Sizes
    down: Sizes
    lm_head: Sizes
    experts: Sizes | None


class KernelParts:
    """Sums of kernels of one model, in ns, uncorrected.

    Args:
        tables: of the GPU.
        model: without latent attention.
        gpu: for what GPUs send to each other, which no table tells.
        tensor_parallel_size: GPUs.

    Attributes:
        layers: of the model.
        prefill: attention of prompts in one layer.
        rows: ascending numbers of tokens at which products were measured.
        most_requests, most_context: of decode items, up to which their attention was measured.

    Raises:
        ProfileError: the tables lack an op of this model, or the model has ops of another kind.
        TensorParallelError: the model does not divide over that many GPUs.
    """

    def __init__(
        self, tables: KernelTables, model: ModelSpec, gpu: HardwareSpec, tensor_parallel_size: int
    ) -> None:
        model.check_tensor_parallel(tensor_parallel_size)
        if model.mla is not None:
            raise ProfileError(f"{model.name} has latent attention, which kernel tables have not")
        self._tables, self._model, self._tp = tables, model, tensor_parallel_size
        self._sizes = _sizes(model, tensor_parallel_size)
        self.layers = model.num_layers
        self.prefill = tables.prefill(self._sizes.heads)
        self.rows = tables.rows("norm_linear").rows
        self.most_requests, self.most_context = tables.decode.most(self._sizes.heads)
        self._exchange: RooflineCoefficients | None = None
        if tensor_parallel_size > 1:
            self._exchange = roofline_coefficients(
                model, gpu, tensor_parallel_size, model.dtype, model.dtype
            )

    @property
    def covered(self) -> bool:
        """Whether all of it was measured, or lies among sizes that were; no exchange was."""
        sizes, moe = self._sizes, self._model.moe
        products = [("norm_linear", sizes.qkv), ("residual_linear", sizes.output)]
        if self._model.num_dense_layers:
            products += [("norm_gated_linear", sizes.gate_up), ("residual_linear", sizes.down)]
        if moe is not None and sizes.experts is not None:
            products.append(("moe_mlp", sizes.experts))
        products.append(("lm_head", sizes.lm_head))
        measured = self._tp == 1 and self._tables.decode.covers(sizes.heads)
        return measured and all(self._tables.rows(op).covers(of) for op, of in products)

    def decode_products(self, rows: Float64) -> Float64:
        """Products, norms and experts of all layers, and the logits, of decode graphs."""
        return (
            self._projections(rows, self.layers)
            + self._rest(rows, self.layers, 0)
            + (self._ns("lm_head", self._sizes.lm_head, rows))
        )

    def decode_small(self, rows: Float64) -> Float64:
        """Embedding, rotation, exchange and sampling of decode graphs."""
        return self._between(rows) + self._sampling(rows)

    def decode_attention(self, requests: int, contexts: Float64) -> Float64:
        """Attention of so many decode items in all layers, at each of some total contexts."""
        return self.layers * self._tables.decode.ns(self._sizes.heads, requests, contexts)

    def products(self, tokens: Float64) -> Float64:
        """Products, norms and experts of a step with prompts, but for the last layer's end."""
        last_is_moe = self._model.moe is not None and (self.layers - 1 in self._model.moe.layers)
        dense = self._model.num_dense_layers - (0 if last_is_moe else 1)
        ends = self.layers - 1 - dense
        return self._projections(tokens, self.layers) + self._rest_of(tokens, dense, ends)

    def small(self, tokens: Float64) -> Float64:
        """Embedding, rotation and exchange of a step with prompts."""
        return self._between(tokens)

    def logits(self, rows: Float64) -> Float64:
        """The end of the last layer, product for logits and sampling, of some rows."""
        last_is_moe = self._model.moe is not None and (self.layers - 1 in self._model.moe.layers)
        end = self._rest_of(rows, 0, 1) if last_is_moe else self._rest_of(rows, 1, 0)
        return end + self._ns("lm_head", self._sizes.lm_head, rows) + self._sampling(rows)

    def _projections(self, rows: Float64, layers: int) -> Float64:
        return layers * self._ns("norm_linear", self._sizes.qkv, rows)

    def _rest(self, rows: Float64, layers: int, left_out: int) -> Float64:
        dense = self._model.num_dense_layers
        return self._rest_of(rows, dense, layers - dense - left_out)

    def _rest_of(self, rows: Float64, dense: int, mixtures: int) -> Float64:
        """What follows attention, in so many layers of each kind."""
        sizes, model = self._sizes, self._model
        total = (dense + mixtures) * self._ns("residual_linear", sizes.output, rows)
        if dense:
            total = total + dense * self._ns("norm_gated_linear", sizes.gate_up, rows)
            total = total + dense * self._ns("residual_linear", sizes.down, rows)
        if mixtures and model.moe is not None and sizes.experts is not None:
            moe = model.moe
            total = total + mixtures * (
                self._ns("norm", (model.hidden_size,), rows)
                + self._ns("linear", (moe.num_experts, model.hidden_size), rows)
                + self._ns("route", (moe.num_experts, moe.experts_per_token), rows)
                + self._ns("moe_mlp", sizes.experts, rows)
            )
        return total

    def _between(self, rows: Float64) -> Float64:
        model = self._model
        rotary = (*self._sizes.heads, int(model.qk_norm))
        total = self._ns("embed_tokens", (model.hidden_size,), rows)
        total = total + self.layers * self._ns("rotary_kv_write", rotary, rows)
        if self._exchange is not None:
            total = total + self._exchange.all_reduce_ns + self._exchange.all_reduce_row_ns * rows
        return total

    def _sampling(self, rows: Float64) -> Float64:
        total = self._ns("sample", (self._model.vocab_size,), rows)
        if self._exchange is not None:
            total = total + self._exchange.gather_ns + self._exchange.gather_row_ns * rows
        return total

    def _ns(self, op: str, sizes: Sizes, rows: Float64) -> Float64:
        return self._tables.rows(op).ns(sizes, rows)


def _sizes(model: ModelSpec, tensor_parallel_size: int) -> _Sizes:
    tp, hidden, dim = tensor_parallel_size, model.hidden_size, model.head_dim
    heads = model.num_heads // tp, max(1, model.num_kv_heads // tp), dim
    inner, moe = model.intermediate_size // tp, model.moe
    experts = None
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
