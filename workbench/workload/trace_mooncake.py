"""Traces in Mooncake's form: JSON lines with the hashes of the prompt's blocks.

Source: https://github.com/kvcache-ai/Mooncake (traces of the FAST'25 paper). `timestamp` is in ms;
equal `hash_ids` mean equal text up to and including that block of, there, 512 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from engine.core.workload import Int64
from workbench.workload.lengths import MAX_TOKENS
from workbench.workload.trace_errors import Problems, shortened
from workbench.workload.trace_lines import Lines
from workbench.workload.trace_rows import Rows

DEFAULT_BLOCK_SIZE: Final = 512
_NS_PER_MS = 1_000_000
_MAX_MS = 9_000_000_000_000  # fits int64 nanoseconds
_MAX_HASH_ID = 2**63 - 1
_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_HashId = Annotated[int, Meta(ge=0, le=_MAX_HASH_ID)]

EXAMPLE_LINE: Final = (
    '{"timestamp": 0, "input_length": 600, "output_length": 52, "hash_ids": [0, 1]}'
)
_EXPECTED: Final = {
    "timestamp": f"milliseconds from 0 to {_MAX_MS}",
    "input_length": f"a whole number of tokens from 0 to {MAX_TOKENS}",
    "output_length": f"a whole number of tokens from 0 to {MAX_TOKENS}",
    "hash_ids": f"a list of whole numbers from 0 to {_MAX_HASH_ID}",
}


class _Line(msgspec.Struct, gc=False):
    timestamp: Annotated[int, Meta(ge=0, le=_MAX_MS)] | Annotated[float, Meta(ge=0, le=_MAX_MS)]
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: list[_HashId]


class MooncakeParser:
    """Parses JSON lines whose hash ids stand for `block_size` prompt tokens each."""

    __slots__ = ("_block_size", "_decode")

    prompt_field = "input_length"

    def __init__(self, block_size: int = DEFAULT_BLOCK_SIZE) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self._block_size = block_size
        self._decode = msgspec.json.Decoder(_Line).decode

    def parse(self, lines: Lines, problems: Problems) -> Rows:
        parsed: list[_Line] = []
        kept: list[int] = []
        for i, text in enumerate(lines.texts):
            try:
                parsed.append(self._decode(text))
            except _BAD_JSON as error:
                problems.add(int(lines.numbers[i]), *_explained(text, error))
            else:
                kept.append(i)
        rows = _columns(lines.numbers[kept], parsed)
        self._check_counts(rows, problems)
        return rows

    def _check_counts(self, rows: Rows, problems: Problems) -> None:
        expected = -(-rows.prompt_tokens // self._block_size)
        for row in np.flatnonzero(rows.hash_counts != expected).tolist():
            problems.add(
                int(rows.lines[row]),
                "hash_ids",
                f"{rows.hash_counts[row]} ids",
                f"{expected[row]}: one for each {self._block_size} tokens of the "
                f"{rows.prompt_tokens[row]} in input_length",
            )


def _columns(numbers: Int64, parsed: Sequence[_Line]) -> Rows:
    n = len(parsed)
    counts = np.fromiter((len(line.hash_ids) for line in parsed), np.int64, n)
    return Rows(
        lines=numbers,
        time_ns=np.fromiter((_time_ns(line.timestamp) for line in parsed), np.int64, n),
        prompt_tokens=np.fromiter((line.input_length for line in parsed), np.int64, n),
        output_tokens=np.fromiter((line.output_length for line in parsed), np.int64, n),
        hash_counts=counts,
        hash_ids=np.fromiter(
            chain.from_iterable(line.hash_ids for line in parsed), np.int64, int(counts.sum())
        ),
    )


def _time_ns(timestamp_ms: float) -> int:
    """Exact for integers; `int * int` stays an int."""
    return round(timestamp_ms * _NS_PER_MS)


def _explained(text: bytes, error: Exception) -> tuple[str, str, str]:
    """Field, what was found there, and what was expected."""
    named = re.search(r"`\$\.(\w+)|required field `(\w+)`", str(error))
    field = (named[1] or named[2]) if named else ""
    try:
        values = msgspec.json.decode(text)
    except _BAD_JSON as broken:  # a field may be wrong before the JSON is
        field, error = "", broken
    if field not in _EXPECTED:
        found = shortened(text.decode("utf-8", "replace"))
        return "line", f"{found} ({error})", f"JSON like {EXAMPLE_LINE}"
    found = shortened(values[field]) if field in values else "nothing"
    return field, found, _EXPECTED[field]
