"""Does a replay decide what its record says? Two input journals, compared call by call.

A journal says `advance(k)` where a simulation skipped k identical decode steps at once. How many it
skips at once is no decision, so k of them equal k pairs of a pure decode plan and its commit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine.core.journal import Call, Op, read_calls

Int64 = NDArray[np.int64]

# Places in `StepPlan.signature()`.
_DECODE_REQUESTS, _NUM_PREFILLS, _NUM_VERIFIES = 3, 18, 19

_SHOWN = 30  # numbers of a call that an error shows


class ReplayError(Exception):
    """A replay differs from its record; the message names the first step that does."""


def check_replay(recorded: Int64, replayed: Int64, replica: int) -> int:
    """Compare a journal with the beginning of a recorded one; returns the steps it planned.

    Raises:
        ReplayError: the two differ before the replayed one ends.
    """
    record, replay = _Reader(recorded), _Reader(replayed)
    while (call := replay.next()) is not None:
        expected = record.next()
        if expected is None:
            raise ReplayError(
                f"the record of replica {replica} ends after {record.steps:,} steps, its replay "
                "goes on"
            )
        if Op.ADVANCE in (call.op, expected.op):
            same = _same_advance(expected, call, record, replay)
        else:
            same = call == expected
        if not same:
            raise ReplayError(_difference(replica, replay.steps, expected, call))
    return replay.steps


class _Reader:
    """Reads the calls of a journal and counts the steps they plan."""

    def __init__(self, journal: Int64) -> None:
        self._calls: Iterator[Call] = read_calls(journal)
        self._put_back: Call | None = None
        self.steps = 0

    def next(self) -> Call | None:
        """The next call, None at the end."""
        call, self._put_back = self._put_back, None
        if call is None:
            call = next(self._calls, None)
        if call is not None and call.op is Op.PLAN and call.args:
            self.steps += 1
        return call

    def advanced(self, call: Call, steps: int) -> None:
        """`steps` of an advance have been compared; what is left of it comes next."""
        self.steps += steps
        left = call.args[0] - steps
        if left:
            self._put_back = Call(Op.ADVANCE, call.now, (left,))


def _same_advance(expected: Call, call: Call, record: _Reader, replay: _Reader) -> bool:
    """Whether two calls, at least one of them an advance, go the same way as far as both go."""
    if call.op is expected.op:
        steps = min(call.args[0], expected.args[0])
        record.advanced(expected, steps)
        replay.advanced(call, steps)
        return call.now == expected.now or call.args != expected.args
    whole, single, whole_reader, reader = (
        (expected, call, record, replay)
        if expected.op is Op.ADVANCE
        else (call, expected, replay, record)
    )
    if not _is_pure_decode(single):
        return False
    whole_reader.advanced(whole, 1)
    commit = reader.next()
    if commit is None:
        return reader is replay
    last = whole.args[0] == 1
    return _is_clean_commit(commit) and (not last or commit.now == whole.now)


def _is_pure_decode(call: Call) -> bool:
    sig = call.args
    return (
        call.op is Op.PLAN
        and len(sig) > _NUM_VERIFIES
        and sig[_DECODE_REQUESTS] > 0
        and not (sig[_NUM_PREFILLS] or sig[_NUM_VERIFIES])
    )


def _is_clean_commit(call: Call) -> bool:
    """Whether a commit only says that the step is done."""
    return call.op is Op.COMMIT and not any(call.args[1:])


def _difference(replica: int, steps: int, expected: Call, call: Call) -> str:
    is_step = call.op is Op.PLAN and call.args
    place = f"step {call.args[0]:,}" if is_step else f"after {steps:,} steps"
    return (
        f"the replay differs from the record, replica {replica}, {place}: "
        f"recorded {_words(expected)}, replayed {_words(call)}"
    )


def _words(call: Call) -> str:
    """A call as short text."""
    numbers = ", ".join(map(str, call.args[:_SHOWN]))
    more = ", ..." if len(call.args) > _SHOWN else ""
    return f"{call.op.name.lower()}({numbers}{more}) at {call.now:,} ns"
