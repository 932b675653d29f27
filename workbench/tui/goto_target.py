"""What a person types after `:`, a step, a request or a time, as a target to go to."""

from __future__ import annotations

import re
from dataclasses import dataclass

EXAMPLES = "step 2200, 1:2200 (replica 1), r456, t 24.7"


@dataclass(frozen=True, slots=True)
class StepTarget:
    """A step; the replica that is looked at unless one is named."""

    step: int
    replica: int | None = None


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """A request by its id."""

    request_id: int


@dataclass(frozen=True, slots=True)
class TimeTarget:
    """An instant, in s since the start of the run."""

    t_s: float


Target = StepTarget | RequestTarget | TimeTarget


class NoTargetError(ValueError):
    """The text names nothing to go to; it says what would."""


def parse_target(text: str) -> Target:
    """The target that a text names; a leading `:` and blanks do not matter.

    Raises:
        NoTargetError: it names none.
    """
    plain = text.strip().removeprefix(":").strip().lower().replace(",", "").replace("_", "")
    if found := re.fullmatch(r"(?:s(?:tep)?)?\s*(?:(\d+):)?(\d+)", plain):
        replica, step = found.groups()
        return StepTarget(int(step), None if replica is None else int(replica))
    if found := re.fullmatch(r"r(?:equest)?\s*(\d+)", plain):
        return RequestTarget(int(found[1]))
    if found := re.fullmatch(r"t(?:ime)?\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|ms)?", plain):
        return TimeTarget(float(found[1]) / (1e3 if found[2] == "ms" else 1.0))
    raise NoTargetError(f"'{text.strip()}' is nothing to go to; for example {EXAMPLES}")
