"""The prefix cache as an icicle: what is cached, shared by whom, and how long unused."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from textual import events

from workbench.tui.chart_pane import ChartPane, RequestChosen
from workbench.tui.live.state import LiveState
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.icicle import Icicle, lay_out
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import CACHE

Int64 = NDArray[np.int64]

_SHADES: Final = 6  # of the age of unused nodes
_MIN_LABEL: Final = 4
_THICKEST: Final = 4  # rows of a level where there is room


class RadixPane(ChartPane, can_focus=True):
    """A row per level of the tree, the width of a node its tokens and those below it."""

    EVERY_S: ClassVar[float] = 0.1

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="radix")
        self._state = state
        self._cells: list[Int64] = []  # index of the node in each cell, per row; -1 is none
        self._pointed: int | None = None
        self._laid_out: tuple[TreeState, Icicle] | None = None

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state = self._state
        chosen = state.player.selected_request
        return (
            state.player.replica,
            state.memory_position,
            chosen,
            self._pointed,
            state.player.empty,
        )

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        self._cells = []
        if not state.paged or state.player.empty:
            detail = state.store.header.detail
            lines = (
                ("the tree grows with the first finished prefill",)
                if state.paged
                else (f"recorded with --detail {detail}", "--detail pages fills this pane")
            )
            self.empty(canvas, palette, "prefix cache", *lines)
            return
        _, tree = state.memory()
        if not len(tree) or not int(tree.tokens.sum()):
            self.empty(
                canvas, palette, "prefix cache", "nothing is cached at this step",
                "scheduler.prefix_cache.enabled turns the cache on and off",
            )  # fmt: skip
            return
        icicle = self._layout(tree)
        self._heading(canvas, palette, tree, icicle)
        chosen = state.chosen_pages()
        path = np.array(chosen.path if chosen is not None else (), np.int64)
        lit = np.isin(tree.node, path)
        levels = int(icicle.depth.max()) + 1
        thick = min(max((canvas.height - 2) // max(levels - 1, 1), 1), _THICKEST)
        for row in range(canvas.height - 1):
            level, part = (0, 0) if row == 0 else divmod(row - 1 + thick, thick)
            self._level(canvas, palette, row, level, part == 0, tree, icicle, lit)

    def _layout(self, tree: TreeState) -> Icicle:
        if self._laid_out is None or self._laid_out[0] is not tree:
            self._laid_out = (tree, lay_out(tree))
        return self._laid_out[1]

    def _heading(self, canvas: Canvas, palette: Palette, tree: TreeState, icicle: Icicle) -> None:
        if self._pointed is not None and self._pointed < len(tree):
            at = self._pointed
            text = (
                f"node {int(tree.node[at])}: {int(tree.tokens[at]):,} tok, "
                f"{int(icicle.subtree[at]):,} with all below, held by {int(tree.locks[at])}, "
                f"used {max(tree.step - int(tree.touched_step[at]), 0):,} steps ago"
            )
            self.title(canvas, palette, "prefix cache", "")
            canvas.text(13, 0, text, palette.ink("data-selected"))
            return
        in_use = int((tree.locks > 0).sum())
        about = f"{icicle.tokens:,} tok in {len(tree):,} nodes, {in_use:,} in use  "
        guessed = self._state.player.log.kv.uncertain_splits
        if guessed:
            about += f"({guessed:,} splits uncertain)  "
        x = self.title(canvas, palette, "prefix cache", about)
        dim = palette.ink("data-axis")
        parts = [
            ("█" if palette.shapes else "■", palette.ink("data-decode")), (" in use  ", dim),
            ("▓" if palette.shapes else "■", palette.ink("data-hit")),
            (" unused, fading with age", dim),
        ]  # fmt: skip
        if x + sum(len(text) for text, _ in parts) <= canvas.width:
            canvas.line(x, 0, parts)

    def _level(
        self,
        canvas: Canvas,
        palette: Palette,
        row: int,
        level: int,
        first: bool,
        tree: TreeState,
        icicle: Icicle,
        lit: NDArray[np.bool_],
    ) -> None:
        nodes = np.flatnonzero(icicle.depth == level)
        width = canvas.width
        if not len(nodes):
            self._cells.append(np.full(width, -1, np.int64))
            return
        nodes = nodes[np.argsort(icicle.left[nodes], kind="stable")]
        centre = (np.arange(width) + 0.5) / width
        at = np.maximum(np.searchsorted(icicle.left[nodes], centre, side="right") - 1, 0)
        covered = (icicle.left[nodes][at] <= centre) & (centre < icicle.right[nodes][at])
        cells = np.where(covered, nodes[at], -1)
        self._cells.append(cells)
        y = row + 1
        looks = _looks(palette, tree, lit)
        here = np.flatnonzero(cells >= 0)
        canvas.glyphs[y, here] = looks[0][cells[here]]
        canvas.inks[y, here] = looks[1][cells[here]]
        self._edges(canvas, palette, y, first, cells, tree, lit)

    def _edges(
        self,
        canvas: Canvas,
        palette: Palette,
        y: int,
        labelled: bool,
        cells: Int64,
        tree: TreeState,
        lit: NDArray[np.bool_],
    ) -> None:
        """A line where a node begins, and its label where there is room."""
        starts = np.flatnonzero(np.diff(cells, prepend=-2) != 0)
        ends = np.append(starts[1:], len(cells))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            node = int(cells[start])
            if node < 0 or end - start < 2:
                continue
            colour = _colour(tree, node, bool(lit[node]))
            canvas.text(
                start, y, "▏", palette.ink("background", None if palette.shapes else colour)
            )
            if labelled and end - start >= _MIN_LABEL:
                root = tree.parent[node] < 0
                label = "root" if root else f"r{int(tree.locks[node])}"
                ink = palette.ink("background", colour, bold=bool(lit[node]))
                canvas.text(start + 1, y, label, ink, end)

    def _node_at(self, x: int, y: int) -> int | None:
        if 1 <= y <= len(self._cells) and x < len(self._cells[y - 1]):
            node = int(self._cells[y - 1][x])
            return node if node >= 0 else None
        return None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Say what is under the mouse."""
        self._pointed = self._node_at(event.x, event.y)

    def on_leave(self, event: events.Leave) -> None:
        """Show the legend again."""
        del event
        self._pointed = None

    def on_click(self, event: events.Click) -> None:
        """Choose the request that computed the node's pages."""
        at = self._node_at(event.x, event.y)
        if at is None:
            return
        pages, tree = self._state.memory()
        mine = (pages.node == tree.node[at]) & (pages.owner == CACHE)
        writers = pages.writer[mine]
        self.post_message(RequestChosen(int(writers.max()) if len(writers) else None))


