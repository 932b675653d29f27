"""Requests: all of a run, filtered and sorted, and where the time of the chosen one went."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from workbench.tui.goto_target import StepTarget
from workbench.tui.list_pane import ListPane
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.prompt_bar import PromptBar
from workbench.tui.requests.breakdown import Breakdown, token_gaps_ms
from workbench.tui.requests.breakdown_pane import BreakdownPane, Detail
from workbench.tui.requests.explaining import Explainer
from workbench.tui.requests.figures import FIGURES
from workbench.tui.requests.filter_language import EXAMPLES, FilterError, Predicate, parse_filter
from workbench.tui.requests.guide import REQUESTS_GUIDE
from workbench.tui.requests.list import RequestList
from workbench.tui.requests.order import STATE, Int64, Order, listed
from workbench.tui.saved_state import SavedState
from workbench.tui.store import Player, RunStore
from workbench.tui.workbench_screen import WorkbenchScreen

_LOOK_AGAIN_S: Final = 0.5
_EXPLAIN_AFTER_S: Final = 0.08  # of rest on a request
_IN_THREAD: Final = 50_000  # requests from which on they are listed in a thread
_SORTS: Final = ("arrival", "ttft", "e2e", "tpot", "queue", "prompt", "hit", "out", STATE, "id")


class RequestsScreen(WorkbenchScreen):
    """The requests of a run.

    Args:
        store: the run; it may grow.
        player: whose chosen request follows the cursor of the list.
        saved: where the order is remembered.
    """

    MODE = "requests"
    GUIDE = REQUESTS_GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="requests.filter",
                tooltip="List only some: ttft>200 & hit=0"),
        Binding("o", "sort", "Sort", id="requests.sort", tooltip="Sort by the next column"),
        Binding("O", "reverse", "Reverse", id="requests.reverse", show=False,
                tooltip="Sort the other way round"),
        Binding("enter", "inspect", "Why", id="requests.inspect",
                tooltip="To the parts of its TTFT; enter there goes to a step"),
        Binding("g", "go_to_step", "Go to step", id="requests.go_to_step",
                tooltip="Go to the step that gave its first token"),
        Binding("p", "pages", "Pages", id="requests.pages",
                tooltip="Go to its last step: its KV pages, its path in the prefix cache lit up"),
        Binding("w", "worst", "Worst", id="requests.worst", show=False,
                tooltip="The largest TTFT of those listed"),
        Binding("escape", "back", "Back", id="requests.back",
                tooltip="Back to the list, or clear the filter"),
    ]  # fmt: skip

    def __init__(self, store: RunStore, player: Player, saved: SavedState) -> None:
        super().__init__()
        self._store = store
        self._player = player
        self._saved = saved
        self._order = Order.parse(saved.sort)
        self._filter_text = ""
        self._entered = ""  # the filter in force before one is typed
        self._keep: Predicate = parse_filter("")
        self._version = -1
        self._chosen: tuple[int, int, int] | None = None
        self._found: Breakdown | str | None = None
        self._explainer = Explainer(store)
        self._list = RequestList(store)
        self._breakdown = BreakdownPane()

    def compose(self) -> ComposeResult:
        """List above, the chosen request below."""
        yield ModeTabs(self.MODE)
        yield self._list
        yield self._breakdown
        yield PromptBar()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """List, and again while the run grows."""
        self._list.focus()
        self.set_interval(_LOOK_AGAIN_S, self._look)
        self.call_after_refresh(self._look)

    def on_screen_resume(self) -> None:
        """Show the request that was chosen elsewhere."""
        chosen = self._player.selected_request
        if chosen is not None and chosen != self._list.request_id:
            self.reveal_request(chosen)

    # Listing

    def _look(self) -> None:
        if self.is_current and self._version != self._store.requests.version:
            self._version = self._store.requests.version
            self._arrange(self._player.selected_request)

    def _arrange(self, select: int | None = None) -> None:
        path = self._store.path
        self.query_one(ModeTabs).note(self._store.header.name if path is None else path.name)
        work = partial(listed, self._store.requests, self._keep, self._order)
        if len(self._store.requests) < _IN_THREAD:
            self._listed(work(), select)
            return
        self.run_worker(
            partial(self._list_in_thread, work, select), thread=True, exclusive=True, group="list"
        )

    def _list_in_thread(self, work: Callable[[], Int64], select: int | None) -> None:
        ids = work()
        self.app.call_from_thread(self._listed, ids, select)

    def _listed(self, ids: Int64, select: int | None) -> None:
        self._list.show(ids, self._order, self._filter_text, select)
        self._choose()

    def on_list_pane_moved(self, event: ListPane.Moved) -> None:
        """Another request is chosen."""
        if event.pane is self._list:
            self._choose()

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """A double click looks closer."""
        if event.pane is self._list:
            self.action_inspect()
        else:
            self._breakdown.action_follow()

    def on_request_list_sorted_by(self, event: RequestList.SortedBy) -> None:
        """Sort by a heading."""
        self._sort(self._order.turned(event.name))

    # The chosen request

    def _choose(self) -> None:
        request_id = self._list.request_id
        self._player.selected_request = request_id
        if request_id is None:
            self._chosen = None
            self._breakdown.show(None)
            return
        row = self._store.requests.row(request_id)
        chosen = (request_id, row["first_token_ns"], row["finish_ns"])
        if chosen != self._chosen:
            self._chosen, self._found = chosen, None
            self._show(request_id)
            self.set_timer(_EXPLAIN_AFTER_S, partial(self._explain, request_id))

    def _show(self, request_id: int) -> None:
        found = self._found
        trouble = found if isinstance(found, str) else ""
        whole = found if isinstance(found, Breakdown) else None
        gaps = token_gaps_ms(self._store, request_id) if whole is not None else np.empty(0)
        heading = self._heading(request_id)
        self._breakdown.show(Detail(request_id, heading, whole, gaps, trouble))

    def _heading(self, request_id: int) -> str:
        row = self._store.requests.row(request_id)
        prefill = self._store.items_of_request(request_id)["num_tokens"]
        chunks = f" in {len(prefill)} chunks" if len(prefill) > 1 else ""
        cached = f", {row['cached_tokens']:,} of them cached" if row["cached_tokens"] > 0 else ""
        sent = f"sent at {row['arrival_ns'] / 1e9:,.3f} s" if row["arrival_ns"] >= 0 else "unsent"
        parts = [f"{row['prompt_tokens']:,} prompt tokens{cached}{chunks}",
                 f"{row['output_tokens']:,} out"]  # fmt: skip
        if len(self._store.replicas) > 1:
            parts.append(f"replica {row['replica']}")
        if row["retractions"]:
            again = row["recomputed_tokens"]
            parts.append(f"retracted {row['retractions']}x, {again:,} tokens computed again")
        return " · ".join([sent, *parts])

    def _explain(self, request_id: int) -> None:
        if request_id == self._list.request_id:
            work = self._explainer.task(request_id)
            self.run_worker(
                partial(self._explain_in_thread, request_id, work),
                thread=True, exclusive=True, group="explain",
            )  # fmt: skip

    def _explain_in_thread(self, request_id: int, work: Callable[[], Breakdown | str]) -> None:
        found = work()
        self.app.call_from_thread(self._explained, request_id, found)

    def _explained(self, request_id: int, found: Breakdown | str) -> None:
        if request_id == self._list.request_id:
            self._found = found
            self._show(request_id)

    def on_breakdown_pane_followed(self, event: BreakdownPane.Followed) -> None:
        """Go to the step to blame."""
        self.shell.go_to(StepTarget(event.step, event.replica))

    # Keys

    def action_filter(self) -> None:
        """Ask for a filter."""
        self.query_one(PromptBar).ask("filter", "filter", self._filter_text, EXAMPLES)

    def on_prompt_bar_changed(self, event: PromptBar.Changed) -> None:
        """Filter at each key, as soon as it is a filter."""
        bar = self.query_one(PromptBar)
        try:
            self._filter(event.value)
        except FilterError as error:
            self._filter(self._entered)
            bar.hint(f"at {error.position + 1}: {error}; {self._meanwhile()}", wrong=True)
            return
        about = ", ".join(FIGURES) if not event.value else f"{self._list.count:,} requests"
        bar.hint(about)

    def on_prompt_bar_submitted(self, event: PromptBar.Submitted) -> None:
        """Keep the filter; what is none leaves the one before."""
        try:
            self._filter(event.value)
        except FilterError as error:
            self._filter(self._entered)
            text = f"no filter: at {error.position + 1}: {error}; {self._meanwhile()}"
            self.notify(text, severity="warning", markup=False)
        self._entered = self._filter_text
        self._list.focus()

    def _filter(self, text: str) -> None:
        """List what a filter keeps.

        Raises:
            FilterError: it is none; nothing has changed.
        """
        self._keep = parse_filter(text)
        self._filter_text = text.strip()
        self._arrange()

    def _meanwhile(self) -> str:
        """In words what the list shows while what is typed is no filter."""
        return f"still listed: {self._entered}" if self._entered else "all are listed"

    def on_prompt_bar_cancelled(self, event: PromptBar.Cancelled) -> None:
        """List all again."""
        del event
        self._clear_filter()
        self._list.focus()

    def _clear_filter(self) -> None:
        self._entered = ""
        self._filter("")

    def action_sort(self) -> None:
        """Sort by the next column."""
        at = _SORTS.index(self._order.name) if self._order.name in _SORTS else -1
        self._sort(Order().turned(_SORTS[(at + 1) % len(_SORTS)]))

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self._sort(Order(self._order.name, not self._order.descending))

    def _sort(self, order: Order) -> None:
        self._order, self._saved.sort = order, str(order)
        self._arrange()

    def action_worst(self) -> None:
        """Largest TTFT first, from the top."""
        self._sort(Order("ttft", descending=True))
        self._list.select(0)

    def action_inspect(self) -> None:
        """To the parts of the TTFT."""
        self._breakdown.focus()

    def action_go_to_step(self) -> None:
        """Go to the step that gave the first token, or the last one with it."""
        request_id = self._list.request_id
        if request_id is None:
            return
        steps = self._store.items_of_request(request_id)["step"]
        replica = self._store.requests.row(request_id)["replica"]
        if not len(steps):
            self.notify("no step of it is recorded: that takes detail items", severity="warning")
            return
        self.shell.go_to(StepTarget(int(steps[-1]), replica))

    def action_pages(self) -> None:
        """Go to its last step, where it holds most pages; all charts light it up."""
        request_id = self._list.request_id
        if request_id is None:
            return
        row = self._store.requests.row(request_id)
        if row["finish_ns"] < 0 or row["replica"] < 0:
            self.action_go_to_step()
            return
        player = self._player
        player.go_to_replica(row["replica"])
        player.pause()
        player.seek(max(player.steps.position_at(row["finish_ns"]) - 1, player.steps.first))
        self.shell.action_mode("live")

    def action_back(self) -> None:
        """From the parts to the list; from there to all requests."""
        if self.focused is self._breakdown:
            self._list.focus()
        elif self._filter_text:
            self._clear_filter()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter in the parts is theirs."""
        del parameters
        return not (action == "inspect" and self.focused is self._breakdown)

    # What the shell asks

    def reveal_request(self, request_id: int) -> bool:
        """Put the cursor on a request, without the filter if that hides it."""
        if not (self._list.ids == request_id).any() and self._filter_text:
            self._entered = self._filter_text = ""
            self._keep = parse_filter("")
        self._arrange(request_id)
        return True

    def selection(self) -> dict[str, Any] | None:
        """The chosen request: its row, and the parts of its TTFT."""
        request_id = self._list.request_id
        if request_id is None:
            return None
        found, row = self._found, self._store.requests.row(request_id)
        if not isinstance(found, Breakdown):
            return {"request": row}
        parts = [
            {"cause": part.cause, "ns": part.ns, "percent": part.percent, "blame": part.blame}
            for part in found.parts
        ]
        return {"request": row, "ttft": parts}

    def command_line(self) -> str | None:
        """`workbench explain` of the chosen request."""
        request_id, path = self._list.request_id, self._store.path
        if path is None or request_id is None:
            return None
        return shlex.join(("workbench", "explain", str(path), "--request", json.dumps(request_id)))
