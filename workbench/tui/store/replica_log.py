"""Everything about one replica: its steps, the lives of its requests, its pages and its tree."""

from __future__ import annotations

import numpy as np

from engine.core.events import TABLES, Columns
from workbench.record.header import ReplicaFacts
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.kv_fold import KvFold
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import PageState
from workbench.tui.store.step_log import StepLog


class ReplicaLog:
    """What a run recorded of one replica, in the order of the record.

    Attributes:
        number: of the replica.
        facts: what it was given.
        steps: its steps.
        lifecycle: its rows of that table, in order of time.
        spans: its rows of the table `decode_spans`.
        items: its rows of that table.
        kv: pages and prefix cache.
    """

    def __init__(self, number: int, facts: ReplicaFacts) -> None:
        self.number = number
        self.facts = facts
        self.steps = StepLog()
        self.lifecycle = GrowingTable(TABLES["lifecycle"])
        self.spans = GrowingTable(TABLES["decode_spans"])
        self.items = GrowingTable(TABLES["items"])
        self.kv = KvFold(facts.num_pages, facts.page_size)

    def append(self, tables: dict[str, Columns]) -> None:
        """Add rows of this replica."""
        for name, log in (("decode_spans", self.spans), ("items", self.items)):
            if name in tables:
                log.append(tables[name])
        if "lifecycle" in tables:
            self._append_lifecycle(tables["lifecycle"])
        if "steps" in tables:
            self.steps.append(tables["steps"])
        if "memory" in tables or "radix" in tables:
            self.kv.add(tables.get("memory"), tables.get("radix"))

    def pages_after(self, position: int) -> PageState:
        """Who holds each page after the planning of the step at a position."""
        step = self._folded_to(position)
        return self.kv.pages.after(step)

    def tree_after(self, position: int) -> TreeState:
        """The prefix cache after the planning of the step at a position."""
        step = self._folded_to(position)
        return self.kv.nodes.after(step)

    def drop_before(self, position: int) -> None:
        """Forget steps before a position, and what happened to pages and requests before it."""
        first = self.steps.at(position)
        self.kv.fold()
        self.kv.pages.drop_before(first["step"])
        self.kv.nodes.drop_before(first["step"])
        self.items.drop_before(
            self.items.first + int(np.searchsorted(self.items["step"], first["step"]))
        )
        self.lifecycle.drop_before(
            self.lifecycle.first + int(np.searchsorted(self.lifecycle["t_ns"], first["plan_ns"]))
        )
        if first["decode_iteration"] >= 0:
            last = np.maximum.accumulate(self.spans["first_iteration"] + self.spans["scheduled"])
            gone = int(np.searchsorted(last, first["decode_iteration"]))
            self.spans.drop_before(self.spans.first + gone)
        self.steps.drop_before(position)

    def _append_lifecycle(self, columns: Columns) -> None:
        """Events of one segment in order of time; one that comes late counts as of now."""
        order = np.argsort(columns["t_ns"], kind="stable")
        sorted_columns = {name: column[order] for name, column in columns.items()}
        if len(self.lifecycle):
            newest = self.lifecycle["t_ns"][-1]
            sorted_columns["t_ns"] = np.maximum(sorted_columns["t_ns"], newest)
        self.lifecycle.append(sorted_columns)

    def _folded_to(self, position: int) -> int:
        """The id of the step at a position, everything up to which has been folded."""
        step = self.steps.at(position)["step"] if len(self.steps) else -1
        waiting = self.kv.next_step()
        if waiting is not None and waiting <= step:
            self.kv.fold()
        return step
