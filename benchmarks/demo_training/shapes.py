"""The shapes of the demo models, as dataclasses and as Hugging Face configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from demo_training.bpe_constants import END_OF_TEXT_ID, VOCAB_SIZE

CONTEXT_TOKENS: Final = 2048
HEAD_DIM: Final = 64
ROPE_THETA: Final = 10_000.0
NORM_EPS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder in the style of Qwen3; a mixture of experts if `experts` is not 0.

    Attributes:
        hidden: width of the residual stream.
        layers: number of them.
        heads: query heads, and as many key/value heads, of `HEAD_DIM` each.
        width: of the gated MLP, or of one expert.
        experts: of each layer; 0: the MLP is dense.
        experts_per_token: that each token visits.
    """

    hidden: int
    layers: int
    heads: int
    width: int
    experts: int = 0
    experts_per_token: int = 0

    def hf_config(self) -> dict[str, Any]:
        """config.json in the style of transformers 4."""
        kind = "Qwen3Moe" if self.experts else "Qwen3"
        config: dict[str, Any] = {
            "architectures": [f"{kind}ForCausalLM"],
            "model_type": "qwen3_moe" if self.experts else "qwen3",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT_TOKENS,
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": "bfloat16",
        }
        if self.experts:
            config |= {
                "num_experts": self.experts,
                "num_experts_per_tok": self.experts_per_token,
                "moe_intermediate_size": self.width,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        return config


DENSE: Final = Shape(hidden=256, layers=8, heads=4, width=768)
DRAFT: Final = Shape(hidden=128, layers=2, heads=2, width=384)
MOE: Final = Shape(hidden=256, layers=4, heads=4, width=256, experts=16, experts_per_token=2)
