"""The classes of kernels of a step, and the ranges of a profile that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

RANGE: Final = "workbench."
"""What the name of a class follows in a trace."""

STEP, WAIT, MEASURED, LABELLED = "step", "wait", "measured", "labelled"
CAPTURE: Final = "capture"
"""Ranges around the launch of a step, around waiting for what it brings, around the steps that
count, and around one whose ops are named."""

ATTENTION, MLP, NORM, MOE = "attention", "MLP", "norm", "MoE"
SAMPLING, COMMUNICATION, REST = "sampling", "communication", "rest"
GROUPS: Final = (ATTENTION, MLP, NORM, MOE, SAMPLING, COMMUNICATION, REST)

GROUP_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "embedding": REST,
        "page_table": REST,
        "norm": NORM,
        "qkv": ATTENTION,
        "rotary": ATTENTION,
        "attention_prefill": ATTENTION,
        "attention_decode": ATTENTION,
        "output": ATTENTION,
        "gate_up": MLP,
        "activation": MLP,
        "down": MLP,
        "router": MOE,
        "routing": MOE,
        "experts": MOE,
        "lm_head": SAMPLING,
        "sampling": SAMPLING,
        "communication": COMMUNICATION,
        "copy": REST,
        "other": REST,
    }
)
"""Class -> range, in the order in which a step goes through them."""

NAMED: Final = (
    "embedding", "page_table", "norm", "qkv", "rotary", "attention_prefill", "attention_decode",
    "output", "gate_up", "down", "router", "routing", "experts", "lm_head", "sampling",
)  # fmt: skip
"""Classes whose ops are called by themselves, in ranges of their own: `op_ranges.named_ops`."""
