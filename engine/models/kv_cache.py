"""The keys and values of all layers, in pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.core.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvCache:
    """One pool of pages for all layers.

    Attributes:
        pool: [L, 2, num_pages + 1, page_size, Hk, D]; the last page is the *dummy page*, which
            padding may write and read.
        layers: (keys, values) of each layer, views of the pool, [num_pages + 1, page_size, Hk, D].
    """

    pool: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def num_pages(self) -> int:
        """Pages that requests may hold."""
        return self.pool.shape[2] - 1

    @property
    def dummy_page(self) -> int:
        """The page that belongs to nobody."""
        return self.pool.shape[2] - 1

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.pool.shape[3]


def allocate_kv_cache(
    spec: ModelSpec, num_pages: int, page_size: int, device: torch.device, dtype: torch.dtype
) -> KvCache:
    """A cache of `num_pages` pages and the dummy page, all zeros.

    Zeros, because a masked product with whatever was in memory before could be NaN.
    """
    shape = (spec.num_layers, 2, num_pages + 1, page_size, spec.num_kv_heads, spec.head_dim)
    pool = torch.zeros(shape, dtype=dtype, device=device)
    return KvCache(pool, tuple((pool[layer, 0], pool[layer, 1]) for layer in range(shape[0])))
