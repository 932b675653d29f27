"""Files that are never half there."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.record.atomic_file import read_whole_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [("a\nb\n", ["a", "b"]), ("a\nb\ncut sho", ["a", "b"]), ("cut sho", []), ("", [])],
)
def test_a_line_that_was_cut_short_is_taken_away(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    """What is read are the whole lines, and a line appended next is read after them."""
    path = tmp_path / "steps.partial.jsonl"
    path.write_text(text)
    assert read_whole_lines(path) == lines
    with path.open("a") as file:
        file.write("next\n")
    assert read_whole_lines(path) == [*lines, "next"]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    """Reading makes no file."""
    assert read_whole_lines(tmp_path / "none") == []
    assert not list(tmp_path.iterdir())


def test_what_is_no_text_is_left_as_it_is(tmp_path: Path) -> None:
    """A file that cannot be read is not cut."""
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\n\xfe")
    with pytest.raises(UnicodeDecodeError):
        read_whole_lines(path)
    assert path.read_bytes() == b"\xff\n\xfe"
