"""Which steps run as CUDA Graphs, unless somebody says otherwise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from engine.core.model_spec import ModelSpec

# Of tokens. Without 448, for which cuBLAS takes longer than for 512.
TOKEN_SIZES: Final = (
    16, 32, *range(64, 385, 64), *range(512, 1281, 64), *range(1408, 2049, 128),
    *range(2304, 4097, 256),
)  # fmt: skip
# Of the kernels of a layer, and of one with experts, one by one. Alone it takes a third to two
# thirds of that; while serving, the interpreter has other work, too, and hosts differ.
LAUNCH_SECONDS: Final = 1000e-6
MOE_LAUNCH_SECONDS: Final = 1300e-6
_WEIGHT_BYTES: Final = 2  # a parameter
PREFILL_BYTES: Final = 4e12  # of a second of prefill, as measured on an H200
PREFILL_FLOPS: Final = 6e14
FEWEST_CHUNKS: Final = 4  # for which the graph of the fewest tokens has room
TOKENS_PER_CHUNK: Final = 64  # for each of which a graph has room for one more


def default_graph_batch_sizes(max_running_requests: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, then every 16 up to 1,024, as far as requests may run."""
    limit = min(max_running_requests, 1024)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 1025, 16)]
    return (*(size for size in sizes if size < limit), limit)


def default_graph_tokens(spec: ModelSpec) -> tuple[int, ...]:
    """Numbers of tokens for which the GPU would wait for launches, and the next larger one.

    Larger steps gain nothing from graphs and would be padded for nothing.
    """
    flops = spec.flops_per_token_by_group()
    flops.pop("lm_head", None)  # of sampled tokens only
    mixtures = len(spec.moe.layers) if spec.moe is not None else 0
    launches = (spec.num_layers - mixtures) * LAUNCH_SECONDS + mixtures * MOE_LAUNCH_SECONDS
    weights = _WEIGHT_BYTES * spec.num_parameters / PREFILL_BYTES
    most = (launches - weights) * PREFILL_FLOPS / sum(flops.values())
    return TOKEN_SIZES[: bisect_left(TOKEN_SIZES, most) + 1]


def graph_chunks(tokens: int) -> int:
    """Prefill chunks for which the graph of a step of so many tokens has room.

    Each costs a little time whether it is there or not, and more than so many are rare.
    """
    return FEWEST_CHUNKS + tokens // TOKENS_PER_CHUNK


def graph_tokens_for(sizes: Sequence[int], tokens: int, chunks: int) -> int:
    """Tokens of the graph to which a step with prefill is padded; 0: it runs without one.

    A graph of many more tokens than the step has, only to have room for its chunks, gains nothing
    where it is one of the larger ones: the largest takes about as long as launches do.

    Args:
        sizes: that there are graphs of, ascending.
        tokens: of the step.
        chunks: of prompts in it.
    """
    room = TOKENS_PER_CHUNK * (chunks - FEWEST_CHUNKS)
    at = bisect_left(sizes, max(tokens, room))
    if at == len(sizes) or (room > tokens and 2 * sizes[at] > sizes[-1]):
        return 0
    return sizes[at]
