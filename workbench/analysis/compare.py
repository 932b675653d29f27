"""Two runs side by side: what was different, what came of it, and where their decisions part.

`docs/explain.md` states the rules. The result is plain data; `render` makes text of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analysis.comparison import Comparison
from workbench.analysis.comparison_text import render
from workbench.analysis.divergence import first_divergence
from workbench.analysis.durations import compare_durations
from workbench.analysis.header_diff import header_differences, same_requests
from workbench.analysis.metric_deltas import metric_deltas
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.analysis.source import CachedRun, RunTables
from workbench.record.header import STATUS_TEXTS
from workbench.record.run_record import RunReader

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

__all__ = ["Comparison", "compare_runs", "render"]


def compare_runs(
    a: RunTables,
    b: RunTables,
    fail_over: float | None = None,
    cost_models_a: Mapping[int, CostModel] | None = None,
) -> Comparison:
    """Compare run B with run A.

    Args:
        a: the run to compare with: a simulation or an engine's, whole or cut off, of any detail.
        b: the run to judge.
        fail_over: percent by which a metric may be worse in B before it counts as regressed.
        cost_models_a: replica -> A's cost model, to tell durations from decisions where decisions
            differ. None: those that A's header names.
    """
    name_a, name_b = _name(a), _name(b)
    a, b = CachedRun(a), CachedRun(b)
    paired = same_requests(a, b)
    metrics = metric_deltas(a, b, paired)
    divergence = first_divergence(a, b)
    models = rebuild_cost_models(a) if cost_models_a is None else cost_models_a
    regressed = (
        ()
        if fail_over is None
        else tuple(metric.name for metric in metrics if metric.regressed(fail_over))
    )
    return Comparison(
        name_a=name_a,
        name_b=name_b,
        header=header_differences(a, b),
        paired=paired,
        metrics=metrics,
        divergence=divergence,
        durations=compare_durations(a, b, divergence, paired, models),
        fail_over_percent=fail_over,
        regressed=regressed,
    )


def _name(run: RunTables) -> str:
    """The directory of a recorded run; name, kind and how it ended of any."""
    header = run.header
    status = "" if header.status == "complete" else f", {STATUS_TEXTS[header.status]}"
    if isinstance(run, RunReader):
        return f"{run.path} ({header.name}, {header.kind}{status})"
    return f"{header.name} ({header.kind}{status})"
