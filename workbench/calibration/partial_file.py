"""A file to which a measurement adds a line as soon as it has something.

So an interrupted measurement goes on where it was. The first line says whose times these are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from simulator.profile import ProfileError
from workbench.record.atomic_file import read_whole_lines
from workbench.record.result_folder import make_folder


class PartialFile:
    """What has been measured so far.

    Args:
        path: beside the file that is to come of it.
        schema: of its lines.
        identity: of what is measured.
        others: what the file holds if its head is another one, for the error.
    """

    def __init__(self, path: Path, schema: str, identity: msgspec.Struct, others: str) -> None:
        self.path = path
        self._head = {"schema": schema, "identity": msgspec.to_builtins(identity)}
        self._others = others

    def read(self, take: Callable[[str], None]) -> None:
        """Hand on each line after the first; a last one that was cut short is taken away.

        Args:
            take: raises ValueError or msgspec.ValidationError if a line is none.

        Raises:
            ProfileError: it is of something else, or damaged.
        """
        try:
            lines = read_whole_lines(self.path)
            if lines and json.loads(lines[0]) != self._head:
                raise ProfileError(
                    f"{self.path} holds {self._others}: delete it, or name another --output-dir"
                )
            for number, line in enumerate(lines[1:], 2):
                try:
                    take(line)
                except (ValueError, msgspec.ValidationError) as error:
                    raise ValueError(f"line {number}: {error}") from None
        except (ValueError, TypeError) as error:
            if isinstance(error, ProfileError):
                raise
            raise ProfileError(
                f"{self.path} is damaged ({error}): delete it, and measuring begins anew"
            ) from None

    def append(self, entry: list[Any] | dict[str, Any]) -> None:
        """Keep a line."""
        make_folder(self.path.parent)
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self._head) + "\n")
            file.write(json.dumps(entry) + "\n")
