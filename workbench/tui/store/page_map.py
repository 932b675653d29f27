"""KV pages as kinds of use, and pages put together to pixels."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import CACHE, PageState
from workbench.tui.store.request_book import RequestBook

Int64 = NDArray[np.int64]
Integers = NDArray[np.signedinteger[Any]]
NOTHING: Final = -1  # value of a pixel that stands for no page


class Use(IntEnum):
    """What a page is used for."""

    FREE = 0
    CACHED = 1  # by the prefix cache alone: can be evicted
    SHARED = 2  # of the prefix cache, and in use by a running request
    PREFILL = 3  # of a request that has given no token yet
    DECODE = 4  # of a request that decodes


def page_uses(pages: PageState, tree: TreeState, requests: RequestBook, t_ns: int) -> Int64:
    """int64[pages], the `Use` of each page at the end of a step."""
    owner = pages.owner
    use = np.full(len(owner), Use.FREE, np.int64)
    cached = owner == CACHE
    held = tree.locks_of(pages.node) > 0
    use[cached] = np.where(held[cached], Use.SHARED, Use.CACHED)
    private = np.flatnonzero(owner >= 0)
    first_token = requests.column("first_token_ns")[owner[private]]
    started = (first_token >= 0) & (first_token <= t_ns)
    use[private] = np.where(started, Use.DECODE, Use.PREFILL)
    return use


def pages_per_pixel(num_pages: int, pixels: int) -> int:
    """The least pages per pixel with which all fit."""
    return max(-(-num_pages // max(pixels, 1)), 1)


def most_common(values: Int64, kinds: int, per_pixel: int) -> Int64:
    """int64[pixels], the value that most pages of a pixel have; of equal ones the higher."""
    if per_pixel == 1:
        return values
    pixel = np.arange(len(values)) // per_pixel
    count = np.bincount(pixel * kinds + values, minlength=(int(pixel[-1]) + 1) * kinds)
    table = count.reshape(-1, kinds)
    return np.asarray(kinds - 1 - np.argmax(table[:, ::-1], axis=1))


def highest(values: Integers, per_pixel: int) -> Integers:
    """[pixels], the highest value of the pages of each pixel."""
    if per_pixel == 1:
        return values
    return np.asarray(np.maximum.reduceat(values, np.arange(0, len(values), per_pixel)))


def in_rows(pixels: Integers, rows: int, columns: int) -> Int64:
    """Pixels as rows of `columns`, filled up with `NOTHING`."""
    grid = np.full(rows * columns, NOTHING, np.int64)
    grid[: len(pixels)] = pixels[: rows * columns]
    return grid.reshape(rows, columns)
