"""The event stream of a run: append-only integer tables that both drivers fill at the same points.

A table is rows of integers; times are ns since the start of the run. Rows collect in flat buffers
and leave as *segments* (table name -> column name -> numpy array), to a file, a pipe or memory.
What a table holds depends on the `Detail` of the run:

    none    requests, decode_spans (kept for the summary)
    steps   + steps, lifecycle
    items   + items
    pages   + memory, radix

Decoding requests are not listed step by step. A decode *iteration* is a step that decodes, counted
per replica; every decoding request takes part in every iteration between joining and leaving, so
one row of `decode_spans` per stay says it all, and `steps.decode_iteration` ties iterations to
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.signedinteger[Any]]]
Segment = dict[str, Columns]


class Detail(IntEnum):
    """How much of a run is recorded."""

    NONE = 0
    STEPS = 1
    ITEMS = 2
    PAGES = 3


TABLES: Final[dict[str, dict[str, str]]] = {
    # One row per request, written when it ends (or when the run is cut off: finish_reason NONE).
    "requests": {
        "request_id": "int64",
        "replica": "int32",  # -1: never reached one
        "tenant": "int32",
        "priority": "int32",
        "parent": "int32",  # -1: none
        "prompt_tokens": "int32",
        "max_tokens": "int32",
        "output_tokens": "int32",  # committed
        "cached_tokens": "int32",  # prefix hit at first admission
        "retractions": "int32",
        "recomputed_tokens": "int64",  # tokens prefilled again after retractions
        "client_wait_ns": "int64",  # held back by the client's own concurrency cap before arrival
        "arrival_ns": "int64",  # when it was sent to the deployment; -1: never sent
        "admitted_ns": "int64",  # when the first step with it was planned; -1: never
        "first_token_ns": "int64",  # -1: never
        "finish_ns": "int64",  # -1: unfinished
        "finish_reason": "int8",  # enums.FinishReason
        "reject_reason": "int8",  # enums.RejectReason
    },
    # One row per step.
    "steps": {
        "step": "int64",  # plan id, counted per replica from 0
        "replica": "int32",
        "plan_ns": "int64",  # the scheduler was asked
        "start_ns": "int64",  # the GPU began
        "end_ns": "int64",  # results were committed
        "gpu_ns": "int64",
        "host_ns": "int64",
        "prefill_tokens": "int32",
        "prefill_requests": "int32",
        "prefill_context": "int64",  # sum over prefill items of tokens already in the KV cache
        "prefill_pairs": "int64",  # sum over prefill items of causal (query, key) pairs
        "prefill_max_context": "int32",  # the longest prefill item, new tokens included
        "decode_requests": "int32",  # decode and verify items
        "decode_tokens": "int32",  # = decode_requests without speculation
        "decode_context": "int64",  # sum of their context lengths, new tokens included
        "decode_max_context": "int32",
        "shared_context": "int64",  # KV tokens that requests share, once for each but one of them
        "sampled_tokens": "int32",  # rows of logits
        "hit_tokens": "int32",  # prompt tokens of admissions in this step found in the prefix cache
        "graph_batch": "int32",  # CUDA Graph bucket, 0: eager
        "running": "int32",
        "waiting": "int32",  # after planning
        "block_reason": "int8",  # enums.AdmissionBlock
        "free_pages": "int32",  # after planning
        "cached_pages": "int32",  # held by the prefix cache alone: evictable
        "retracted": "int32",  # requests sent back since the previous step
        "evicted_pages": "int32",  # since the previous step
        "decode_iteration": "int64",  # -1: no decode in this step
        "extrapolated": "int8",  # the cost model left its measured range; 0 on an engine
    },
    # What a step did for a request, prefill chunks and verify items only (see decode_spans).
    "items": {
        "step": "int64",
        "replica": "int32",
        "request_id": "int64",
        "kind": "int8",  # enums.ItemKind
        "num_tokens": "int32",
        "context_tokens": "int32",  # tokens in the KV cache before this item
    },
    # One row per stay of a request in the decode batch, written when it leaves.
    "decode_spans": {
        "request_id": "int64",
        "replica": "int32",
        "token_ns": "int64",  # commit time of the prefill that opened the span (a token came of it)
        "first_iteration": "int64",
        "scheduled": "int64",  # iterations planned with it
        "committed": "int64",  # iterations whose token it kept
        "context_tokens": "int32",  # tokens in its KV cache before the first iteration
    },
    "lifecycle": {
        "t_ns": "int64",
        "replica": "int32",
        "request_id": "int64",
        "event": "int8",  # enums.RequestEvent, which explains a and b
        "a": "int64",
        "b": "int64",
    },
    # Page runs that changed hands, owner = request id, or -1 for the prefix cache.
    "memory": {
        "step": "int64",  # the next plan id at that moment
        "replica": "int32",
        "op": "int8",  # enums.MemoryOp
        "owner": "int64",
        "start_page": "int32",
        "num_pages": "int32",
    },
    "radix": {
        "step": "int64",
        "replica": "int32",
        "op": "int8",  # enums.RadixOp
        "node": "int64",
        "parent": "int64",
        "tokens": "int32",
        "locks": "int32",
    },
}

_DETAIL_OF: Final[dict[str, Detail]] = {
    "requests": Detail.NONE,
    "decode_spans": Detail.NONE,
    "steps": Detail.NONE,  # always collected: the summary needs it; recorded from `steps` on
    "lifecycle": Detail.STEPS,
    "items": Detail.ITEMS,
    "memory": Detail.PAGES,
    "radix": Detail.PAGES,
}


def recorded_tables(detail: Detail) -> tuple[str, ...]:
    """Names of the tables that a run record of this detail holds."""
    return tuple(
        name
        for name, least in _DETAIL_OF.items()
        if detail >= least and not (name == "steps" and detail == Detail.NONE)
    )


def empty_columns(table: str) -> Columns:
    """A table without rows, with its column dtypes."""
    return {name: np.empty(0, dtype) for name, dtype in TABLES[table].items()}


class EventLog:
    """Collects the rows of one run from all its replicas.

    `write(table)` gives the append function of a table, or None if this detail does not collect it,
    so that a caller can hoist the decision out of its loop. A row is a tuple of ints in the order
    of `TABLES`. With a `sink`, full segments are handed over and forgotten; without one they are
    kept.
    """

    def __init__(
        self,
        detail: Detail = Detail.ITEMS,
        sink: Callable[[Segment], None] | None = None,
        segment_rows: int = 1 << 17,
    ) -> None:
        self.detail = detail
        self._sink = sink
        self._segment_rows = segment_rows
        self._segments: list[Segment] = []
        self._buffers = {name: bytearray() for name in TABLES if detail >= _DETAIL_OF[name]}

    def write(self, table: str) -> Callable[[tuple[int, ...]], None] | None:
        """The append function of `table`, or None if it is not collected."""
        buffer = self._buffers.get(table)
        if buffer is None:
            return None
        pack, extend = Struct(f"={len(TABLES[table])}q").pack, buffer.extend

        def write(row: tuple[int, ...]) -> None:
            extend(pack(*row))

        return write

    def rows(self, table: str) -> int:
        """Rows of `table` waiting in the buffer."""
        return len(self._buffers[table]) // (8 * len(TABLES[table]))

    def flush_if_full(self) -> None:
        """Hand over a segment once any buffer has reached `segment_rows`. Cheap; call it often."""
        if any(self.rows(name) >= self._segment_rows for name in self._buffers):
            self.flush()

    def flush(self) -> None:
        """Hand all buffered rows over as one segment (nothing happens if there are none)."""
        segment = {name: _columns(name, buffer) for name, buffer in self._buffers.items() if buffer}
        if not segment:
            return
        for buffer in self._buffers.values():
            buffer.clear()
        if self._sink is not None:
            self._sink(segment)
        else:
            self._segments.append(segment)

    def tables(self) -> Segment:
        """Everything collected so far and not handed to a sink, one array per column."""
        self.flush()
        return concatenate(self._segments, tuple(self._buffers))


def _columns(table: str, buffer: bytearray) -> Columns:
    schema = TABLES[table]
    rows = np.frombuffer(buffer, np.int64).reshape(-1, len(schema))
    return {name: rows[:, i].astype(dtype) for i, (name, dtype) in enumerate(schema.items())}


def concatenate(segments: list[Segment], tables: tuple[str, ...]) -> Segment:
    """Join segments in order; a table that appears in none comes out empty."""
    joined: Segment = {}
    for table in tables:
        parts = [segment[table] for segment in segments if table in segment]
        joined[table] = (
            {name: np.concatenate([part[name] for part in parts]) for name in TABLES[table]}
            if parts
            else empty_columns(table)
        )
    return joined
