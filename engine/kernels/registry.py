"""Which implementation of each op runs: chosen once, by device, and told to whoever asks.

There is no fallback: an implementation that cannot do something raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from engine.kernels import (
    decode_attention,
    embedding,
    linear,
    moe_experts,
    moe_routing,
    page_table,
    prefill_attention,
    rms_norm,
    rotary,
    sampling,
)

Op = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class KernelSet:
    """The ops of the engine; each is described at its reference in its own file.

    Attributes:
        chosen: op -> name of its implementation.
    """

    embed_tokens: Op
    norm: Op
    linear: Op
    norm_linear: Op
    norm_gated_linear: Op
    residual_linear: Op
    rotary_kv_write: Op
    decode_attention: Op
    prefill_attention: Op
    route: Op
    moe_mlp: Op
    sample: Op
    write_pages: Op
    chosen: Mapping[str, str]


IMPLEMENTATIONS: Mapping[str, Mapping[str, Op]] = {
    "embed_tokens": embedding.IMPLEMENTATIONS,
    "norm": rms_norm.IMPLEMENTATIONS,
    "linear": linear.LINEAR,
    "norm_linear": linear.NORM_LINEAR,
    "norm_gated_linear": linear.NORM_GATED_LINEAR,
    "residual_linear": linear.RESIDUAL_LINEAR,
    "rotary_kv_write": rotary.IMPLEMENTATIONS,
    "decode_attention": decode_attention.IMPLEMENTATIONS,
    "prefill_attention": prefill_attention.IMPLEMENTATIONS,
    "route": moe_routing.IMPLEMENTATIONS,
    "moe_mlp": moe_experts.IMPLEMENTATIONS,
    "sample": sampling.IMPLEMENTATIONS,
    "write_pages": page_table.IMPLEMENTATIONS,
}


def select_kernels(device: torch.device, wanted: Mapping[str, str] | None = None) -> KernelSet:
    """The implementations for a device: Triton's on a GPU, torch's on a CPU.

    Args:
        device: where tensors will be.
        wanted: op -> implementation, where another one is wanted; `{"*": name}` is for all ops
            that have it.

    Raises:
        ValueError: an op or an implementation that does not exist; the message lists those that do.
    """
    wanted = dict(wanted or {})
    everywhere = wanted.pop("*", None)
    unknown = sorted(set(wanted) - set(IMPLEMENTATIONS))
    if unknown:
        raise ValueError(f"no op {unknown[0]!r}; ops: {', '.join(IMPLEMENTATIONS)}")
    every_name = sorted({name for found in IMPLEMENTATIONS.values() for name in found})
    if everywhere is not None and everywhere not in every_name:
        raise ValueError(f"no op has {everywhere!r}; implementations: {', '.join(every_name)}")
    default = "triton" if device.type == "cuda" else "torch"
    chosen: dict[str, str] = {}
    for op, found in IMPLEMENTATIONS.items():
        name = wanted.get(op) or (everywhere if everywhere in found else default)
        if name not in found:
            raise ValueError(f"{op} has no implementation {name!r}; it has {', '.join(found)}")
        chosen[op] = name
    ops = {op: IMPLEMENTATIONS[op][name] for op, name in chosen.items()}
    if missing := {field.name for field in fields(KernelSet)} - set(ops) - {"chosen"}:
        raise AssertionError(f"ops without implementations: {missing}")
    return KernelSet(**ops, chosen=chosen)
