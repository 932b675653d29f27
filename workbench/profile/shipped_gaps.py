"""Gap stories to show: those measured here last, or else those that come with the workbench."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

from workbench.profile.gap_story import GapStory, read_stories
from workbench.profile.trace import TraceFileError

MEASURED_HERE: Final = Path("profile") / "gaps.json"
SHIPPED: Final = Path(str(files("workbench.profile"))) / "gaps_h200.json"


class KnownStories(NamedTuple):
    """Stories and where they come from.

    Attributes:
        stories: in order.
        source: in words.
        trouble: what is wrong with what was measured here, or None.
    """

    stories: list[GapStory]
    source: str
    trouble: str | None


def known_stories() -> KnownStories:
    """Of `profile/gaps.json` in the current folder, or else the shipped ones."""
    trouble: str | None = None
    if MEASURED_HERE.is_file():
        try:
            return KnownStories(read_stories(MEASURED_HERE), str(MEASURED_HERE), None)
        except TraceFileError as error:
            trouble = str(error)
    return KnownStories(read_stories(SHIPPED), "measured on an H200, comes with the workbench",
                        trouble)  # fmt: skip
