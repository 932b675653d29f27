"""The map of KV pages: every page of the pool, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from textual import events

from workbench.tui.chart_pane import ChartPane, RequestChosen
from workbench.tui.live.state import LiveState
from workbench.tui.pane import palette_of
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import HUES, RAMP, Palette
from workbench.tui.plots.raster import Category, Raster, pixel_rows
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import CACHE, FREE, NO_NODE, PageState
from workbench.tui.store.page_map import (
    Use,
    highest,
    in_rows,
    most_common,
    page_uses,
    pages_per_pixel,
)

Int64 = NDArray[np.int64]

USES: Final = (
    Category("data-free", " "),
    Category("data-cached", "░"),
    Category("data-hit", "▒"),
    Category("data-prefill", "▓"),
    Category("data-decode", "█"),
)
_WORDS: Final = ("free", "cached", "shared", "prefill", "decode")
_ROOM_FOR_WORDS: Final = 60  # columns from which on the heading says how large the pool is
_WIDEST: Final = 6  # pixels of a page, where there is room for more pixels than pages
_CHOSEN: Final = Category("data-selected", "◆")
_LETTERS: Final = "ABCDEFGHIJKL"
_OWNERS: Final = (
    Category("data-free", " "),
    Category("data-age-old", "·"),
    *(Category(f"hue-{i}", _LETTERS[i]) for i in range(HUES)),
)
_AGES: Final = (
    Category("data-free", " "),
    *(Category(f"age-{i}", "..::++##"[i]) for i in range(RAMP)),
)
_REFERENCES: Final = (
    Category("data-free", " "),
    # Most pages are held by nobody or by one request, which must be easy to tell apart.
    *(Category(f"refs-{shade}", "01234567"[i]) for i, shade in enumerate((0, 3, 4, 5, 6, 6, 6, 7))),
)


@dataclass(frozen=True, slots=True)
class _Picture:
    """Pixels, and what they stand for."""

    pixels: Int64
    categories: tuple[Category, ...]
    legend: list[tuple[str, str]]  # colour, words


class PagesPane(ChartPane, can_focus=True):
    """A pixel stands for a few pages: the state of most of them, the youngest owner, and so on."""

    EVERY_S: ClassVar[float] = 0.0

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="pages")
        self._state = state
        self._per_pixel = 1
        self._repeat = 1
        self._pointed: int | None = None  # a page under the mouse

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state = self._state
        player = state.player
        return (
            player.replica, state.memory_position, player.selected_request, state.page_mode,
            self._pointed, state.memory_position < player.position, player.empty,
        )  # fmt: skip

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        facts = state.player.log.facts
        if not state.paged or state.player.empty:
            self._empty(canvas, palette)
            return
        pages, tree = state.memory()
        rows = pixel_rows(palette, canvas.height - 1)
        self._fit(len(pages), rows, canvas.width)
        made = self._pixels(pages, tree)
        pixels, categories = made.pixels, made.categories
        chosen = state.chosen_pages()
        if chosen is not None:
            lit = highest(chosen.pages.astype(np.int64), self._per_pixel) > 0
            pixels = np.where(lit, len(categories), pixels)
            categories = (*categories, _CHOSEN)
        grid = in_rows(pixels, rows, canvas.width // self._repeat).repeat(self._repeat, axis=1)
        Raster(grid, categories).draw(canvas, palette, 0, 1)
        self._heading(canvas, palette, made, facts.num_pages, facts.page_size)

    def _fit(self, pages: int, rows: int, columns: int) -> None:
        """Choose how many pages share a pixel, or how many pixels a page has beside each other."""
        self._per_pixel = pages_per_pixel(pages, rows * columns)
        self._repeat = 1
        if self._per_pixel == 1:
            per_row = -(-pages // rows)
            self._repeat = min(max(columns // per_row, 1), _WIDEST)

    def _empty(self, canvas: Canvas, palette: Palette) -> None:
        if self._state.paged:
            self.empty(canvas, palette, "KV pages", "the map fills with the first step")
            return
        detail = self._state.store.header.detail
        self.empty(
            canvas, palette, "KV pages",
            f"this run was recorded with --detail {detail}",
            "--detail pages fills this pane and the prefix cache",
        )  # fmt: skip

    def _pixels(self, pages: PageState, tree: TreeState) -> _Picture:
        mode, per_pixel = self._state.page_mode, self._per_pixel
        if mode == "owner":
            return _owners(pages, per_pixel)
        if mode == "age":
            return _ages(pages, per_pixel)
        if mode == "references":
            return _references(pages, tree, per_pixel)
        t_ns = self._state.player.t_ns
        use = page_uses(pages, tree, self._state.store.requests, t_ns)
        share = np.bincount(use, minlength=len(Use)) * 100 / len(use)
        order = (Use.DECODE, Use.PREFILL, Use.SHARED, Use.CACHED, Use.FREE)
        legend = [(USES[use_].colour, f"{_WORDS[use_]} {share[use_]:.0f}%") for use_ in order]
        return _Picture(most_common(use, len(Use), per_pixel), USES, legend)

    def _heading(
        self, canvas: Canvas, palette: Palette, made: _Picture, num_pages: int, page_size: int
    ) -> None:
        state = self._state
        scale = f"{self._per_pixel}/px" if self._repeat == 1 else f"{self._repeat} px each"
        about = f"{num_pages:,} x {page_size} tok, {scale}"
        if canvas.width < _ROOM_FOR_WORDS:
            about = scale
        x = self.title(canvas, palette, f"KV {state.page_mode}", about) + 2
        if self._pointed is not None:
            canvas.text(x, 0, self._says(self._pointed), palette.ink("data-selected"))
            return
        if state.memory_position < state.player.position:
            behind = state.player.position - state.memory_position
            x = canvas.text(x, 0, f"{behind:,} steps behind ", palette.ink("data-warning"))
        for colour, words in made.legend:
            if x + len(words) + 2 > canvas.width:
                break
            shape = next((c.shape for c in made.categories if c.colour == colour), "█")
            glyph = (shape if shape != " " else "_") if palette.shapes else "■"
            ink = palette.ink("data-same" if colour == "data-free" else colour)
            x = canvas.text(x, 0, glyph, ink)
            x = canvas.text(x, 0, f" {words} ", palette.ink("data-axis"))

    def _says(self, page: int) -> str:
        """What is known of a page."""
        pages, tree = self._state.memory()
        owner, node = int(pages.owner[page]), int(pages.node[page])
        since = int(pages.since_step[page])
        text = f"page {page:,}: "
        if owner == FREE:
            return text + "free" + (f" since step {since:,}" if since >= 0 else "")
        if owner == CACHE:
            locks = int(tree.locks_of(np.array([node]))[0])
            held = f"held by {locks}" if locks else "evictable"
            text += f"cached, {held}, node {node}, of r{int(pages.writer[page])}"
        else:
            text += f"r{owner}"
        return text + f", since step {since:,}"

    def _page_at(self, x: int, y: int) -> int | None:
        if y < 1 or not self._state.paged or self._state.player.empty:
            return None
        row = (y - 1) * (1 if palette_of(self.app).shapes else 2)
        per_row = self.size.width // self._repeat
        page = (row * per_row + min(x // self._repeat, per_row - 1)) * self._per_pixel
        return page if page < self._state.player.log.facts.num_pages else None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Say what is under the mouse."""
        self._pointed = self._page_at(event.x, event.y)

    def on_leave(self, event: events.Leave) -> None:
        """Show the legend again."""
        del event
        self._pointed = None

    def on_click(self, event: events.Click) -> None:
        """Choose the request that holds what was clicked, or computed it."""
        page = self._page_at(event.x, event.y)
        if page is None:
            return
        pages, _ = self._state.memory()
        here = slice(page, page + self._per_pixel)
        owners = pages.owner[here]
        holders = np.where(owners == CACHE, pages.writer[here], owners)
        holder = int(holders.max(initial=FREE))
        self.post_message(RequestChosen(holder if holder >= 0 else None))


