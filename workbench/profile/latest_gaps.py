"""The gap stories that were measured last in the current folder, for whoever shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from workbench.profile.gap_story import GapStory, read_stories
from workbench.profile.trace import TraceFileError

MEASURED_HERE: Final = Path("profile") / "gaps.json"
"""Where `workbench profile gaps` puts them."""


class LatestStories(NamedTuple):
    """Stories, if there are any.

    Attributes:
        stories: in order.
        source: where they come from, in words.
        trouble: why what is there cannot be shown, or None.
    """

    stories: list[GapStory]
    source: str
    trouble: str | None


def latest_stories() -> LatestStories:
    """Of `profile/gaps.json`."""
    if not MEASURED_HERE.is_file():
        return LatestStories([], f"no {MEASURED_HERE} here", None)
    try:
        return LatestStories(read_stories(MEASURED_HERE), str(MEASURED_HERE), None)
    except TraceFileError as error:
        return LatestStories([], str(MEASURED_HERE), str(error))
