"""How integer columns are stored: in the narrowest type that holds them, widened on reading.

Narrowing halves a run record for almost no time (deflate would take ten times as long to save
another third), and `numpy.load` shows the very values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.core.events import TABLES, Columns, Segment

Column = NDArray[np.signedinteger[Any]]

_NARROW: Final = tuple(np.dtype(name) for name in ("int8", "int16", "int32"))


def narrow(column: Column) -> Column:
    """The same integers in the smallest signed type that holds them all."""
    if column.size == 0:
        return column
    lowest, highest = int(column.min()), int(column.max())
    for dtype in _NARROW:
        limits = np.iinfo(dtype)
        if dtype.itemsize >= column.dtype.itemsize:
            return column
        if limits.min <= lowest and highest <= limits.max:
            return column.astype(dtype)
    return column


def narrow_segment(segment: Segment, tables: Iterable[str]) -> Segment:
    """The named tables of a segment that have rows, with narrowed columns."""
    return {
        name: {key: narrow(column) for key, column in segment[name].items()}
        for name in tables
        if name in segment and rows(segment[name])
    }


def widen(table: str, columns: Mapping[str, Column]) -> Columns:
    """The columns with the dtypes of `engine.core.events.TABLES`."""
    schema = TABLES[table]
    return {name: column.astype(schema[name], copy=False) for name, column in columns.items()}


def rows(columns: Columns) -> int:
    """Number of rows of a table."""
    return len(next(iter(columns.values()))) if columns else 0