def _owners(pages: PageState, per_pixel: int) -> _Picture:
    owner = highest(pages.owner, per_pixel)
    pixels = np.where(owner >= 0, 2 + owner % HUES, owner - FREE)
    running = len(np.unique(pages.owner[pages.owner >= 0]))
    legend = [("hue-0", f"a hue per request, {running} hold pages"), ("data-age-old", "cached")]
    return _Picture(pixels, _OWNERS, legend)


def _ages(pages: PageState, per_pixel: int) -> _Picture:
    """Of the page of a pixel that changed hands last, on a logarithmic scale of steps."""
    used = pages.owner != FREE
    since = highest(np.where(used, pages.since_step, -1), per_pixel)
    age = np.maximum(pages.step - since, 0)
    shade = RAMP - 1 - np.minimum(np.log2(age + 1) / 2, RAMP - 1).astype(np.int64)
    pixels = np.where(since >= 0, 1 + shade, 0)
    legend = [("age-7", "now"), ("age-4", "60 steps"), ("age-1", "4,000 steps ago and more")]
    return _Picture(pixels, _AGES, legend)


def _references(pages: PageState, tree: TreeState, per_pixel: int) -> _Picture:
    """How many requests hold a page; 0 in the cache alone."""
    locks = np.where(pages.node != NO_NODE, tree.locks_of(pages.node), 1).astype(np.int64)
    held = np.where(pages.owner == FREE, -1, np.minimum(locks, RAMP - 1))
    most = int(locks[pages.owner != FREE].max(initial=0))
    legend = [("refs-0", "0"), ("refs-3", "1"), ("refs-5", "3"), ("refs-7", f"7+ (most {most})")]
    return _Picture(highest(held, per_pixel) + 1, _REFERENCES, legend)
