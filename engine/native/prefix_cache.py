"""The prefix cache and the hashes of pages in C++.

The core never imports this; `engine.native.cache_choice` puts the cache into schedulers.
"""

from __future__ import annotations

from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.core.enums import RadixOp
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixListener
from engine.core.radix_tree import Eviction
from engine.core.token_ids import Int32
from engine.native.build import PREFIX_CACHE, build
from engine.native.whole import MENDS, is_whole

Hashes = npt.NDArray[np.uint64]

# Handing the interpreter's lock over can cost 5 ms, when another thread computes in Python; from
# so many tokens on, a comparison takes long enough for others to gain more by it.
RELEASE_TOKENS = 262_144
_OPS = (
    RadixOp.TOUCH, RadixOp.SPLIT, RadixOp.INSERT, RadixOp.LOCK, RadixOp.UNLOCK, RadixOp.EVICT,
    RadixOp.WITHDRAW,
)  # fmt: skip
_MULTIPLIER, _MASK = 0xFF51AFD7ED558CCD, (1 << 64) - 1


@cache
def _load(path: Path) -> ModuleType:
    try:
        if not is_whole(path):
            raise ImportError("it is not whole")
        return _module(path)
    except (ImportError, OSError) as error:
        raise ImportError(f"{path} does not load ({error}); {MENDS}") from error


def _module(path: Path) -> ModuleType:
    loader = ExtensionFileLoader(PREFIX_CACHE.name, str(path))
    spec = spec_from_file_location(PREFIX_CACHE.name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} is no module")
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def native_module() -> Any:
    """The extension module, built now if need be.

    Raises:
        NativeUnavailableError: it cannot be built here; says why.
        ImportError: what was built does not load.
    """
    return _load(build(PREFIX_CACHE))


def native_cache(
    page_size: int,
    eviction: Eviction = "lru",
    listener: RadixListener | None = None,
    *,
    release_tokens: int = RELEASE_TOKENS,
) -> RadixCache:
    """A prefix cache in C++ with the interface of `RadixCache`.

    Args:
        page_size: tokens of a page.
        eviction: as `RadixCache`.
        listener: called as by `RadixCache`; it may not call the cache.
        release_tokens: texts as long or longer are looked up without the interpreter's lock.

    Raises:
        NativeUnavailableError: it cannot be built here; says why.
        ImportError: what was built does not load.
    """
    cache_type = native_module().PrefixCache
    made = cache_type(page_size, eviction == "lfu", listener, list(_OPS), release_tokens)
    return cast("RadixCache", made)


def hash_pages_reference(ids: Int32, page_size: int, parent: int = 0) -> Hashes:
    """Hashes of whole pages, each of everything up to its end: h = mix((h ^ id) * constant).

    Args:
        ids: int32[n].
        page_size: ids of a page; ids after the last whole page are left out.
        parent: the hash of what is before, 0 at the beginning.

    Returns:
        uint64[n // page_size].
    """
    hashes = np.empty(len(ids) // page_size, np.uint64)
    state = parent
    for page in range(len(hashes)):
        for token in ids[page * page_size : (page + 1) * page_size].tolist():
            state = (state ^ (token & 0xFFFFFFFF)) * _MULTIPLIER & _MASK
            state ^= state >> 32
        hashes[page] = state
    return hashes


def hash_pages(ids: Int32, page_size: int, parent: int = 0, *, release_gil: bool = True) -> Hashes:
    """`hash_pages_reference` in C++, on the ids where they lie; the result is not copied either.

    Args:
        ids: contiguous int32[n].
        page_size: as there.
        parent: as there.
        release_gil: let other threads run meanwhile.

    Raises:
        NativeUnavailableError: it cannot be built here; says why.
        TypeError: the ids are of another type or have gaps, so they would have to be copied.
    """
    hashes: Hashes = native_module().hash_pages(ids, page_size, parent, release_gil)
    return hashes
