"""What every trace parser hands over: the rows of some lines, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from engine.core.workload import Int64
from workbench.workload.trace_errors import Problems
from workbench.workload.trace_lines import Lines


class Rows(NamedTuple):
    """Some rows of a trace.

    Attributes:
        lines: int64[n], the line each row stands on.
        time_ns: int64[n], the row's timestamp from an origin that the format chooses.
        prompt_tokens: int64[n], at least 0.
        output_tokens: int64[n], at least 0.
        hash_counts: int64[n], entries of `hash_ids` per row; 0 where a format has none.
        hash_ids: int64[m], the rows' block identities one after the other.
    """

    lines: Int64
    time_ns: Int64
    prompt_tokens: Int64
    output_tokens: Int64
    hash_counts: Int64
    hash_ids: Int64

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of `parts`, which has at least one element, in order."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def take(self, rows: Int64) -> Rows:
        """The rows of the given indices, in the given order."""
        counts = self.hash_counts[rows]
        starts = (np.cumsum(self.hash_counts) - self.hash_counts)[rows]
        source = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        ids = self.hash_ids[source + np.arange(len(source))]
        return Rows(
            lines=self.lines[rows],
            time_ns=self.time_ns[rows],
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            hash_counts=counts,
            hash_ids=ids,
        )


class RowParser(Protocol):
    """Turns lines of one format into rows."""

    @property
    def prompt_field(self) -> str:
        """What the format calls the length of a prompt."""
        ...

    def parse(self, lines: Lines, problems: Problems) -> Rows:
        """The rows of `lines`, one each, or fewer after adding to `problems`."""
        ...
