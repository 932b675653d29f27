"""Which steps run as CUDA Graphs, unless somebody says otherwise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

FEWEST_CHUNKS: Final = 4  # for which the graph of the fewest tokens has room
TOKENS_PER_CHUNK: Final = 64  # for each of which a graph has room for one more


def default_graph_batch_sizes(max_running_requests: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, then every 16 up to 1,024, as far as requests may run."""
    limit = min(max_running_requests, 1024)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 1025, 16)]
    return (*(size for size in sizes if size < limit), limit)


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
