"""What all panes of the live screen look at together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from workbench.tui.store.happenings import FILTERS
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import PageState
from workbench.tui.store.player import Player
from workbench.tui.store.request_trace import RequestPages, RequestSteps, pages_of, steps_of
from workbench.tui.store.run_store import RunStore

PAGE_MODES: Final = ("state", "owner", "age", "references")
_FOLD_ROWS: Final = 3000  # of the memory tables per frame, about 4 ms


@dataclass(slots=True)
class LiveState:
    """A run, the cursor in it, and how it is looked at.

    Attributes:
        store, player: the run and the cursor.
        page_mode: what the page map shows, one of `PAGE_MODES`.
        filter: which events are listed, a key of `FILTERS`.
        hover: what the mouse points at, in words.
    """

    store: RunStore
    player: Player
    page_mode: str = PAGE_MODES[0]
    filter: str = next(iter(FILTERS))
    hover: str = ""
    _memory: tuple[tuple[int, int], PageState, TreeState] | None = None
    _chosen_pages: tuple[int, PageState, RequestPages] | None = None
    _chosen_steps: tuple[object, RequestSteps] | None = field(default=None)

    def key(self) -> tuple[object, ...]:
        """What every pane depends on: where the cursor is, how it looks, what is chosen."""
        player = self.player
        return (
            id(self.store),
            player.replica,
            player.position,
            player.zoom,
            player.by_time,
            player.selected_request,
        )

    @property
    def paged(self) -> bool:
        """Whether the run records pages."""
        return self.store.records("memory")

    def catch_up(self) -> None:
        """Fold some of the memory rows that have come; a fast run needs several frames."""
        kv = self.player.log.kv
        if kv.backlog:
            kv.fold(_FOLD_ROWS)

    @property
    def memory_position(self) -> int:
        """The position that the page map shows: the cursor, unless rows up to it still wait."""
        player, kv = self.player, self.player.log.kv
        waiting = kv.next_step()
        if waiting is None or player.empty:
            return player.position
        return min(player.position, player.steps.position_of(waiting - 1))

    def memory(self) -> tuple[PageState, TreeState]:
        """Pages and tree at `memory_position`."""
        player, position = self.player, self.memory_position
        key = (player.replica, position)
        if self._memory is None or self._memory[0] != key:
            log = player.log
            self._memory = (key, log.pages_after(position), log.tree_after(position))
        return self._memory[1], self._memory[2]

    def chosen_pages(self) -> RequestPages | None:
        """Pages and path of the chosen request, if one is."""
        request = self.player.selected_request
        if request is None or not self.paged:
            return None
        pages, tree = self.memory()
        known = self._chosen_pages
        if known is None or known[0] != request or known[1] is not pages:
            known = self._chosen_pages = (request, pages, pages_of(request, pages, tree))
        return known[2]

    def chosen_steps(self) -> RequestSteps | None:
        """Steps of the chosen request, if one is."""
        request, log = self.player.selected_request, self.player.log
        if request is None or self.player.empty or request >= len(self.store.requests):
            return None
        growing = 0 if self.store.requests.ended[request] else log.steps.end
        key = (request, log.number, growing, len(log.items))
        if self._chosen_steps is None or self._chosen_steps[0] != key:
            since_ns = int(self.store.requests.column("first_token_ns")[request])
            since_ns = since_ns if growing else -1
            self._chosen_steps = (key, steps_of(request, log, since_ns))
        return self._chosen_steps[1]
