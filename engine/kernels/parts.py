"""A layer may hand over parts of its result; whoever reads it sums them.

Such a result is [S, T, N] instead of [T, N]: float32 of a linear layer split over its inner
dimension, the model's dtype of the experts of a mixture. Summing costs nothing in a kernel that
reads the values anyway, and saves the layer a second kernel or atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def num_parts(x: torch.Tensor) -> int:
    """Parts of `x`: [T, N] is one, [S, T, N] are S."""
    return 1 if x.ndim == 2 else x.shape[0]


def sum_parts(x: torch.Tensor) -> torch.Tensor:
    """[T, N] of [T, N] or of parts [S, T, N]."""
    return x if x.ndim == 2 else x.sum(0)


@triton.jit
def load_parts(x, offsets, mask, part_stride, PARTS: tl.constexpr) -> tl.tensor:
    """float32 values at `offsets` of the first part, summed over all parts."""
    total = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(x + part * part_stride + offsets, mask=mask, other=0.0)
    return total
