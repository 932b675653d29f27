"""Times the rungs on tensor cores of the kernel lab for several ways to cut their work.

    python benchmarks/kernel_lab_tiles.py tiles.json [--commit HASH]

Needs one Hopper GPU and half a minute, most of it compilation. benchmarks/results has what an H200
said; `KEYS` and `WARPS` of engine/kernels/lab/attention_prefill.py and `splits_of` of
attention_decode.py follow from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton

from engine.kernels.lab import attention_decode, attention_prefill
from engine.kernels.lab.measuring import time_calls

TILES = ((64, 4), (48, 4), (32, 4), (64, 8), (96, 8), (128, 8))  # keys, warps
SPLITS = {1: (33, 66, 99, 132, 264), 64: (1, 2, 3, 5)}  # by batch


def measure_prefill(device: torch.device) -> list[dict[str, Any]]:
    """Every cut at both sizes, each result checked."""
    rows = []
    for size in attention_prefill.LAB.sizes:
        case = attention_prefill.make(device, **size)
        flops = attention_prefill.work(case).flops
        for keys, warps in TILES:
            call = partial(attention_prefill.cuda_tensor, case, keys, warps)
            error = attention_prefill.error(case, call())
            us = statistics.median(time_calls(call, device))
            rows.append({
                **size, "keys": keys, "warps": warps, "median_us": us,
                "tflop_s": flops / us / 1e6, "relative_error": error,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def measure_decode(device: torch.device) -> list[dict[str, Any]]:
    """Every number of splits at all sizes, each result checked."""
    rows = []
    for size in attention_decode.LAB.sizes:
        case = attention_decode.make(device, **size)
        moved = attention_decode.work(case).moved_bytes
        for splits in SPLITS[size["batch"]]:
            call = partial(attention_decode.cuda_tensor, case, splits)
            error = attention_decode.error(case, call())
            us = statistics.median(time_calls(call, device))
            rows.append({
                **size, "splits": splits, "median_us": us, "gb_s": moved / us / 1e3,
                "relative_error": error,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--commit", default="", help="of the sources")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no NVIDIA GPU")
    device = torch.device("cuda")
    torch.manual_seed(0)
    result = {
        "format": "kernel_lab_tiles/v1", "gpu": torch.cuda.get_device_name(device),
        "torch": str(torch.__version__), "triton": str(triton.__version__),
        "commit": arguments.commit, "date_utc": time.strftime("%Y-%m-%d", time.gmtime()),
        "timing": "median of single calls by events, each after 256 MiB were written",
        "attention_prefill": measure_prefill(device), "attention_decode": measure_decode(device),
    }  # fmt: skip
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
