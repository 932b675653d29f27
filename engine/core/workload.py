"""What will be asked of a deployment: one row per request, in columns.

Both drivers take a `Workload`: the simulator replays it in virtual time, the engine in real time.
It holds the truth about output lengths, which drivers use as model behaviour and never show to the
core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.token_ids import SyntheticTokens

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]

NEVER = -1


@dataclass(frozen=True, slots=True)
class PromptSegments:
    """Which synthetic text each prompt is made of, in CSR form.

    Two prompts that start with the same `(key, length)` segments start with the same token ids,
    which is how shared system prompts, conversation turns and a trace's `hash_ids` become real
    prefix hits.

    Attributes:
        offsets: int64[n + 1], rows of `keys` and `lengths` that belong to request i.
        keys: int64[m], identity of each segment's text. Equal keys mean equal text.
        lengths: int32[m] tokens; may be shorter than the full text of a key (a prefix of it).
        output_keys: int64[n], identity of the text that request i generates.
        vocab_size: token ids are drawn from [0, vocab_size).
    """

    offsets: Int64
    keys: Int64
    lengths: Int32
    output_keys: Int64
    vocab_size: int

    def tokens(self, request_id: int, output_tokens: int) -> SyntheticTokens:
        """Token ids of a prompt followed by `output_tokens` generated ones, made when asked for."""
        first, last = int(self.offsets[request_id]), int(self.offsets[request_id + 1])
        keys, lengths = self.keys[first:last].tolist(), self.lengths[first:last].tolist()
        keys.append(int(self.output_keys[request_id]))
        lengths.append(output_tokens)
        return SyntheticTokens(keys, lengths, self.vocab_size)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in columns; the row index is the request id.

    Attributes:
        arrival_ns: int64[n], when the client wants to send, from the start of the run.
            Non-decreasing over rows with `parent == NEVER`; ignored where a parent is given.
        prompt_tokens: int32[n], at least 1.
        output_tokens: int32[n], at least 1: where the model would stop by itself.
        max_tokens: int32[n], at least 1: the client's limit, which the scheduler may know.
        priority: int32[n], larger is more urgent.
        tenant: int32[n], namespace of the prefix cache.
        parent: int32[n], the request whose end releases this one (the previous turn), or NEVER. A
            parent has a smaller row index.
        think_ns: int64[n], pause between the parent's end and this request.
        abort_after_ns: int64[n], the client gives up this long after sending, or NEVER.
        segments: what the prompts are made of, or None if no two share text.
    """

    arrival_ns: Int64
    prompt_tokens: Int32
    output_tokens: Int32
    max_tokens: Int32
    priority: Int32
    tenant: Int32
    parent: Int32
    think_ns: Int64
    abort_after_ns: Int64
    segments: PromptSegments | None = None

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @classmethod
    def from_lengths(
        cls,
        arrival_ns: Int64,
        prompt_tokens: Int32,
        output_tokens: Int32,
        max_tokens: Int32 | None = None,
        segments: PromptSegments | None = None,
    ) -> Workload:
        """A workload of independent requests with default priority, tenant and no aborts.

        `max_tokens` defaults to `output_tokens`, as a benchmark that ignores EOS would ask.
        """
        n = len(arrival_ns)
        return cls(
            arrival_ns=np.asarray(arrival_ns, np.int64),
            prompt_tokens=np.asarray(prompt_tokens, np.int32),
            output_tokens=np.asarray(output_tokens, np.int32),
            max_tokens=np.asarray(output_tokens if max_tokens is None else max_tokens, np.int32),
            priority=np.zeros(n, np.int32),
            tenant=np.zeros(n, np.int32),
            parent=np.full(n, NEVER, np.int32),
            think_ns=np.zeros(n, np.int64),
            abort_after_ns=np.full(n, NEVER, np.int64),
            segments=segments,
        )

    def validate(self) -> None:
        """Check what the docstrings of the columns and segments say.

        Raises:
            ValueError: something does not hold; the message names the column and the row.
        """
        for name, (dtype, least) in _COLUMNS.items():
            column: NDArray[np.integer] = getattr(self, name)
            if column.dtype != dtype or column.shape != (len(self),):
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)}[{len(self)}], "
                    f"got {column.dtype}{list(column.shape)}"
                )
            if least is not None:
                _require(name, column, column >= least, f"at least {least}")
        self._validate_order()
        if self.segments is not None:
            _validate_segments(self.segments, self.prompt_tokens)

    def _validate_order(self) -> None:
        _require("parent", self.parent, self.parent < np.arange(len(self)), "an earlier row")
        roots = np.flatnonzero(self.parent == NEVER)
        arrival_ns = self.arrival_ns[roots]
        in_order = np.ones(len(self), np.bool_)
        in_order[roots[1:]] = arrival_ns[1:] >= arrival_ns[:-1]
        _require("arrival_ns", self.arrival_ns, in_order, "no earlier than the row before")


_COLUMNS: Final[dict[str, tuple[type[np.integer], int | None]]] = {
    "arrival_ns": (np.int64, 0),
    "prompt_tokens": (np.int32, 1),
    "output_tokens": (np.int32, 1),
    "max_tokens": (np.int32, 1),
    "priority": (np.int32, None),
    "tenant": (np.int32, None),
    "parent": (np.int32, NEVER),
    "think_ns": (np.int64, 0),
    "abort_after_ns": (np.int64, NEVER),
}


def _validate_segments(segments: PromptSegments, prompt_tokens: Int32) -> None:
    n, m = len(prompt_tokens), len(segments.keys)
    offsets = segments.offsets
    shapes = (offsets.shape, segments.lengths.shape, segments.output_keys.shape)
    if shapes != ((n + 1,), (m,), (n,)) or offsets[0] != 0 or offsets[-1] != m:
        raise ValueError(
            f"segments must have offsets[{n + 1}] from 0 to {m}, lengths[{m}] and "
            f"output_keys[{n}]; their shapes are {shapes}"
        )
    if segments.vocab_size < 2:
        raise ValueError(f"segments.vocab_size must be at least 2, got {segments.vocab_size}")
    _require("segments.lengths", segments.lengths, segments.lengths >= 0, "at least 0")
    _require("segments.offsets", offsets, np.append(True, np.diff(offsets) >= 0), "non-decreasing")
    totals = np.diff(np.append(0, np.cumsum(segments.lengths, dtype=np.int64))[offsets])
    rule = "the sum of the row's segment lengths"
    _require("prompt_tokens", prompt_tokens, totals == prompt_tokens, rule)


def _require(name: str, column: NDArray[np.integer], holds: NDArray[np.bool_], rule: str) -> None:
    if not holds.all():
        row = int(np.argmin(holds))
        raise ValueError(f"{name} of row {row} must be {rule}, got {column[row]}")
