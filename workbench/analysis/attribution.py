"""Causes of the latency of every request of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.core.events import Columns
from workbench.analysis.causes import CAUSES, causes_of
from workbench.analysis.decode_share import decode_share
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.analysis.run_facts import graph_batch_sizes
from workbench.analysis.segments import (
    Items,
    Lives,
    Segments,
    build_segments,
    lives_on,
    prefill_items,
)
from workbench.analysis.source import Int64, RunTables, int64, require_tables, starts_of_groups
from workbench.analysis.timeline import ReplicaTimeline, build_timeline

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

NEEDED_TABLES = ("requests", "decode_spans", "steps", "lifecycle", "items")


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """All that the attribution knows of one replica."""

    replica: int
    timeline: ReplicaTimeline
    lives: Lives
    items: Items
    segments: Segments


@dataclass(frozen=True, slots=True)
class Attribution:
    """Causes of the latency of every request; rows are those of the `requests` table.

    Attributes:
        requests: that table.
        views: one per replica that requests reached; -1 collects those that reached none.
        ttft_ns: cause -> int64[n], from arrival to the first token; up to the end of the request
            where no token came. Sums over causes to that time exactly.
        after_ns: cause -> int64[n], from the first token to the end; both together sum to E2E.
        rule: how GPU time was divided between prefill and decode.
    """

    requests: Columns
    views: tuple[ReplicaView, ...]
    ttft_ns: dict[str, Int64]
    after_ns: dict[str, Int64]
    rule: str

    def e2e_ns(self) -> dict[str, Int64]:
        """Cause -> int64[n] from arrival to the end of each request."""
        return {cause: self.ttft_ns[cause] + self.after_ns[cause] for cause in CAUSES}

    def view_of(self, row: int) -> ReplicaView:
        """The replica that the request in `row` of the table was served by."""
        replica = int(self.requests["replica"][row])
        return next(view for view in self.views if view.replica == replica)


def attribute(run: RunTables, cost_models: Mapping[int, CostModel] | None = None) -> Attribution:
    """Attribute the latency of all requests of `run`.

    Args:
        run: must hold the tables that `--detail items` records.
        cost_models: replica -> the cost model of its steps; None: those that its header names.

    Raises:
        MissingDetailError: the run was recorded with less detail.
    """
    require_tables(run, "explaining latency", NEEDED_TABLES)
    requests, steps = run.table("requests"), run.table("steps")
    graphs = {i: graph_batch_sizes(run.header, i) for i in range(len(run.header.replicas))}
    models = rebuild_cost_models(run) if cost_models is None else cost_models
    decode_part, rule = decode_share(steps, models, graphs)
    end = record_end_ns(requests, steps)
    views = tuple(
        _view(run, requests, steps, replica, decode_part, end)
        for replica in np.unique(requests["replica"]).tolist()
    )
    ttft, after = _totals(views, len(requests["request_id"]))
    return Attribution(requests, views, ttft, after, rule)


def record_end_ns(requests: Columns, steps: Columns) -> int:
    """The latest instant that the record knows of; 0 if it is empty."""
    columns = [steps["end_ns"], requests["arrival_ns"], requests["finish_ns"]]
    return max(0, *(int(column.max()) if len(column) else 0 for column in columns))


def _view(
    run: RunTables,
    requests: Columns,
    steps: Columns,
    replica: int,
    decode_part: Int64,
    end_ns: int,
) -> ReplicaView:
    timeline = build_timeline(steps, replica, decode_part)
    lives = lives_on(requests, replica, end_ns)
    items = prefill_items(run.table("items"), lives, timeline, replica)
    segments = build_segments(
        lives, items, timeline, run.table("decode_spans"), run.table("lifecycle"), replica
    )
    return ReplicaView(replica, timeline, lives, items, segments)


def _totals(
    views: tuple[ReplicaView, ...], num_requests: int
) -> tuple[dict[str, Int64], dict[str, Int64]]:
    ttft = {cause: np.zeros(num_requests, np.int64) for cause in CAUSES}
    after = {cause: np.zeros(num_requests, np.int64) for cause in CAUSES}
    for view in views:
        causes = causes_of(view.segments, view.items, view.timeline)
        for phase, totals in ((0, ttft), (1, after)):
            index = np.flatnonzero(view.segments.after_first == phase)
            life = view.segments.life[index]
            groups = starts_of_groups(life)
            rows = view.lives.rows[life[groups]]
            for cause, ns in causes.items():
                if len(groups):
                    totals[cause][rows] = np.add.reduceat(ns[index], groups)
    return ttft, after


def times_ns(requests: Columns, last: str) -> Int64:
    """`last` minus `arrival_ns` of each request, -1 where `last` never came. int64[n]."""
    t = int64(requests, last)
    return np.where(t >= 0, t - int64(requests, "arrival_ns"), -1)
