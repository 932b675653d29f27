"""What the assembler makes of the sampling kernels on Hopper."""

from __future__ import annotations

from typing import Any

import pytest
import sm90_gate

PARAMS = {
    "logits": "*bf16", "stride": "i32", "vocab": "i32", "temperature": "*fp32", "top_k": "*i32",
    "top_p": "*fp32", "min_p": "*fp32", "seeds": "*i64", "steps": "*i32", "ids": "*i32",
    "parts": "*fp32", "peaks": "*fp32", "found": "*i32", "batch": "i32", "splits": "i32",
    "groups": "i32", "tiles": "i32", "within": "*fp32", "total": "*i64",
    "distances": "*fp32", "scan_ids": "*i32", "tokens": "*i32",
    "logprobs": "*fp32", "last_tokens": "*i32", "rows": "*i32",
    "top_logprobs": "*fp32", "top_ids": "*i32",
}  # fmt: skip
SCAN = {"RUN": 1024, "GROUPS": 128, "PEAKS": 1024, "STORE_PEAKS": True, "PDL": True}
MASSES = {"SPLITS": 64, "PIVOTS": 8, "PIVOT_STEP": 1.5, "PDL": True}
CHOOSE = {"SPLITS": 64, "CAPACITY": 16384, "BLOCK": 512, "PDL": True}


def _variant(
    module: str, kernel: str, warps: int, constants: dict[str, Any], types: dict[str, str],
    **options: int,
) -> sm90_gate.Variant:  # fmt: skip
    return sm90_gate.Variant(
        f"engine.kernels.sampling_{module}:{kernel}",
        types, constants, {"num_warps": warps, **options}, aligned=("stride", "vocab"),
    )  # fmt: skip


def _variants(dtype: str) -> dict[str, sm90_gate.Variant]:
    types = {**PARAMS, "logits": dtype}
    greedy = {**SCAN, "GROUPS": 16, "DRAWS": False, "FILTERS": False, "LOGPROBS": True}
    draws = {**SCAN, "DRAWS": True, "FILTERS": True, "LOGPROBS": True}
    picks = {**MASSES, "BLOCK": 2048, "PEAKS": 1024, "CAPACITY": 16384}
    plain = {"FILTERS": False, "TOP_P": False, "LOGPROBS": True, "FEEDS": True}
    full = {"FILTERS": True, "TOP_P": True, "LOGPROBS": True, "FEEDS": True}
    return {
        "scan greedy": _variant("scan", "_scan_kernel", 4, greedy, types),
        "scan draws": _variant("scan", "_scan_kernel", 8, draws, types, maxnreg=128),
        "masses": _variant("filter", "_masses_kernel", 4, {**MASSES, "BLOCK": 1024}, types),
        "gather": _variant(
            "filter", "_gather_kernel", 8, {**picks, "FIXED_K": 0, "TOP_P": True}, types
        ),
        "gather top": _variant(
            "filter", "_gather_kernel", 8, {**picks, "FIXED_K": 5, "TOP_P": False}, types
        ),
        "choose plain": _variant("choose", "_choose_kernel", 1, {**CHOOSE, **plain}, types),
        "choose": _variant("choose", "_choose_kernel", 8, {**CHOOSE, **full}, types),
        "choose no top-p": _variant(
            "choose", "_choose_kernel", 8, {**CHOOSE, **full, "TOP_P": False}, types
        ),
        "list top": _variant("choose", "_top_kernel", 4, {**CHOOSE, "K": 5}, types),
    }


@pytest.mark.parametrize(("dtype", "names"), [("*bf16", None), ("*fp32", ("scan draws", "choose"))])
def test_compile_for_hopper_without_spills(dtype: str, names: tuple[str, ...] | None) -> None:
    """Nothing goes to local memory; of fp32, which no model serves in, the largest kernels."""
    variants = {k: v for k, v in _variants(dtype).items() if names is None or k in names}
    for name, made in zip(variants, sm90_gate.run(list(variants.values())), strict=True):
        assert made.stack_bytes == 0, name
        assert made.opcodes["STL"] == made.opcodes["LDL"] == 0, name
