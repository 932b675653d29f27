"""The line that says which run this is, where the cursor is, and what the scheduler has."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from workbench.record.header import STATUS_TEXTS, RunHeader
from workbench.tui.chart_pane import ChartPane
from workbench.tui.live.state import LiveState
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.player import MAX, Player

Part = tuple[str, int]
_ROOM_FOR_GAPS = 100
_ROOM_FOR_NAME = 60  # cells from which on the name costs no figure


class HeaderPane(ChartPane):
    """One line, the most important first, so that a narrow screen loses the least."""

    DEFAULT_CSS = "HeaderPane { height: 1; }"

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="header")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state, player = self._state, self._state.player
        return (
            state.key(), player.playing, player.following, player.speed, player.head,
            state.store.status, len(player.log.kv.nodes) if state.paged else 0,
            player.log.kv.backlog > 0, tuple(player.marks), player.loop,
        )  # fmt: skip

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        store, player = self._state.store, self._state.player
        header = store.header
        x = self._which_run(canvas, palette, header) if canvas.width >= _ROOM_FOR_NAME else -1
        parts = transport(palette, player)
        if player.empty:
            parts.append(
                (f"   {_before_the_first_step(header, store.status)}", palette.ink("data-axis"))
            )
            canvas.line(x + 2, 0, parts)
            return
        row = player.steps.at(player.position)
        evicted = int(_total(player, "evicted_pages"))
        retracted = int(_total(player, "retracted"))
        gap = "  " if canvas.width >= _ROOM_FOR_GAPS else " "
        dim, strong = palette.ink("data-axis"), palette.ink(bold=True)
        parts += [
            (f"{gap}t ", dim), (f"{row['end_ns'] / 1e9:,.3f} s", strong),
            (f"{gap}step ", dim), (f"{player.position:,}", strong), (f"/{player.head:,}", dim),
            (f"{gap}run ", dim), (f"{row['running']:,}", palette.ink("data-decode", bold=True)),
            (f"{gap}wait ", dim), _count(row["waiting"], palette, "data-queue"),
            (f"{gap}retr ", dim), _count(retracted, palette, "data-preempt"),
            (f"{gap}evict ", dim), _count(evicted, palette, "data-step"),
        ]  # fmt: skip
        end = canvas.line(x + 2, 0, parts)
        canvas.line(end + 2, 0, self._remarks(palette))

    @staticmethod
    def _which_run(canvas: Canvas, palette: Palette, header: RunHeader) -> int:
        """Which run this is; the x after it."""
        x = canvas.text(0, 0, f" {header.name} ", palette.ink("background", "foreground"))
        kind = "ENGINE" if header.kind == "engine" else "SIM"
        return canvas.text(x + 1, 0, kind, palette.ink("data-hit", bold=True))

    def _remarks(self, palette: Palette) -> list[Part]:
        state, player = self._state, self._state.player
        found: list[Part] = []
        if len(state.store.replicas) > 1:
            of = len(state.store.replicas)
            found.append((f"replica {player.replica}/{of - 1} ", palette.ink("data-transfer")))
        if player.behind and state.store.status == "running":
            found.append((f"+{player.behind:,} steps, end = live ", palette.ink("data-warning")))
        if state.store.status in ("failed", "interrupted"):
            status = STATUS_TEXTS[state.store.header.status]
            found.append((f"{status} ", palette.ink("data-bad", bold=True)))
        if player.position in player.marks:
            found.append(("marked ", palette.ink("data-selected")))
        if player.loop is not None:
            low, high = player.loop
            found.append((f"loop {low:,}-{high:,} ", palette.ink("data-selected")))
        return found


def transport(palette: Palette, player: Player) -> list[Part]:
    """Whether it plays, and how fast."""
    speed = "max" if player.speed == MAX else f"{player.speed:g}x"
    if player.following:
        live = player.store.status == "running"
        return [("● live" if live else "● end", palette.ink("data-good", bold=True))]
    sign = ">" if player.playing else "||"
    return [(f"{sign} {speed}", palette.ink(bold=True))]


def _before_the_first_step(header: RunHeader, status: str) -> str:
    if header.detail == "none":
        return "recorded with --detail none: run it again with --detail pages to see its steps"
    return "waiting for the first step" if status == "running" else "the run has no steps"


def _count(number: int, palette: Palette, colour: str) -> Part:
    ink = palette.ink(colour, bold=True) if number else palette.ink("data-axis")
    return f"{number:,}", ink


def _total(player: Player, name: str) -> int:
    """Sum of a column of steps up to the cursor, from whole blocks of any size."""
    steps, end = player.steps, player.position + 1
    total, at = 0, steps.first
    while at < end:
        level = 0
        while not at % (2 << level) and at + (2 << level) <= end:
            level += 1
        block = at >> level
        total += int(np.sum(steps.blocks(name, level, block, block + 1).sum))
        at += 1 << level
    return total
