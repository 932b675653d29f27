"""Where kernel tests run: Triton's interpreter on a CPU, or the GPU if told so.

Import this before a kernel: it repairs the interpreter's bf16.
"""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("WORKBENCH_TEST_DEVICE", "cpu"))
ON_GPU = DEVICE.type == "cuda"

if not ON_GPU:
    import interpreter_bf16

    interpreter_bf16.install()


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out - reference‖ / ‖reference‖ in float64; a NaN anywhere makes it NaN."""
    out, reference = out.double().cpu(), reference.double().cpu()
    scale = reference.norm().item()
    return (out - reference).norm().item() / (scale or 1.0)
