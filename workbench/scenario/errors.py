"""What is wrong with a scenario, shown at the place in the file, or in the `--set`, that says it.

    error[S101]: unknown key `burstyness`
      --> bad.yaml:12:3
     12|   burstyness: 0.5
       |   ^^^^^^^^^^
       = help: did you mean `burstiness`?

Codes S1xx are about the file (`CODES` lists them), S2xx about set-ups that physics forbids.
"""

from __future__ import annotations

import difflib
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

CODES: Final[dict[str, str]] = {
    "S100": "the file cannot be read as text",
    "S101": "unknown key",
    "S102": "missing key",
    "S103": "wrong type of value",
    "S104": "not one of the allowed values",
    "S105": "number or text outside its limits",
    "S106": "duplicate key",
    "S107": "not valid YAML",
    "S108": "YAML feature that scenarios do not use",
    "S109": "unknown version of the file format",
    "S110": "not supported yet",
    "S111": "keys that contradict each other",
    "S112": "malformed override",
    "S113": "no such scenario",
    "S114": "a file that the scenario names does not exist",
}

MAX_SHOWN = 30  # errors of one file; more would scroll the first ones away
_LINE_WIDTH = 100
_QUOTE_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Source:
    """A text that errors point into: a scenario file, or the argument of a `--set`.

    Attributes:
        label: the file's name, or `--set`.
        text: all of it.
        order: 0 for the file, 1 for the first override, and so on.
    """

    label: str
    text: str
    order: int = 0
    _line_starts: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]
        object.__setattr__(self, "_line_starts", starts)

    @property
    def is_override(self) -> bool:
        """Whether this is no file."""
        return self.order > 0

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character offset."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Line `number`, from 1, without its end."""
        ends = [*self._line_starts[1:], len(self.text) + 1]
        return self.text[self._line_starts[number - 1] : ends[number - 1] - 1].rstrip("\r")


class Span(NamedTuple):
    """The characters [start, end) of a source."""

    source: Source
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Where each key and each value of a scenario is written.

    Attributes:
        root: where errors about the file as a whole point.
        keys: span of the key at a path.
        values: span of the value at a path; for mappings and lists, of what introduces them.
    """

    root: Span
    keys: dict[tuple[str | int, ...], Span]
    values: dict[tuple[str | int, ...], Span]

    def find(self, path: tuple[str | int, ...], at_key: bool = False) -> Span:
        """The span of a path or, where it is not written, of the closest thing around it."""
        first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
        while path:
            span = first.get(path) or second.get(path)
            if span is not None:
                return span
            path = path[:-1]
        return self.root


@dataclass(frozen=True, slots=True)
class ScenarioError:
    """One problem at one place.

    Attributes:
        code: S1xx or S2xx.
        message: what is wrong, in one sentence without a full stop.
        help: what is allowed or what to do; may have several lines.
        span: the characters to underline, or None if there is no text (a missing file).
        label: the file, where there is no span.
    """

    code: str
    message: str
    help: str = ""
    span: Span | None = None
    label: str = ""

    @classmethod
    def at(
        cls,
        sources: SourceMap,
        path: tuple[str | int, ...],
        code: str,
        message: str,
        help: str = "",  # noqa: A002
        *,
        at_key: bool = False,
    ) -> ScenarioError:
        """A problem with the value (or the key itself) at `path`."""
        return cls(code, message, help, sources.find(path, at_key))

    @property
    def line(self) -> int | None:
        """Line in the file, from 1; None for overrides and missing files."""
        if self.span is None or self.span.source.is_override:
            return None
        return self.span.source.position(self.span.start)[0]

    @property
    def column(self) -> int | None:
        """Column in the file, from 1; None for overrides and missing files."""
        if self.span is None or self.span.source.is_override:
            return None
        return self.span.source.position(self.span.start)[1]

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {printable(self.message)}", *self._place()]
        for number, text in enumerate(self.help.splitlines()):
            mark = "= help:" if number == 0 else "       "
            lines.append(f"   {mark} {printable(text)}")
        return "\n".join(lines)

    def _place(self) -> list[str]:
        if self.span is None:
            return [f"  --> {printable(self.label)}"]
        source, start, end = self.span
        line, column = source.position(start)
        text, pad, width = _excerpt(source.line(line), column - 1, end - start)
        caret = " " * pad + "^" * width
        if source.is_override:
            head = f"  --> {printable(source.label)} "
            return [head + text, " " * len(head) + caret]
        number = f"{line:>3}"
        gutter = " " * len(number)
        place = f"  --> {printable(source.label)}:{line}:{column}"
        return [place, f"{number}| {text}", f"{gutter}| {caret}"]


class ScenarioErrors(Exception):  # noqa: N818
    """A scenario that cannot be used, with everything that is wrong with it.

    `errors` come in the order of the file, those of overrides last. `str()` is what to print.
    """

    def __init__(self, errors: Iterable[ScenarioError]) -> None:
        self.errors = tuple(sorted(dict.fromkeys(errors), key=_place_in_file))
        super().__init__(self.errors)

    def __str__(self) -> str:
        blocks = [str(error) for error in self.errors[:MAX_SHOWN]]
        if len(self.errors) > MAX_SHOWN:
            blocks.append(f"... and {len(self.errors) - MAX_SHOWN} more errors")
        return "\n\n".join(blocks)


def _place_in_file(error: ScenarioError) -> tuple[int, int]:
    return (0, 0) if error.span is None else (error.span.source.order, error.span.start)


def _excerpt(line: str, start: int, length: int) -> tuple[str, int, int]:
    """A readable piece of a line, the columns before the caret, and the caret's width."""
    first = max(0, start - _LINE_WIDTH // 2) if len(line) > _LINE_WIDTH else 0
    shown = printable(line[first : first + _LINE_WIDTH])
    lead = "…" if first else ""
    tail = "…" if first + _LINE_WIDTH < len(line) else ""
    before = shown[: start - first]
    marked = shown[start - first : start - first + length]
    return lead + shown + tail, len(lead) + _columns(before), max(1, _columns(marked))


def _columns(text: str) -> int:
    """Terminal cells that a text takes."""
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def printable(text: str) -> str:
    """The text with tabs as blanks and anything a terminal might obey replaced."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def quoted(value: object) -> str:
    """A value between backticks, shortened."""
    text = printable(str(value))
    return f"`{text}`" if len(text) <= _QUOTE_WIDTH else f"`{text[: _QUOTE_WIDTH - 1]}…`"


def listed(options: Iterable[object]) -> str:
    """The options as text: `a`, `b`, `c`."""
    return ", ".join(f"`{option}`" for option in options)


_TELLING: Final = 3  # letters from which on what only one option begins with is meant


def closest(word: str, options: Sequence[str]) -> str | None:
    """The option that was probably meant, or None."""
    folded = {_fold(option): option for option in options}
    target = _fold(word[:200])
    if target in folded:
        return folded[target]
    longer = [option for option in folded if option.startswith(target)]
    if len(longer) == 1 and len(target) >= _TELLING:
        return folded[longer[0]]
    matches = difflib.get_close_matches(target, folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def _fold(word: str) -> str:
    return word.rsplit("/", 1)[-1].casefold().replace("-", "_").replace(" ", "_")


def did_you_mean(word: str, options: Sequence[str]) -> str:
    """A question for `help`, or "" if nothing is close."""
    match = closest(word, options)
    return f"did you mean `{match}`?" if match else ""
