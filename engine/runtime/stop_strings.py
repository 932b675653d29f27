"""Finds the strings that end a text while it grows piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one growing text for several strings.

    The string that is complete first ends the text; of several that end at the same character the
    longest. So it does not matter how the text is cut into pieces. A tail that may still become
    one of them is not settled yet.

    Args:
        strings: none of them empty.

    Attributes:
        text: everything pushed so far; after an end, what stands before the string that ended it.
        found: the string that ended it, or None.
    """

    __slots__ = ("_strings", "found", "text")

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError(f"a stop string must not be empty, got {list(strings)}")
        self._strings = tuple(strings)
        self.text = ""
        self.found: str | None = None

    def push(self, piece: str, *, exempt: bool = False) -> bool:
        """Add a piece; True if the text has ended.

        Args:
            piece: what comes next.
            exempt: a string that is complete with this piece does not end the text.
        """
        if not piece or self.found is not None:
            return self.found is not None
        before = len(self.text)
        self.text += piece
        if exempt:
            return False
        best: tuple[int, int] | None = None  # (end, start)
        for string in self._strings:
            # One that is new ends in the piece, so it begins less than its length before it.
            start = self.text.find(string, max(0, before - len(string) + 1))
            if start >= 0 and (best is None or (start + len(string), start) < best):
                best, self.found = (start + len(string), start), string
        if best is not None:
            self.text = self.text[: best[1]]
        return best is not None

    @property
    def settled(self) -> int:
        """Characters of `text` that no stop string can take back any more."""
        if self.found is not None:
            return len(self.text)
        text = self.text
        settled = len(text)
        for string in self._strings:
            for length in range(min(len(string) - 1, len(text)), 0, -1):
                if text.endswith(string[:length]):
                    settled = min(settled, len(text) - length)
                    break
        return settled
