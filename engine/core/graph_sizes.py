"""Which decode batches run as CUDA Graphs, unless somebody says otherwise."""

from __future__ import annotations


def default_graph_batch_sizes(max_running_requests: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, then every 16 up to 1,024, as far as requests may run."""
    limit = min(max_running_requests, 1024)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 1025, 16)]
    return (*(size for size in sizes if size < limit), limit)
