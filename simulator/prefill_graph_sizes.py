"""To how many tokens the engine pads a step with prompts, for models that no engine was asked.

`engine.runtime.prefill_graphs` decides it, which needs torch; a test holds the two together.
"""

from __future__ import annotations

import bisect
from typing import Final

from engine.core.model_spec import ModelSpec

_SIZES: Final = (16, 32, *range(64, 385, 64), *range(512, 1025, 64), *range(1280, 4097, 256))
_LAUNCH_SECONDS: Final = 600e-6  # of the kernels of a layer, and of one with experts
_MOE_LAUNCH_SECONDS: Final = 900e-6
_BYTES: Final = 4e12  # of a second of prefill
_FLOPS: Final = 6e14


def prefill_graph_sizes(model: ModelSpec) -> tuple[int, ...]:
    """Numbers of tokens whose steps with prompts run as CUDA Graphs, ascending."""
    flops = model.flops_per_token_by_group()
    flops.pop("lm_head", None)
    mixtures = len(model.moe.layers) if model.moe is not None else 0
    dense = model.num_layers - mixtures
    launches = dense * _LAUNCH_SECONDS + mixtures * _MOE_LAUNCH_SECONDS
    weights = 2 * model.num_parameters / _BYTES
    most = (launches - weights) * _FLOPS / sum(flops.values())
    return _SIZES[: bisect.bisect_left(_SIZES, most) + 1]
