"""How the decode attention kernel is cut, by the work of a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How the kernel is cut.

    Attributes:
        block_tokens: KV tokens of one loop iteration.
        warps: warps of a program.
        stages: depth of the software pipeline.
        programs_per_sm: programs of a launch, per multiprocessor.
        min_chunk: a program gets at least so many tokens, if there are any left.
        early_tokens: as many of them are fetched while earlier kernels still run.
    """

    block_tokens: int = 64
    warps: int = 4
    stages: int = 3
    programs_per_sm: int = 3
    min_chunk: int = 64
    early_tokens: int = 0


def pick_tuning(batch: int, kv_heads: int, group: int) -> DecodeTuning:
    """What is fastest on an H200, whether contexts are of one thousand tokens or eight thousand.

    Few heads: latency is all, so programs are small and fetch early. Many heads: enough bytes in
    flight, and more pieces than fit at a time, which levels the differences between SMs. Measured
    by `benchmarks/kernels_attention.py`.
    """
    heads = batch * kv_heads
    if group <= 2:
        if heads <= 32:
            return DecodeTuning(32, 1, 3, programs_per_sm=3, min_chunk=64, early_tokens=128)
        if heads <= 128:  # smaller programs, which start too early, lose 10 % in the whole step
            return DecodeTuning(64, 4, 2, programs_per_sm=3)
        return DecodeTuning(32, 2, 3, programs_per_sm=4)
    if heads <= 8:
        return DecodeTuning(32, 2, 3, programs_per_sm=2, min_chunk=96, early_tokens=128)
    if heads <= 16:
        return DecodeTuning(32, 2, 5, programs_per_sm=3, early_tokens=128)
    if heads <= 32:
        return DecodeTuning(32, 2, 3, programs_per_sm=2, min_chunk=96, early_tokens=128)
    if heads <= 128 or heads > 512 or (heads > 256 and group <= 4):
        return DecodeTuning(32, 2, 3, programs_per_sm=4)
    return DecodeTuning(64, 4, 3, programs_per_sm=2 if heads <= 256 else 4)
