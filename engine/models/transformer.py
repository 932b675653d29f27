"""The one decoder: Llama, Mistral, Qwen2, Qwen3, Mixtral and Qwen3-MoE differ in their spec only.

Pre-norm layers of grouped-query attention and a gated MLP or a mixture of them. A block's output is
*pending* until the next layer adds it to the residual stream, unless the block has added it already
(`engine.kernels.linear`), so that adding, norming and multiplying can share kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from engine.core.model_spec import ModelSpec
from engine.kernels.registry import KernelSet
from engine.kernels.rotary import QKNorm
from engine.models.kv_cache import KvCache
from engine.models.rope import rope_table
from engine.models.step_inputs import StepInputs
from engine.models.weights import DenseMlp, LayerWeights, MoeMlp, Weights
from engine.nvtx_ranges import annotate


class Hidden(NamedTuple):
    """The tokens between two layers.

    Attributes:
        residual: [T, H], the residual stream.
        pending: [T, H] or parts of it, to be added to it first; None: nothing is.
    """

    residual: torch.Tensor
    pending: torch.Tensor | None


class Transformer:
    """A model ready to run.

    Args:
        spec: its shape.
        weights: on one device.
        kernels: implementations for that device.
        max_positions: longest text, in tokens.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, kernels: KernelSet, max_positions: int
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.kernels = kernels
        self._scale = spec.head_dim**-0.5
        self._eps = spec.rms_norm_eps
        self._cos_sin = rope_table(spec.rope, spec.head_dim, max_positions, weights.embed.device)
        self._qk_norms = [_qk_norm(layer, spec.rms_norm_eps) for layer in weights.layers]

    def shallow(self) -> Transformer:
        """A model of one layer of each kind, over the same weights: it needs the same kernels.

        The last layer is there once more, because it does not compute all tokens (`finish`).
        """
        kinds = {type(layer.mlp): index for index, layer in enumerate(self.weights.layers)}
        chosen = [*sorted(kinds.values()), len(self.weights.layers) - 1]
        layers = tuple(self.weights.layers[index] for index in chosen)
        moe = self.spec.moe
        if moe is not None:
            mixtures = tuple(i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeMlp))
            moe = replace(moe, layers=mixtures)
        spec = replace(self.spec, num_layers=len(layers), moe=moe)
        weights = replace(self.weights, layers=layers)
        return Transformer(spec, weights, self.kernels, len(self._cos_sin))

    def forward(self, step: StepInputs, cache: KvCache) -> torch.Tensor:
        """Compute a step: writes the KV of its tokens and returns logits [S, V].

        Logits are in the weights' dtype. With no logit rows the result is empty, and nothing is
        computed but what the cache needs.
        """
        return self.finish(*self.begin(step, cache), step, cache)

    def begin(
        self,
        step: StepInputs,
        cache: KvCache,
        query: torch.Tensor | None = None,
        attended: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a step up to the attention of the last layer; writes the KV of all its tokens.

        Args:
            step: the step.
            cache: of the KV.
            query: [T, Hq, D], where the result goes; None: to a new one.
            attended: [T, Hq, D], what attention writes to. Rows of tokens that belong to no request
                keep what is there.

        Returns:
            The queries of the last layer, and the residual stream [T, H] before its attention.
        """
        hidden, last = self._embed(step), self.spec.num_layers - 1
        for index in range(last):
            with annotate("attention"):
                queries = self._project(index, hidden, step, cache)
                mixed = self._attend(index, queries, step, cache, attended)
                hidden = self._merge(index, mixed, hidden)
            with annotate("mlp"):
                hidden = self._feed_forward(index, hidden)
        with annotate("attention"):
            query = self._project(last, hidden, step, cache, query)
        return query, hidden.residual

    def _embed(self, step: StepInputs) -> Hidden:
        """The residual stream of the tokens before the first layer."""
        table = self.weights.embed
        return Hidden(self.kernels.embed_tokens(step.token_ids, step.last_tokens, table), None)

    def _project(
        self,
        index: int,
        hidden: Hidden,
        step: StepInputs,
        cache: KvCache,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Queries of a layer (into `out`, if given); its keys and values go to the cache.

        Returns:
            [T, Hq, D].
        """
        layer, (k_cache, v_cache) = self.weights.layers[index], cache.layers[index]
        qkv = self.kernels.norm_linear(
            hidden.pending, hidden.residual, layer.input_norm, self._eps, layer.qkv
        )
        return self.kernels.rotary_kv_write(
            qkv,
            layer.qkv_bias,
            self._qk_norms[index],
            self._cos_sin,
            step.positions,
            step.rows,
            step.page_table,
            k_cache,
            v_cache,
            out=out,
        )

    def _attend(
        self,
        index: int,
        query: torch.Tensor,
        step: StepInputs,
        cache: KvCache,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of a layer, [T, Hq, D] (into `out`, if given)."""
        k_cache, v_cache = cache.layers[index]
        if out is None:
            out = torch.empty_like(query)
        prefill = step.prefill
        rows, positions = step.rows, step.positions
        if prefill is not None:
            rows, positions = prefill.decode_rows, prefill.decode_positions
            self.kernels.prefill_attention(
                query,
                k_cache,
                v_cache,
                step.page_table,
                prefill.starts,
                prefill.rows,
                prefill.contexts,
                self._scale,
                out=out,
            )
        if decodes := len(rows):
            self.kernels.decode_attention(
                query[:decodes],
                k_cache,
                v_cache,
                step.page_table,
                rows,
                positions,
                self._scale,
                step.page_table.shape[1] * cache.page_size,
                step.counters,
                out=out[:decodes],
            )
        return out

    def _merge(self, index: int, attended: torch.Tensor, hidden: Hidden) -> Hidden:
        """Project what attention brought back to the residual stream."""
        layer, residual = self.weights.layers[index], hidden.residual
        flat = attended.view(len(attended), -1)
        pending = self.kernels.residual_linear(flat, layer.o, layer.o_bias, residual)
        return Hidden(residual, pending)

    def _feed_forward(self, index: int, hidden: Hidden) -> Hidden:
        """The MLP of a layer, or its mixture of experts."""
        layer, ops = self.weights.layers[index], self.kernels
        residual, pending = hidden
        if isinstance(layer.mlp, DenseMlp):
            gated = ops.norm_gated_linear(
                pending, residual, layer.post_norm, self._eps, layer.mlp.gate_up
            )
            return Hidden(residual, ops.residual_linear(gated, layer.mlp.down, None, residual))
        if (moe := self.spec.moe) is None:
            raise ValueError("mixture weights in a model without experts")
        x = ops.norm(pending, residual, layer.post_norm, self._eps)
        logits = ops.linear(x, layer.mlp.router, whole=True)
        weights, experts = ops.route(logits, moe.experts_per_token, moe.renormalize)
        mixed = ops.moe_mlp(x, layer.mlp.gate_up, layer.mlp.down, weights, experts)
        return Hidden(residual, mixed)

    def finish(
        self, query: torch.Tensor, residual: torch.Tensor, step: StepInputs, cache: KvCache
    ) -> torch.Tensor:
        """Logits of the tokens in `step.logit_rows`, or of all, from the last attention on.

        Nobody looks at what the last layer makes of any other token, so that is not computed.

        Args:
            query: [T, Hq, D], of the last layer.
            residual: [T, H], the stream before the last layer's attention is added to it.
            step: the step.
            cache: with the keys and values of its tokens.
        """
        last, rows = self.spec.num_layers - 1, step.logit_rows
        if rows is not None and len(rows) == 0:
            return residual.new_empty(0, self.spec.vocab_size)
        with annotate("attention"):
            attended = self._attend(last, query, step, cache)
            if rows is not None:
                attended, residual = (part.index_select(0, rows) for part in (attended, residual))
            hidden = self._merge(last, attended, Hidden(residual, None))
        with annotate("mlp"):
            residual, pending = self._feed_forward(last, hidden)
        head = self.weights.lm_head
        return self.kernels.norm_linear(
            pending, residual, self.weights.final_norm, self._eps, head, whole=True
        )


def _qk_norm(layer: LayerWeights, eps: float) -> QKNorm | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    return QKNorm(layer.q_norm, layer.k_norm, eps)
