"""Which requests are listed, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.requests.figures import FIGURES, state_codes
from workbench.tui.requests.filter_language import Predicate
from workbench.tui.store.request_book import RequestBook

Int64 = NDArray[np.int64]

STATE: Final = "state"
SORTABLE: Final = (*FIGURES, STATE)


@dataclass(frozen=True, slots=True)
class Order:
    """A column to sort by; requests without a value stand last, equal ones by id."""

    name: str = "arrival"
    descending: bool = False

    @classmethod
    def parse(cls, text: str) -> Order:
        """`ttft`, or `-ttft` for the largest first; what is no column sorts by arrival."""
        name = text.removeprefix("-")
        return cls(name, text.startswith("-")) if name in SORTABLE else cls()

    def __str__(self) -> str:
        return f"-{self.name}" if self.descending else self.name

    def turned(self, name: str) -> Order:
        """Sorted by that column; by its other end if it is the one already."""
        if name == self.name:
            return Order(name, not self.descending)
        return Order(name, FIGURES[name].unit == "ms" if name in FIGURES else False)


def listed(book: RequestBook, keep: Predicate, order: Order) -> Int64:
    """Ids of the requests that a filter keeps, in order. int64[m]."""
    ids = np.flatnonzero(keep(book))
    if order.name == STATE:
        values = state_codes(book)[ids].astype(np.float64)
    else:
        values = FIGURES[order.name].of(book)[ids]
    if order.descending:
        values = -values  # NaN stays NaN, and NaN sorts last
    return ids[np.argsort(values, kind="stable")]
