"""What a model costs: shapes, parameters, weight bytes, FLOPs and KV bytes per token.

This is the only place where a Hugging Face config.json becomes such numbers. FLOPs count a
multiply-add as two. Everything "per GPU" assumes tensor parallelism as in Megatron-LM
(arXiv:1909.08053): column-split then row-split, the vocabulary split by rows, norms and routers
on every GPU, every expert split over all GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from engine.core.dtypes import QUANTIZED_DTYPES, SCALE_BYTES, did_you_mean, dtype_bytes
from engine.core.hf_config import (
    HfConfig,
    ModelConfigError,
    RopeSpec,
    read_json_object,
    text_model,
)
from engine.core.weight_table import Matrix, WeightGroup, weight_table

_FAMILIES: Final[dict[str, str]] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MixtralForCausalLM": "mixtral",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}
_MODEL_TYPES: Final[dict[str, str]] = {family: family for family in _FAMILIES.values()}


# What transformers takes a missing key for where the family differs from the others.
_DEFAULT_THETA: Final[dict[str, float]] = {"mixtral": 1e6}
_DEFAULT_EPS: Final[dict[str, float]] = {"mixtral": 1e-5}


class TensorParallelError(ValueError):
    """A model that cannot be divided over that many GPUs."""


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """The mixture-of-experts layers.

    Attributes:
        num_experts: routed experts of a layer.
        experts_per_token: routed experts that each token visits.
        intermediate_size: width of one expert.
        num_shared_experts: experts that every token visits besides.
        layers: indices of the layers that are MoE; the others are dense.
        router_bias: the router has a correction bias per expert (DeepSeek-V3).
        renormalize: the weights of the chosen experts are scaled to sum to one.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    num_shared_experts: int
    layers: tuple[int, ...]
    router_bias: bool
    renormalize: bool = True


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention: the KV cache holds one latent per token, shared by all heads."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only language model.

    Attributes:
        name: card name, folder or file it came from.
        family: "llama", "qwen3_moe", ...
        intermediate_size: width of the dense MLP.
        num_kv_heads: key/value heads; 1 with latent attention (the latent).
        head_dim: of a query head; with latent attention its unrotated plus its rotated part.
        max_model_len: longest context in tokens.
        tied: embedding and lm_head are one matrix.
        dtype: of activations and of weights that are not quantized.
        weight_dtype: of the linear layers as the checkpoint holds them.
        qkv_bias: query, key and value projections have a bias.
        output_bias: the output projection of attention has a bias.
        qk_norm: queries and keys are normalised per head.
        rms_norm_eps: what is added to the mean square in every RMS norm.
        notes: what of the config is not counted.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    tied: bool
    dtype: str
    weight_dtype: str
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    rms_norm_eps: float = 1e-6
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    rope: RopeSpec
    notes: tuple[str, ...] = ()

    @classmethod
    def from_hf_config(cls, values: Mapping[str, object], name: str = "config.json") -> ModelSpec:
        """The spec of a parsed config.json; `name` stands in errors and as the model's name.

        Raises:
            ModelConfigError: unsupported architecture, a missing or impossible key.
        """
        config, notes = text_model(HfConfig(values, name))
        family = config.architecture(_FAMILIES, _MODEL_TYPES)
        config.reject_sliding_window()
        if config.flag("mlp_bias", default=False):
            raise config.error("`mlp_bias` = true is not supported")
        _reject_other_activation(config)
        rope = config.rope(_DEFAULT_THETA.get(family, 10_000.0))
        attention_bias = config.flag("attention_bias", default=False)
        mla = _mla(config) if family == "deepseek_v3" else None
        if mla is not None and attention_bias:
            raise config.error("`attention_bias` = true is not supported with latent attention")
        num_heads, num_kv_heads, head_dim = _heads(config, family, mla)
        moe = _moe(config, family)
        return cls(
            name=name,
            family=family,
            num_layers=config.integer("num_hidden_layers"),
            hidden_size=config.integer("hidden_size"),
            intermediate_size=config.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=config.integer("vocab_size"),
            max_model_len=config.max_model_len(rope),
            tied=config.flag("tie_word_embeddings", default=False),
            dtype=config.dtype(),
            weight_dtype=config.weight_dtype(),
            qkv_bias=family == "qwen2" or attention_bias,
            output_bias=attention_bias and family != "qwen2",
            qk_norm=family in ("qwen3", "qwen3_moe"),
            rms_norm_eps=config.number("rms_norm_eps", _DEFAULT_EPS.get(family, 1e-6)),
            moe=moe,
            mla=mla,
            rope=rope,
            notes=notes,
        )

    @property
    def num_dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return self.num_layers - (len(self.moe.layers) if self.moe else 0)

    @property
    def weights(self) -> tuple[Matrix, ...]:
        """Every weight, one row per class of equal matrices."""
        return weight_table(self)

    def parameter_counts(self) -> dict[WeightGroup, int]:
        """Parameters of each group. A tied embedding is counted once, as lm_head."""
        counts: dict[WeightGroup, int] = {}
        for matrix in self.weights:
            counts[matrix.group] = counts.get(matrix.group, 0) + matrix.parameters
        return counts

    @property
    def num_parameters(self) -> int:
        """All parameters of the main model; extra prediction layers (MTP) are not counted."""
        return sum(self.parameter_counts().values())

    def weight_bytes_by_group(
        self, weight_dtype: str | None = None, tensor_parallel_size: int = 1
    ) -> dict[WeightGroup, int]:
        """Bytes on one GPU of each group.

        A quantized `weight_dtype` (fp8, int8) applies to the projections of attention, MLP and
        experts, with an fp32 scale per output row; the rest stays in the model's dtype. Any other
        `weight_dtype` applies to all. None is the checkpoint's own.
        """
        self.check_tensor_parallel(tensor_parallel_size)
        weight = weight_dtype or self.weight_dtype
        sizes: dict[WeightGroup, int] = {}
        for matrix in self.weights:
            size = matrix.local_bytes(self.dtype, weight, tensor_parallel_size)
            sizes[matrix.group] = sizes.get(matrix.group, 0) + size
        return sizes

    def weight_bytes(self, weight_dtype: str | None = None, tensor_parallel_size: int = 1) -> int:
        """Bytes of all weights on one GPU; see `weight_bytes_by_group`."""
        return sum(self.weight_bytes_by_group(weight_dtype, tensor_parallel_size).values())

    def flops_per_token_by_group(self, tensor_parallel_size: int = 1) -> dict[WeightGroup, int]:
        """FLOPs on one GPU that the matrices of each group cost per token (lm_head: per logit row).

        Attention scores are not in it; see `attention_flops_per_pair`.
        """
        self.check_tensor_parallel(tensor_parallel_size)
        flops: dict[WeightGroup, int] = {}
        for matrix in self.weights:
            cost = matrix.local_flops_per_token(tensor_parallel_size)
            flops[matrix.group] = flops.get(matrix.group, 0) + cost
        return flops

    def prefill_attention_flops_per_pair(self, tensor_parallel_size: int = 1) -> int:
        """FLOPs on one GPU, all layers, of one (query, key) pair in prefill: scores and values."""
        heads = self.num_heads // tensor_parallel_size
        value_dim = self.head_dim if self.mla is None else self.mla.v_head_dim
        return 2 * self.num_layers * heads * (self.head_dim + value_dim)

    def decode_attention_flops_per_pair(self, tensor_parallel_size: int = 1) -> int:
        """The same in decode; latent attention works on the latent itself (absorbed weights)."""
        if self.mla is None:
            return self.prefill_attention_flops_per_pair(tensor_parallel_size)
        heads = self.num_heads // tensor_parallel_size
        width = 2 * self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2 * self.num_layers * heads * width

    def context_expansion_flops_per_token(self, tensor_parallel_size: int = 1) -> int:
        """FLOPs on one GPU to turn one cached latent back into keys and values in prefill."""
        return sum(
            matrix.local_flops_per_token(tensor_parallel_size)
            for matrix in self.weights
            if matrix.name == "kv_b_proj"
        )

    def kv_bytes_per_token(self, kv_dtype: str | None = None, tensor_parallel_size: int = 1) -> int:
        """Bytes that one token occupies in the KV cache of one GPU, all layers.

        int8 has an fp32 scale per token and head for keys and for values (one per token and layer
        for a latent); fp8 scales are static per head and occupy nothing per token. With more GPUs
        than KV heads, heads are replicated; a latent is on every GPU.
        """
        self.check_tensor_parallel(tensor_parallel_size)
        dtype = kv_dtype or self.dtype
        scale = SCALE_BYTES if dtype in QUANTIZED_DTYPES and dtype != "fp8" else 0
        if self.mla is not None:
            width = self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
            return self.num_layers * (width * dtype_bytes(dtype) + scale)
        heads = max(1, self.num_kv_heads // tensor_parallel_size)
        return 2 * self.num_layers * heads * (self.head_dim * dtype_bytes(dtype) + scale)

    def check_tensor_parallel(self, tensor_parallel_size: int) -> None:
        """Raise TensorParallelError unless the model divides over that many GPUs."""
        tp = tensor_parallel_size
        if tp < 1:
            raise TensorParallelError(f"tensor_parallel_size = {tp} must be at least 1")
        parts = {"num_attention_heads": self.num_heads}
        if self.num_dense_layers:
            parts["intermediate_size"] = self.intermediate_size
        if self.moe is not None:
            parts["width of an expert"] = self.moe.intermediate_size
        for key, size in parts.items():
            if size % tp:
                raise TensorParallelError(
                    f"{self.name}: {key} = {size} does not divide by tensor_parallel_size = {tp}"
                )
        kv_heads = self.num_kv_heads
        if self.mla is None and kv_heads % tp and tp % kv_heads:
            raise TensorParallelError(
                f"{self.name}: num_key_value_heads = {kv_heads} neither divides by"
                f" tensor_parallel_size = {tp} nor divides it"
            )


def _reject_other_activation(config: HfConfig) -> None:
    activation = config.values.get("hidden_act")
    if activation not in (None, "silu", "swish"):  # two names of one function
        raise config.error(f"`hidden_act` = {activation!r} is not supported; allowed: 'silu'")


def _heads(config: HfConfig, family: str, mla: MlaSpec | None) -> tuple[int, int, int]:
    """(query heads, KV heads, width of a query head)."""
    heads = config.integer("num_attention_heads")
    if mla is not None:
        return heads, 1, mla.qk_nope_head_dim + mla.qk_rope_head_dim
    kv_heads = config.integer("num_key_value_heads", default=heads if family == "llama" else None)
    if heads % kv_heads:
        raise config.error(
            f"`num_attention_heads` = {heads} does not divide by `num_key_value_heads` = {kv_heads}"
        )
    hidden = config.integer("hidden_size")
    # Qwen3's head_dim is not hidden_size / heads, so it must be written down.
    implied = None if family in ("qwen3", "qwen3_moe") or hidden % heads else hidden // heads
    return heads, kv_heads, config.integer("head_dim", default=implied)


def _mla(config: HfConfig) -> MlaSpec:
    return MlaSpec(
        q_lora_rank=config.integer("q_lora_rank", default=0, minimum=0) or None,
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=config.integer("qk_nope_head_dim"),
        qk_rope_head_dim=config.integer("qk_rope_head_dim"),
        v_head_dim=config.integer("v_head_dim"),
    )


def _moe(config: HfConfig, family: str) -> MoeSpec | None:
    layers = range(config.integer("num_hidden_layers"))
    if family == "mixtral":
        moe_layers = tuple(layers)
        width = config.integer("intermediate_size")
    elif family == "qwen3_moe":
        dense = config.integers("mlp_only_layers")
        period = config.integer("decoder_sparse_step", default=1)
        moe_layers = tuple(i for i in layers if i not in dense and (i + 1) % period == 0)
        width = config.integer("moe_intermediate_size")
    elif family == "deepseek_v3":
        first = config.integer("first_k_dense_replace", minimum=0)
        period = config.integer("moe_layer_freq", default=1)
        moe_layers = tuple(i for i in layers if i >= first and i % period == 0)
        width = config.integer("moe_intermediate_size")
    else:
        return None
    experts = config.integer("num_experts", "num_local_experts", "n_routed_experts")
    chosen = config.integer("num_experts_per_tok")
    if chosen > experts:
        raise config.error(f"`num_experts_per_tok` = {chosen} exceeds the {experts} experts")
    shared = config.integer("n_shared_experts", default=0, minimum=0)
    deepseek = family == "deepseek_v3"
    # Mixtral has no such key: it always renormalises.
    renormalize = family == "mixtral" or config.flag("norm_topk_prob", default=deepseek)
    return MoeSpec(experts, chosen, width, shared, moe_layers, deepseek, renormalize)


def model_card_names() -> tuple[str, ...]:
    """Names of the models that are known without a file, sorted."""
    folder = files("engine.core") / "model_cards"
    return tuple(
        sorted(
            entry.name.removesuffix(".json")
            for entry in folder.iterdir()
            if entry.name.endswith(".json")
        )
    )


def load_model_spec(name_or_path: str) -> ModelSpec:
    """A shipped card (any case), a folder with a config.json, or a JSON file.

    Raises:
        ModelConfigError: no such card or file, or a config that is not supported.
    """
    cards = {name.casefold(): name for name in model_card_names()}
    card = cards.get(name_or_path.casefold())
    if card is not None:
        path = Path(str(files("engine.core") / "model_cards" / f"{card}.json"))
        return ModelSpec.from_hf_config(read_json_object(path), card)
    path = Path(name_or_path)
    if path.is_dir():
        path /= "config.json"
    if not path.exists():
        raise ModelConfigError(_unknown_model(name_or_path, path))
    return ModelSpec.from_hf_config(read_json_object(path), str(path))


def _unknown_model(asked: str, path: Path) -> str:
    if path.name == "config.json" and str(path) != asked:
        return f"{path}: no such file (the folder holds no config.json)"
    names = model_card_names()
    return (
        f"no model card and no file named {asked!r}{did_you_mean(asked, names)}\n"
        f"cards: {', '.join(names)}"
    )
