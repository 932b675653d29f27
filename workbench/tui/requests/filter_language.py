"""`ttft>200 & hit=0`: which requests to list.

    filter     = all { "|" all }            also: or
    all        = one { "&" one }            also: and
    one        = "!" one | "(" filter ")" | test | state | "r" NUMBER
    test       = FIGURE ("<" | "<=" | ">" | ">=" | "=" | "!=") NUMBER [UNIT]

Times are in ms unless a unit says otherwise (`ttft>1.5s`), `arrival` is in s. A state is one of
`figures.STATES`, or `running`, `finished`, `failed`, `retracted`. A comparison with a figure that a
request does not have yet is false, and so is its opposite.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from workbench.scenario.errors import closest
from workbench.tui.requests.figures import FIGURES, STATES, Bool, Float64, state_codes
from workbench.tui.store.request_book import RequestBook

EXAMPLES: Final = "ttft>200 & hit=0   retracted   e2e>2s | failed   !(out<50)   r456"

Predicate = Callable[[RequestBook], Bool]

_COMPARE: Final[dict[str, Callable[[Float64, float], Bool]]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq,
    "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
_GROUPS: Final = {
    "running": ("prefill", "decode"),
    "finished": ("stop", "length"),
    "failed": ("aborted", "rejected", "error", "unfinished"),
}
_IN_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
_IN_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_IN_TOKENS: Final = {"tok": 1.0, "k": 1e3}
_UNITS: Final[dict[str, dict[str, float]]] = {"ms": _IN_MS, "s": _IN_S, "tok": _IN_TOKENS, "": {}}
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[a-z]*)|(?P<word>[a-z_]\w*)"
    r"|(?P<sign><=|>=|!=|==|&&|\|\||[<>=!&|()]))",
    re.IGNORECASE,
)
_WORDS: Final = {"and": "&", "or": "|", "not": "!", "&&": "&", "||": "|"}


_MOST_TOKENS = 120  # parsing and testing recurse, for each at most once


class FilterError(ValueError):
    """The text is no filter.

    Attributes:
        position: of the character from which on it is none.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, word, sign, end
    text: str
    position: int
    unit: str = ""


def parse_filter(text: str) -> Predicate:
    """The predicate of a filter; an empty text keeps everything that was sent.

    Raises:
        FilterError: it is none, with the place and what would do.
    """
    tokens = _tokens(text)
    if len(tokens) == 1:
        return lambda book: book.seen
    parser = _Parser(tokens)
    found = parser.any_of()
    parser.expect_end()
    return lambda book: found(book) & book.seen


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise FilterError(f"'{text[at]}' means nothing here", at)
        kind = str(match.lastgroup if match.lastgroup != "unit" else "number")
        start = match.start(kind)
        word = match[kind].lower()
        if word in _WORDS:
            kind, word = "sign", _WORDS[word]
        unit = (match["unit"] or "").lower() if kind == "number" else ""
        tokens.append(_Token(kind, word, start, unit))
        at = match.end()
        if len(tokens) > _MOST_TOKENS:
            raise FilterError(f"a filter has at most {_MOST_TOKENS} words and signs", start)
    return [*tokens, _Token("end", "", len(text))]


class _Parser:
    """Recursive descent; each method takes the tokens of what it is named after."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _took(self, sign: str) -> bool:
        if self._next.kind == "sign" and self._next.text == sign:
            self._take()
            return True
        return False

    def any_of(self) -> Predicate:
        found = self._all_of()
        while self._took("|"):
            found = _either(found, self._all_of())
        return found

    def _all_of(self) -> Predicate:
        found = self._one()
        while self._took("&"):
            found = _both(found, self._one())
        return found

    def _one(self) -> Predicate:
        if self._took("!"):
            return _opposite(self._one())
        if self._took("("):
            found = self.any_of()
            if not self._took(")"):
                raise FilterError("a ) is missing", self._next.position)
            return found
        token = self._take()
        if token.kind != "word":
            what = f"'{token.text}'" if token.text else "the end"
            raise FilterError(f"a figure is missing before {what}: {_names()}", token.position)
        return self._test_or_state(token)

    def _test_or_state(self, name: _Token) -> Predicate:
        if name.text in FIGURES:
            sign = self._take()
            if sign.kind != "sign" or sign.text not in _COMPARE:
                raise FilterError(f"{name.text} needs < > = and a number", sign.position)
            return self._comparison(name.text, sign.text, self._take())
        if request := re.fullmatch(r"r(\d+)", name.text):
            number = int(request[1])
            return lambda book: book.column("request_id") == number
        state = _state(name.text)
        if state is None:
            guess = closest(name.text, [*FIGURES, *STATES, *_GROUPS, "retracted"])
            hint = f"did you mean {guess}?" if guess else _names()
            raise FilterError(f"'{name.text}' is no figure: {hint}", name.position)
        return state

    def _comparison(self, name: str, sign: str, value: _Token) -> Predicate:
        figure = FIGURES[name]
        if value.kind != "number":
            raise FilterError(f"a number is missing after {name}{sign}", value.position)
        factor = 1.0
        if value.unit:
            units = _UNITS[figure.unit]
            if value.unit not in units:
                allowed = ", ".join(units) or "no unit"
                message = f"{name} is not measured in {value.unit}: {allowed}"
                raise FilterError(message, value.position)
            factor = units[value.unit]
        compare, limit = _COMPARE[sign], float(value.text) * factor
        return lambda book: _compared(figure.of(book), compare, limit)

    def expect_end(self) -> None:
        if self._next.kind != "end":
            message = f"'{self._next.text}' comes too much; join tests by & or |"
            raise FilterError(message, self._next.position)


def _compared(values: Float64, compare: Callable[[Float64, float], Bool], limit: float) -> Bool:
    return compare(values, limit) & ~np.isnan(values)


def _state(name: str) -> Predicate | None:
    if name == "retracted":
        return lambda book: book.column("retractions") > 0
    names = _GROUPS.get(name, (name,) if name in STATES else ())
    if not names:
        return None
    codes = [STATES.index(state) for state in names]
    return lambda book: np.isin(state_codes(book), codes)


def _both(a: Predicate, b: Predicate) -> Predicate:
    return lambda book: a(book) & b(book)


def _either(a: Predicate, b: Predicate) -> Predicate:
    return lambda book: a(book) | b(book)


def _opposite(a: Predicate) -> Predicate:
    return lambda book: ~a(book)


def _names() -> str:
    return ", ".join(FIGURES)
