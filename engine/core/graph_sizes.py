"""Which steps run as CUDA Graphs, unless somebody says otherwise."""

from __future__ import annotations

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


def least_graph_tokens(tokens: int, chunks: int) -> int:
    """Tokens that a graph needs at least, to hold a step of so many tokens in so many chunks."""
    return max(tokens, TOKENS_PER_CHUNK * (chunks - FEWEST_CHUNKS))
