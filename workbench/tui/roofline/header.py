"""The line that says which step this is, and what is in it."""

from __future__ import annotations

from collections.abc import Hashable

from workbench.tui.chart_pane import ChartPane
from workbench.tui.live.header import transport
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.roofline.state import RooflineState


class RooflineHeader(ChartPane):
    """One line."""

    DEFAULT_CSS = "RooflineHeader { height: 1; }"

    def __init__(self, state: RooflineState) -> None:
        super().__init__(id="roofline-header")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        player = self._state.player
        return self._state.key(), player.playing, player.following, player.speed, player.head

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state, player = self._state, self._state.player
        name = f" {state.store.header.name} "
        x = canvas.text(0, 0, name, palette.ink("background", "foreground"))
        model = state.model()
        gpu = state.store.header.gpu if model is None else model.gpu.name.upper()
        parts = [(f" {gpu} ", palette.ink("data-hit", bold=True)), *transport(palette, player)]
        if player.empty:
            canvas.line(x, 0, parts)
            return
        row, dim, strong = player.steps.at(player.position), palette.ink("data-axis"), palette.ink(
            bold=True)  # fmt: skip
        parts += [
            ("  step ", dim), (f"{player.position:,}", strong), (f"/{player.head:,}", dim),
            ("  prefill ", dim), (f"{row['prefill_tokens']:,}", palette.ink("data-prefill")),
            (" tok  decode ", dim), (f"{row['decode_requests']:,}", palette.ink("data-decode")),
            (" req  context ", dim), (f"{row['decode_context']:,}", strong),
        ]  # fmt: skip
        canvas.line(x, 0, parts)
