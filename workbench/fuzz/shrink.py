"""Makes a failing run small: fewer operations, then fewer and smaller requests and settings.

Operations are removed by delta debugging (Zeller and Hildebrandt, "Simplifying and isolating
failure-inducing input", 2002): ever smaller chunks are left out as long as the failure stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workbench.fuzz.explore import Failure, repeat
from workbench.fuzz.machine import Operation


def shrink(failure: Failure, out_of_time: Callable[[], bool] = lambda: False) -> Failure:
    """The smallest run of the same kind of failure that is found in the time."""

    def again(candidate: Failure, operations: Sequence[Operation], setup: object) -> Failure | None:
        found = repeat(candidate.machine, candidate.seed, setup, operations)
        return found if found is not None and found.kind == failure.kind else None

    best = again(failure, failure.operations, failure.setup)
    if best is None:
        return failure  # it depends on what is not in the operations: leave it as it was seen
    changed = True
    while changed and not out_of_time():
        best, fewer = _fewer_operations(best, again, out_of_time)
        best, smaller = _smaller_setup(best, again, out_of_time)
        changed = fewer or smaller
    return best


_Again = Callable[[Failure, Sequence[Operation], object], Failure | None]


def _fewer_operations(
    best: Failure, again: _Again, out_of_time: Callable[[], bool]
) -> tuple[Failure, bool]:
    before = len(best.operations)
    chunk = max(1, before // 2)
    while chunk and not out_of_time():
        at = 0
        while at < len(best.operations) and not out_of_time():
            rest = best.operations[:at] + best.operations[at + chunk :]
            found = again(best, rest, best.setup)
            if found is None:
                at += chunk
            else:
                best = found
        chunk //= 2
    return best, len(best.operations) < before


def _smaller_setup(
    best: Failure, again: _Again, out_of_time: Callable[[], bool]
) -> tuple[Failure, bool]:
    machine, changed = best.machine, False
    needed = machine.needed(best.setup, list(best.operations))
    if needed != best.setup and (found := again(best, best.operations, needed)) is not None:
        best, changed = found, True
    progress = True
    while progress and not out_of_time():
        progress = False
        for setup in machine.simpler(best.setup):
            found = again(best, best.operations, setup)
            if found is not None:
                best, progress, changed = found, True, True
                break
    return best, changed
