"""The one decoder: Llama, Mistral, Qwen2, Qwen3, Mixtral and Qwen3-MoE differ in their spec only.

Pre-norm layers of grouped-query attention and a gated MLP or a mixture of them. A block's output is
*pending* until the next layer adds it to the residual stream, unless the block has added it already
(`engine.kernels.linear`), so that adding, norming and multiplying can share kernels.
"""

from __future__ import annotations

import torch

from engine.core.model_spec import ModelSpec
from engine.kernels.registry import KernelSet
from engine.kernels.rotary import QKNorm
from engine.models.kv_cache import KvCache
from engine.models.rope import rope_table
from engine.models.step_inputs import StepInputs
from engine.models.weights import DenseMlp, LayerWeights, Weights
from engine.nvtx_ranges import annotate


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

    def forward(self, step: StepInputs, cache: KvCache) -> torch.Tensor:
        """Compute a step: writes the KV of its tokens and returns logits [S, V].

        Logits are in the weights' dtype. With no logit rows the result is empty and the head is
        skipped.
        """
        ops = self.kernels
        residual = ops.embed_tokens(step.token_ids, step.last_tokens, self.weights.embed)
        pending: torch.Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            with annotate("attention"):
                pending = self._attention(index, layer, pending, residual, step, cache)
            with annotate("mlp"):
                pending = self._mlp(layer, pending, residual)
        return self._logits(pending, residual, step.logit_rows)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        pending: torch.Tensor | None,
        residual: torch.Tensor,
        step: StepInputs,
        cache: KvCache,
    ) -> torch.Tensor | None:
        """Attention of all tokens, [T, H]; takes and returns what is pending for the residual."""
        ops, (k_cache, v_cache) = self.kernels, cache.layers[index]
        prefill = step.prefill
        qkv = ops.norm_linear(pending, residual, layer.input_norm, self._eps, layer.qkv)
        query = ops.rotary_kv_write(
            qkv,
            layer.qkv_bias,
            self._qk_norms[index],
            self._cos_sin,
            step.positions,
            step.rows,
            step.page_table,
            k_cache,
            v_cache,
            keep_kv=prefill is not None and prefill.no_context,
        )
        heads = self.spec.num_heads
        first = prefill.tokens if prefill is not None else 0
        outs = []
        if prefill is not None:
            kv_heads = self.spec.num_kv_heads
            key = value = None
            if prefill.no_context:
                key = query[:first, heads : heads + kv_heads]
                value = query[:first, heads + kv_heads :]
            outs.append(
                ops.prefill_attention(
                    query[:first, :heads],
                    k_cache,
                    v_cache,
                    step.page_table,
                    prefill.starts,
                    prefill.rows,
                    prefill.contexts,
                    self._scale,
                    max(prefill.lengths),
                    k=key,
                    v=value,
                    lengths=prefill.lengths,
                    no_context=prefill.no_context,
                )
            )
        if first < len(residual):
            outs.append(
                ops.decode_attention(
                    query[first:, :heads],
                    k_cache,
                    v_cache,
                    step.page_table,
                    step.rows[first:],
                    step.positions[first:],
                    self._scale,
                    step.page_table.shape[1] * cache.page_size,
                    step.counters,
                )
            )
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return ops.residual_linear(out.view(len(residual), -1), layer.o, layer.o_bias, residual)

    def _mlp(
        self, layer: LayerWeights, pending: torch.Tensor | None, residual: torch.Tensor
    ) -> torch.Tensor | None:
        """The MLP of all tokens; takes and returns what is pending for the residual."""
        ops, mlp = self.kernels, layer.mlp
        if isinstance(mlp, DenseMlp):
            gated = ops.norm_gated_linear(
                pending, residual, layer.post_norm, self._eps, mlp.gate_up
            )
            return ops.residual_linear(gated, mlp.down, None, residual)
        if (moe := self.spec.moe) is None:
            raise ValueError("mixture weights in a model without experts")
        x = ops.norm(pending, residual, layer.post_norm, self._eps)
        logits = ops.linear(x, mlp.router, whole=True)
        weights, experts = ops.route(logits, moe.experts_per_token, moe.renormalize)
        return ops.moe_mlp(x, mlp.gate_up, mlp.down, weights, experts)

    def _logits(
        self, pending: torch.Tensor | None, residual: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the tokens in `rows`, or of all."""
        if rows is not None:
            if len(rows) == 0:
                return residual.new_empty(0, self.spec.vocab_size)
            residual = residual.index_select(0, rows)
            if pending is not None:
                pending = pending.index_select(pending.ndim - 2, rows)
        head = self.weights.lm_head
        return self.kernels.norm_linear(
            pending, residual, self.weights.final_norm, self._eps, head, whole=True
        )


def _qk_norm(layer: LayerWeights, eps: float) -> QKNorm | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    return QKNorm(layer.q_norm, layer.k_norm, eps)
