"""Laws of `Workload.validate`: every broken promise is found, with its column and row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.core.workload import PromptSegments, Workload


def _segments(**changes: Any) -> PromptSegments:
    segments = PromptSegments(
        offsets=np.array([0, 2, 3, 3 + 2]),
        keys=np.array([0, 1, 0, 0, 2]),
        lengths=np.array([4, 5, 4, 4, 1], np.int32),
        output_keys=np.array([3, 4, 5]),
        vocab_size=100,
    )
    return replace(segments, **changes)


def _workload(**changes: Any) -> Workload:
    workload = Workload.from_lengths(
        np.array([0, 10, 10]),
        np.array([9, 4, 5], np.int32),
        np.array([1, 2, 3], np.int32),
        segments=_segments(),
    )
    return replace(workload, **changes)


def _i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_proper_workload_is_valid() -> None:
    """Parents, pauses, aborts and the absence of segments are all allowed."""
    _workload().validate()
    _workload(segments=None).validate()
    _workload(parent=_i32(-1, 0, 1), think_ns=_i64(0, 5, 5), arrival_ns=_i64(9, 0, 0)).validate()
    _workload(abort_after_ns=_i64(-1, 0, 7)).validate()
    Workload.from_lengths(_i64(), _i32(), _i32()).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_ns": _i64(0, 10, 9)}, "arrival_ns of row 2 must be no earlier"),
        ({"arrival_ns": _i64(-1, 10, 10)}, "arrival_ns of row 0 must be at least 0, got -1"),
        ({"parent": _i32(-1, 0, -1), "arrival_ns": _i64(9, 9, 8)}, "arrival_ns of row 2"),
        ({"prompt_tokens": _i32(9, 0, 5)}, "prompt_tokens of row 1 must be at least 1, got 0"),
        ({"prompt_tokens": _i32(9, 3, 5)}, "prompt_tokens of row 1 must be the sum"),
        ({"prompt_tokens": _i64(9, 4, 5)}, r"prompt_tokens must be int32\[3\], got int64\[3\]"),
        ({"output_tokens": _i32(1, 2)}, r"output_tokens must be int32\[3\], got int32\[2\]"),
        ({"output_tokens": _i32(0, 2, 3)}, "output_tokens of row 0"),
        ({"max_tokens": _i32(1, 2, 0)}, "max_tokens of row 2"),
        ({"parent": _i32(-1, 1, -1)}, "parent of row 1 must be an earlier row, got 1"),
        ({"parent": _i32(-1, -2, -1)}, "parent of row 1 must be at least -1"),
        ({"think_ns": _i64(0, 0, -5)}, "think_ns of row 2"),
        ({"abort_after_ns": _i64(-2, 0, 0)}, "abort_after_ns of row 0"),
        ({"segments": _segments(vocab_size=1)}, "vocab_size must be at least 2"),
        ({"segments": _segments(offsets=_i64(0, 2, 3))}, r"offsets\[4\] from 0 to 5"),
        ({"segments": _segments(offsets=_i64(0, 2, 3, 4))}, r"offsets\[4\] from 0 to 5"),
        ({"segments": _segments(offsets=_i64(0, 3, 2, 5))}, "segments.offsets of row 2"),
        ({"segments": _segments(output_keys=_i64(1))}, r"output_keys\[3\]"),
        ({"segments": _segments(lengths=_i32(4, 5, 4, 6, -1))}, "segments.lengths of row 4"),
    ],
)
def test_a_broken_promise_names_column_and_row(changes: dict[str, Any], message: str) -> None:
    """The message says where it is broken and what the rule is."""
    with pytest.raises(ValueError, match=message):
        _workload(**changes).validate()
