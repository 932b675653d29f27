"""Every weight of a model as one row of a table: the source of all byte and FLOP counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from engine.core.dtypes import QUANTIZED_DTYPES, SCALE_BYTES, dtype_bytes

if TYPE_CHECKING:
    from engine.core.model_spec import MlaSpec, ModelSpec, MoeSpec

WeightGroup = Literal[
    "embedding", "lm_head", "attention", "mlp", "norm", "router", "experts", "shared_experts"
]
Split = Literal["none", "out", "in"]


class Matrix(NamedTuple):
    """One class of equal weights.

    Attributes:
        name: as in a checkpoint.
        group: what it belongs to.
        out_features: rows.
        in_features: columns; 1 for a vector (norm, bias).
        copies: how many of them the model holds.
        active_copies: how many of them multiply one token (0: a lookup or an elementwise weight).
        split: which dimension tensor parallelism divides.
        max_ways: with more GPUs than this, several hold the same part (KV heads).
        quantizable: whether a quantized weight dtype applies to it.
    """

    name: str
    group: WeightGroup
    out_features: int
    in_features: int
    copies: int
    active_copies: int
    split: Split = "none"
    max_ways: int = 1 << 30
    quantizable: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of all copies on all GPUs, none counted twice."""
        return self.out_features * self.in_features * self.copies

    def local_shape(self, tensor_parallel_size: int) -> tuple[int, int]:
        """(rows, columns) of the part on one GPU; an uneven vocabulary is padded up."""
        ways = min(tensor_parallel_size, self.max_ways)
        if self.split == "out":
            return -(-self.out_features // ways), self.in_features
        if self.split == "in":
            return self.out_features, -(-self.in_features // ways)
        return self.out_features, self.in_features

    def local_bytes(self, plain: str, weight: str, tensor_parallel_size: int) -> int:
        """Bytes of all copies on one GPU, with an fp32 scale per output row where quantized."""
        rows, columns = self.local_shape(tensor_parallel_size)
        dtype = weight if self.quantizable or weight not in QUANTIZED_DTYPES else plain
        scales = rows * SCALE_BYTES if dtype in QUANTIZED_DTYPES else 0
        return self.copies * (rows * columns * dtype_bytes(dtype) + scales)

    def local_flops_per_token(self, tensor_parallel_size: int) -> int:
        """Multiply-adds, counted as two, that one token costs on one GPU."""
        rows, columns = self.local_shape(tensor_parallel_size)
        return 2 * self.active_copies * rows * columns


def weight_table(spec: ModelSpec) -> tuple[Matrix, ...]:
    """All weights of a model."""
    attention = (
        _grouped_query_attention(spec) if spec.mla is None else _latent_attention(spec, spec.mla)
    )
    return (
        *_vocabulary(spec),
        *attention,
        *_gated_mlp(spec.hidden_size, spec.intermediate_size, spec.num_dense_layers),
        *(_experts(spec.hidden_size, spec.moe) if spec.moe else ()),
        _vector("layernorm", "norm", spec.hidden_size, 2 * spec.num_layers + 1),
    )


def _linear(
    name: str,
    group: WeightGroup,
    rows: int,
    columns: int,
    copies: int,
    split: Split = "none",
    max_ways: int = 1 << 30,
) -> Matrix:
    return Matrix(name, group, rows, columns, copies, copies, split, max_ways, quantizable=True)


def _vector(
    name: str,
    group: WeightGroup,
    length: int,
    copies: int,
    split: Split = "none",
    max_ways: int = 1 << 30,
) -> Matrix:
    return Matrix(name, group, length, 1, copies, 0, split, max_ways)


def _vocabulary(spec: ModelSpec) -> tuple[Matrix, ...]:
    rows, columns = spec.vocab_size, spec.hidden_size
    if spec.tied:  # one matrix, which both looks tokens up and scores them
        return (Matrix("lm_head", "lm_head", rows, columns, 1, 1, "out"),)
    return (
        Matrix("embed_tokens", "embedding", rows, columns, 1, 0, "out"),
        Matrix("lm_head", "lm_head", rows, columns, 1, 1, "out"),
    )


def _grouped_query_attention(spec: ModelSpec) -> tuple[Matrix, ...]:
    layers, hidden = spec.num_layers, spec.hidden_size
    query = spec.num_heads * spec.head_dim
    key = spec.num_kv_heads * spec.head_dim
    kv_ways = spec.num_kv_heads
    table = [
        _linear("q_proj", "attention", query, hidden, layers, "out"),
        _linear("k_proj", "attention", key, hidden, layers, "out", kv_ways),
        _linear("v_proj", "attention", key, hidden, layers, "out", kv_ways),
        _linear("o_proj", "attention", hidden, query, layers, "in"),
    ]
    if spec.qkv_bias:
        table += [
            _vector("q_bias", "attention", query, layers, "out"),
            _vector("k_bias", "attention", key, layers, "out", kv_ways),
            _vector("v_bias", "attention", key, layers, "out", kv_ways),
        ]
    if spec.output_bias:
        table.append(_vector("o_bias", "attention", hidden, layers))
    if spec.qk_norm:
        table.append(_vector("qk_norm", "norm", spec.head_dim, 2 * layers))
    return tuple(table)


def _latent_attention(spec: ModelSpec, mla: MlaSpec) -> tuple[Matrix, ...]:
    """Multi-head latent attention of DeepSeek-V2 and V3 (arXiv:2412.19437, section 2.1.1)."""
    layers, hidden, heads = spec.num_layers, spec.hidden_size, spec.num_heads
    query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    queries: tuple[Matrix, ...] = (_linear("q_proj", "attention", query, hidden, layers, "out"),)
    if mla.q_lora_rank is not None:
        queries = (
            _linear("q_a_proj", "attention", mla.q_lora_rank, hidden, layers),
            _linear("q_b_proj", "attention", query, mla.q_lora_rank, layers, "out"),
            _vector("q_a_layernorm", "norm", mla.q_lora_rank, layers),
        )
    return (
        *queries,
        _linear("kv_a_proj_with_mqa", "attention", latent, hidden, layers),
        _linear("kv_b_proj", "attention", expanded, mla.kv_lora_rank, layers, "out"),
        _linear("o_proj", "attention", hidden, heads * mla.v_head_dim, layers, "in"),
        _vector("kv_a_layernorm", "norm", mla.kv_lora_rank, layers),
    )


def _gated_mlp(
    hidden: int,
    intermediate: int,
    copies: int,
    group: WeightGroup = "mlp",
    active_copies: int | None = None,
) -> tuple[Matrix, ...]:
    if copies == 0:
        return ()
    active = copies if active_copies is None else active_copies
    return (
        Matrix("gate_proj", group, intermediate, hidden, copies, active, "out", quantizable=True),
        Matrix("up_proj", group, intermediate, hidden, copies, active, "out", quantizable=True),
        Matrix("down_proj", group, hidden, intermediate, copies, active, "in", quantizable=True),
    )


def _experts(hidden: int, moe: MoeSpec) -> tuple[Matrix, ...]:
    layers = len(moe.layers)
    stored, active = layers * moe.num_experts, layers * moe.experts_per_token
    router = [Matrix("router", "router", moe.num_experts, hidden, layers, layers)]
    if moe.router_bias:
        router.append(_vector("e_score_correction_bias", "router", moe.num_experts, layers))
    shared_size = moe.num_shared_experts * moe.intermediate_size
    shared = _gated_mlp(hidden, shared_size, layers if shared_size else 0, "shared_experts")
    return (
        *router,
        *_gated_mlp(hidden, moe.intermediate_size, stored, "experts", active),
        *shared,
    )