def _shade(tree: TreeState) -> Int64:
    """int64[k], 0 just used to `_SHADES` - 1 long unused; a step in ten."""
    age = np.maximum(tree.step - tree.touched_step, 0)
    return np.asarray(np.minimum(np.log10(age + 1) * 1.5, _SHADES - 1), np.int64)


def _colour(tree: TreeState, node: int, lit: bool) -> str:
    if lit:
        return "data-selected"
    if tree.parent[node] < 0:
        return "data-future"
    if tree.locks[node] > 0:
        return "data-decode"
    return f"unused-{int(_shade(tree)[node])}"


def _looks(
    palette: Palette, tree: TreeState, lit: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Glyph and ink of every node: root, chosen, in use, or a shade of unused."""
    shade = _shade(tree)
    case = np.where(tree.locks > 0, _SHADES, shade)
    case = np.where(tree.parent < 0, _SHADES + 1, case)
    case = np.where(lit, _SHADES + 2, case)
    names = [
        *(f"unused-{i}" for i in range(_SHADES)),
        "data-decode",
        "data-future",
        "data-selected",
    ]
    if palette.shapes:
        glyphs = np.array([ord(g) for g in "▓▒▒░░·█─◆"], np.uint32)
        inks = np.array([palette.ink(name) for name in names], np.uint16)
    else:
        glyphs = np.full(len(names), ord(" "), np.uint32)
        inks = np.array([palette.ink(None, name) for name in names], np.uint16)
    return glyphs[case], inks[case]
