"""What an engine and a simulated one have unless somebody says otherwise."""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 16  # tokens of a KV page
MAX_NUM_BATCHED_TOKENS: Final = 8192  # of a step
MAX_RUNNING_REQUESTS: Final = 256
MEMORY_FRACTION: Final = 0.9  # of a GPU's memory, for weights, working memory and KV cache
