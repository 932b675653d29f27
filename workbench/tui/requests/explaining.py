"""Explanations of a run that may still grow: made from a snapshot of its tables, in a thread."""

from __future__ import annotations

from collections.abc import Callable

from engine.core.events import Columns
from workbench.analysis.attribution import NEEDED_TABLES
from workbench.analysis.explain import RequestExplainer, UnknownRequestError
from workbench.analysis.source import MissingDetailError, RunTables
from workbench.record.header import RunHeader
from workbench.tui.requests.breakdown import MOST_STEPS, Breakdown, breakdown
from workbench.tui.store import RunStore


def frozen(store: RunStore) -> RunTables:
    """The run as it is now, for a thread: copied while it grows, as it is when it has ended."""
    return Snapshot(store) if store.status == "running" else store


class Snapshot:
    """The tables of a run as they are now; whoever appends to the run does not change them."""

    def __init__(self, store: RunStore) -> None:
        self.header: RunHeader = store.header
        self._tables = {name: store.table(name) for name in NEEDED_TABLES}

    def table(self, name: str) -> Columns:
        """As `RunTables.table`."""
        return self._tables[name]


class Explainer:
    """Breaks the TTFTs of a run down, and remembers what is costly about it.

    Args:
        store: the run.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._made: tuple[int, RequestExplainer] | None = None

    @property
    def version(self) -> int:
        """Of what is known of the requests."""
        return self._store.requests.version

    def task(self, request_id: int) -> Callable[[], Breakdown | str]:
        """What a thread is to do for a request: its breakdown, or why there is none.

        Call this where the run is appended to, so that the snapshot is whole.
        """
        version, made = self.version, self._made
        run = frozen(self._store) if made is None or made[0] != version else None

        def work() -> Breakdown | str:
            try:
                explainer = made[1] if made is not None else None
                if run is not None or explainer is None:
                    explainer = RequestExplainer(run or frozen(self._store))
                    self._made = (version, explainer)
                return breakdown(explainer.explain(request_id, MOST_STEPS))
            except (MissingDetailError, UnknownRequestError) as error:
                return str(error)

        return work
