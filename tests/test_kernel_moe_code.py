"""The machine code of the mixture-of-experts kernels for Hopper."""

from __future__ import annotations

import sm90_gate
from sm90_gate import Variant

from engine.kernels.moe_configs import CONFIGS, GroupedConfig, Tile

# Qwen3-30B-A3B
EXPERTS, TOP_K, FEATURES, WIDTH = 128, 8, 2048, 768
SHAPE = {"H": FEATURES, "I": WIDTH, "PDL": True}
SHARED_BYTES = 232448  # most that a program may have on Hopper


def matrix(tile: Tile, rows: int) -> str:
    """Type of a matrix that a tile reads."""
    return f"tensordesc<bf16[{rows}, {tile.block_k}]>" if tile.tma else "*bf16"


def grouped(kernel: str, config: GroupedConfig) -> Variant:
    """One of the grouped GEMMs with a tile of the table."""
    down, block_m = kernel == "down", config.block_m
    tile = config.down if down else config.gate_up
    types = {"order": "*i32", "blocks": "*i32", "slots": "i32"}
    if down:
        types |= {
            "hidden": matrix(tile, block_m), "half_hidden": matrix(tile, block_m // 2),
            "down": matrix(tile, tile.block_n), "weights": "*fp32", "out": "*bf16",
            "tokens": "i32",
        }  # fmt: skip
    else:
        types |= {"x": "*bf16", "gate_up": matrix(tile, tile.block_n), "hidden": "*bf16"}
    return Variant(
        f"engine.kernels.moe_grouped:_grouped_{kernel}_kernel", types,
        {
            "BLOCK_M": block_m, "HALVES": config.halves, "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k, "GROUP": tile.group, "SWAP": tile.swap, "TMA": tile.tma,
            "TOP_K": TOP_K, **SHAPE,
        },
        {"num_warps": tile.warps, "num_stages": tile.stages},
    )  # fmt: skip


def test_grouped_gemms_stream_and_use_the_tensor_cores() -> None:
    """Every tile of the table: wgmma, asynchronous loads, no spills, and it fits."""
    variants = [
        grouped(kernel, config) for config in CONFIGS.values() for kernel in ("gate_up", "down")
    ]
    for variant, made in zip(variants, sm90_gate.run(variants), strict=True):
        assert made.stack_bytes == 0, variant
        assert made.opcodes["STL"] == made.opcodes["LDL"] == 0, variant
        assert made.opcodes["HGMMA"] > 0, variant
        assert made.opcodes["HMMA"] == 0, variant
        loads = "UTMALDG" if variant.constants["TMA"] else "LDGSTS"
        assert made.opcodes[loads] > 0, variant
        assert made.shared_bytes <= SHARED_BYTES, variant


def test_small_kernels_do_not_spill() -> None:
    """Routing, sorting, the kernels for pairs keep to registers."""
    variants = [
        Variant(
            "engine.kernels.moe_routing:_route_kernel",
            {"logits": "*bf16", "weights": "*fp32", "experts": "*i32", "tokens": "i32",
             "part_stride": "i32"},
            {"EXPERTS": EXPERTS, "TOP_K": TOP_K, "RENORMALIZE": True, "PARTS": 1, "ROWS": 4,
             "COLUMNS": 128, "CHOICES": 8, "PDL": True},
            {"num_warps": 4},
        ),
        Variant(
            "engine.kernels.moe_sort:_sort_pairs_kernel",
            {"experts": "*i32", "counts": "*i32", "order": "*i32", "blocks": "*i32", "pairs": "i32",
             "slots": "i32"},
            {"EXPERTS": EXPERTS, "COLUMNS": 128, "COUNTED": True, "TOGETHER": 16, "BLOCK_M": 128,
             "CHUNK": 2048, "SEGMENT": 8192, "PDL": True},
            {"num_warps": 8},
        ),
        Variant(
            "engine.kernels.moe_sort:_count_kernel",
            {"experts": "*i32", "counts": "*i32", "pairs": "i32"},
            {"EXPERTS": EXPERTS, "COLUMNS": 128, "CHUNK": 2048, "PDL": True},
            {"num_warps": 8},
        ),
        Variant(
            "engine.kernels.moe_pairs:_pairs_gate_up_kernel",
            {"x": "*bf16", "gate_up": "*bf16", "experts": "*i32", "hidden": "*bf16"},
            {"TOP_K": TOP_K, "BLOCK_N": 2, "BLOCK_K": 2048, **SHAPE},
            {"num_warps": 4},
        ),
        Variant(
            "engine.kernels.moe_pairs:_pairs_down_kernel",
            {"hidden": "*bf16", "down": "*bf16", "weights": "*fp32", "experts": "*i32",
             "out": "*bf16"},
            {"TOP_K": TOP_K, "CHOICES": 8, "BLOCK_N": 8, "BLOCK_K": 256, **SHAPE},
            {"num_warps": 4},
        ),
    ]  # fmt: skip
    for variant, made in zip(variants, sm90_gate.run(variants), strict=True):
        assert made.stack_bytes == 0, variant
        assert made.opcodes["STL"] == made.opcodes["LDL"] == 0, variant
