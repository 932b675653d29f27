"""Colours by name, and the styles that cells are drawn in.

A chart asks for an *ink*: a small number that stands for a foreground, a background and
attributes, all by name. The palette knows what the names are in the present theme. What becomes of
colours and glyphs on a terminal that has few of them is decided where lines leave for it; a chart
only has to know whether it must tell categories apart by shape.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.style import Style
from textual.color import Color

HUES: Final = 12  # colours that tell requests apart; neighbours are far from each other
RAMP: Final = 8  # shades of a quantity, 0 to 7
_HUE_STEP: Final = 5  # coprime to HUES

NORMAL: Final = 0  # the ink of plain text


@dataclass(frozen=True, slots=True)
class Ink:
    """How a cell looks; colours by name, None: those of plain text."""

    fg: str | None = None
    bg: str | None = None
    bold: bool = False
    reverse: bool = False
    underline: bool = False


class Palette:
    """Gives every ink a number and a style.

    Args:
        variables: theme variables by name, without the `$`.
        dark: whether the theme is.
        shapes: whether charts must tell categories apart by glyphs, as there may be no colours.
    """

    def __init__(self, variables: Mapping[str, str], dark: bool, shapes: bool = False) -> None:
        self.shapes = shapes
        self.dark = dark
        self._variables = variables
        self._numbers: dict[Ink, int] = {}
        self.styles: list[Style] = []
        self.ink()

    def ink(
        self,
        fg: str | None = None,
        bg: str | None = None,
        bold: bool = False,
        reverse: bool = False,
        underline: bool = False,
    ) -> int:
        """The number of an ink; the same ink has the same number."""
        ink = Ink(fg, bg, bold, reverse, underline)
        number = self._numbers.get(ink)
        if number is None:
            number = self._numbers[ink] = len(self.styles)
            self.styles.append(self._style(ink))
        return number

    def colour(self, name: str) -> Color:
        """A colour by name: of the theme, `hue-0` to `hue-11`, or a step of a ramp, as `age-3`.

        Raises:
            KeyError: the theme has no such colour.
        """
        family, _, number = name.rpartition("-")
        if family == "hue":
            return self._hue(int(number))
        if family in _RAMPS:
            low, high = (self.colour(end) for end in _RAMPS[family])
            return low.blend(high, int(number) / (RAMP - 1))
        return Color.parse(self._variables[name])

    def _hue(self, number: int) -> Color:
        turn = (number * _HUE_STEP % HUES) / HUES
        light = (0.62, 0.74)[number % 2] if self.dark else (0.42, 0.34)[number % 2]
        red, green, blue = (round(255 * x) for x in colorsys.hls_to_rgb(turn, light, 0.62))
        return Color(red, green, blue)

    def _style(self, ink: Ink) -> Style:
        return Style(
            color=self.colour(ink.fg or "foreground").rich_color,
            bgcolor=self.colour(ink.bg or "background").rich_color,
            bold=ink.bold,
            reverse=ink.reverse,
            underline=ink.underline,
        )


_RAMPS: Final = {
    "age": ("data-age-old", "data-age-new"),
    "refs": ("data-cached", "data-age-new"),
    "unused": ("data-hit", "data-free"),
}
