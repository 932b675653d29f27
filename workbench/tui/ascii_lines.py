"""`--ascii`: every line of the screen in ASCII, translated where lines leave for the terminal."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_PAIRS: Final = {
    "▁": ".", "▂": ".", "▃": ":", "▄": ":", "▅": "+", "▆": "+", "▇": "#", "█": "#", "▏": "|",
    "▎": "|", "▍": "|", "▌": "|", "▋": "#", "▊": "#", "▉": "#", "▐": "|", "▀": "'", "░": ",",
    "▒": "%", "▓": "X", "■": "#", "□": "o", "▪": "#", "▔": "'", "▕": "|", "▖": ".", "▗": ".",
    "▘": "'", "▝": "'", "▚": "%", "▞": "%", "▙": "#", "▛": "#", "▜": "#", "▟": "#", "─": "-",
    "━": "=", "│": "|", "┃": "|", "┌": "+", "┐": "+", "└": "+", "┘": "+", "├": "+", "┤": "+",
    "┬": "+", "┴": "+", "┼": "+", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "╴": "-", "╶": "-",
    "╵": "|", "╷": "|", "═": "=", "║": "|", "╸": "=", "╺": "=", "╹": "|", "╌": "-", "╻": "|",
    "┏": "+", "┓": "+", "┗": "+", "┛": "+", "·": ".", "•": "*", "●": "*", "○": "o", "◉": "@",
    "◆": "*", "◇": "o", "✓": "v", "✔": "v", "✗": "x", "✘": "x", "▸": ">", "▶": ">", "▹": ">",
    "▾": "v", "▼": "v", "▽": "v", "▴": "^", "▲": "^", "△": "^", "◂": "<", "◀": "<", "→": ">",
    "←": "<", "↑": "^", "↓": "v", "↵": "<", "⏎": "<", "…": "~", "×": "x", "÷": "/", "±": "~",
    "≤": "<", "≥": ">", "≈": "~", "≠": "!", "−": "-", "–": "-", "—": "-", "Δ": "d", "ε": "e",
    "λ": "l", "µ": "u", "μ": "u", "σ": "s", "°": "o", "²": "2", "³": "3", "½": "/", "‘": "'",
    "’": "'", "“": '"', "”": '"', "«": "<", "»": ">", "‹": "<", "›": ">",
    "\N{NO-BREAK SPACE}": " ", "⚠": "!", "⟳": "o", "⌃": "^", "⇧": "^", "␣": "_",
}  # fmt: skip
_BRAILLE: Final = {chr(code): ":" if code != 0x2800 else " " for code in range(0x2800, 0x2900)}
_TABLE: Final = str.maketrans({**_PAIRS, **_BRAILLE})


@lru_cache(8192)
def ascii_text(text: str) -> str:
    """The text in ASCII, cell for cell; what has no likeness becomes `?`."""
    if text.isascii():
        return text
    return text.translate(_TABLE).encode("ascii", "replace").decode("ascii")


class AsciiLines(LineFilter):
    """Translates all text of a line; styles stay."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments in ASCII."""
        del background
        return [
            segment if segment.text.isascii() else Segment(ascii_text(segment.text), *segment[1:])
            for segment in segments
        ]
