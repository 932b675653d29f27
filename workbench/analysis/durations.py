"""How much of a latency difference comes from step durations, and how much from decisions.

Each step of run B is given the duration that run A would have needed for that very batch. What this
takes off a request's latency in B is the *durations* part of the difference; the rest is the
*decisions* part: other batches, other order, other waiting. The first-order reading has limits:
time that a step saves is taken off every request that was there, although an earlier end can also
let idle time grow.

Where A's duration of a step of B is known from, in this order:

1. the same step in A, while all decisions up to it are equal;
2. the same formula: both are simulations whose cost model, model, GPU and replica agree, so the
   duration is the one recorded in B;
3. A's cost model, if it is given: it replaces B's GPU time, the time until an idle GPU begins, and
   the time from a step's end until its commit, and plans the next decode step at that instant; the
   rest of the host's part stays.

Where a step was planned before the one before it was committed, only what its own commit came later
after its end than that one's is its own: the GPU did not wait for either.

Requests that lived through a step of which none of this holds are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from engine.core.events import Columns
from workbench.analysis.divergence import Divergence
from workbench.analysis.predicted_steps import (
    predicted_leads_ns,
    predicted_ns,
    predicted_results_ns,
)
from workbench.analysis.run_facts import pool_of
from workbench.analysis.samples import samples_of
from workbench.analysis.source import Bool, Float64, Int64, RunTables, int64
from workbench.analysis.step_batches import ReplicaSteps, replica_steps
from workbench.metrics import latency
from workbench.record.header import RunHeader

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

SPLIT_PERCENTILES: Final = (50.0, 99.0)


@dataclass(frozen=True, slots=True)
class Split:
    """A difference B - A of one statistic, in ms: `delta_ms = durations_ms + decisions_ms`."""

    name: str
    delta_ms: float
    durations_ms: float
    decisions_ms: float


@dataclass(frozen=True, slots=True)
class StepDurations:
    """Durations of steps with equal decisions, of one kind: decode, prefill or mixed.

    Attributes:
        kind: what the steps hold.
        steps: how many.
        gpu_a_ns, gpu_b_ns: their GPU time.
        period_a_ns, period_b_ns: their whole time, from the commit before (or the planning, if
            later, of those that decode nothing) to their own commit.
    """

    kind: str
    steps: int
    gpu_a_ns: int
    gpu_b_ns: int
    period_a_ns: int
    period_b_ns: int


@dataclass(frozen=True, slots=True)
class DurationComparison:
    """The durations part and the decisions part of the difference between two runs.

    Attributes:
        equal_steps: durations of the steps before the first difference, by kind.
        splits: mean, median and p99 of TTFT, TPOT and E2E; empty if they cannot be told apart.
        requests: requests that the splits are about.
        left_out: requests that ended well in both runs, but lived through steps of B whose duration
            in A is unknown.
        basis: how A's durations of B's steps were known, or why they were not.
    """

    equal_steps: tuple[StepDurations, ...]
    splits: tuple[Split, ...]
    requests: int
    left_out: int
    basis: str


def compare_durations(
    a: RunTables,
    b: RunTables,
    divergence: Divergence,
    paired: bool,
    cost_models_a: Mapping[int, CostModel],
) -> DurationComparison:
    """Compare durations on equal decisions, and split the latency differences.

    Args:
        a: the run to compare with.
        b: the run to judge.
        divergence: of the two.
        paired: both were asked the same requests; without that nothing can be split.
        cost_models_a: replica -> A's cost model, for B's steps after the divergence.
    """
    if divergence.where == "unknown":
        return DurationComparison((), (), 0, 0, "a record without steps tells no durations")
    pairs = {
        replica: (replica_steps(a, replica), replica_steps(b, replica))
        for replica in divergence.equal_steps
    }
    equal_steps = _equal_steps(pairs, divergence.equal_steps)
    if not paired:
        why = "the runs were asked different requests, so no request can be compared with itself"
        return DurationComparison(equal_steps, (), 0, 0, why)
    errors = {
        replica: _step_errors(
            *sides,
            equal=divergence.equal_steps[replica],
            same_formula=_same_formula(a, b, replica),
            model=cost_models_a.get(replica),
        )
        for replica, sides in pairs.items()
    }
    basis = "; ".join(dict.fromkeys(error.basis for error in errors.values()))
    return _split(a, b, errors, equal_steps, basis)


@dataclass(frozen=True, slots=True)
class _StepErrors:
    """B's durations minus A's, for the steps of one replica of B.

    `start_ns`, `end_ns`, `error_ns` int64[n]; `known` bool[n], False where A's duration is unknown.
    """

    start_ns: Int64
    end_ns: Int64
    error_ns: Int64
    known: Bool
    basis: str

    def until(self, t_ns: Int64) -> tuple[Float64, Int64]:
        """Error accumulated, and unknown steps begun, before each instant."""
        if not len(self.end_ns):
            return np.zeros(len(t_ns)), np.zeros(len(t_ns), np.int64)
        i = np.maximum(np.searchsorted(self.start_ns, t_ns, "right") - 1, 0)
        length = np.maximum(self.end_ns[i] - self.start_ns[i], 1)
        into = np.clip((t_ns - self.start_ns[i]) / length, 0.0, 1.0)
        before = np.cumsum(self.error_ns) - self.error_ns
        unknown: Int64 = np.cumsum(~self.known) - ~self.known
        return before[i] + into * self.error_ns[i], unknown[i] + (~self.known[i] & (into > 0))


def _period_ns(steps: Mapping[str, Int64]) -> tuple[Int64, Int64]:
    """Start and end of the time that each step alone accounts for.

    Requests that it decodes were there since the commit before, and waited for the host to plan.
    """
    end, plan = steps["end_ns"], steps["plan_ns"]
    before = np.concatenate((plan[:1], end[:-1]))
    begin = np.where(steps["decode_tokens"] > 0, before, np.maximum(plan, before))
    return np.minimum(begin, end), end


def _step_errors(
    a: ReplicaSteps,
    b: ReplicaSteps,
    equal: int,
    same_formula: bool,
    model: CostModel | None,
) -> _StepErrors:
    start, end = _period_ns(b.steps)
    error, known = np.zeros(len(b), np.int64), np.zeros(len(b), np.bool_)
    start_a, end_a = _period_ns(a.steps)
    error[:equal] = (end - start)[:equal] - (end_a - start_a)[:equal]
    known[:equal] = True
    basis = "A's own steps, as all decisions are equal"
    if equal < len(b):
        basis = "A's own steps up to the first difference"
        rest = np.arange(equal, len(b))
        if same_formula:
            known[rest] = True
            basis += ", the cost model that both share after it"
        elif model is not None:
            gpu = predicted_ns(model, b.steps)[rest]
            leads = int64(b.steps, "start_ns") - b.steps["plan_ns"]
            later = leads - predicted_leads_ns(model, b.steps)
            later += _later_known(a, b, equal, model)
            later += np.maximum(b.steps["plan_ns"] - start, 0)  # A would plan when it commits
            error[rest] = b.steps["gpu_ns"][rest] - gpu + later[rest]
            known[rest] = True
            basis += f", A's cost model ({model.name}) after it"
        else:
            basis += "; after it they are unknown, as no cost model of A was given"
    return _StepErrors(start, end, error, known, basis)


def _later_known(a: ReplicaSteps, b: ReplicaSteps, equal: int, model: CostModel) -> Int64:
    """What each step of B lasts longer because its commit came later after its end than in A."""
    results_a = predicted_results_ns(model, b.steps)
    results_a[:equal] = _results_ns(a.steps)[:equal]
    later = _results_ns(b.steps) - results_a
    in_flight = b.steps["plan_ns"][1:] < b.steps["end_ns"][:-1]
    later[1:] -= np.where(in_flight, later[:-1], 0)
    return later


def _results_ns(steps: Columns) -> Int64:
    """From the end of each step on the GPU to its commit."""
    return int64(steps, "end_ns") - steps["start_ns"] - steps["gpu_ns"]


def _same_formula(a: RunTables, b: RunTables, replica: int) -> bool:
    """Whether both are simulations in which equal batches take equal times."""
    left, right = a.header, b.header
    if not (left.kind == right.kind == "simulation"):
        return False
    if replica >= min(len(left.replicas), len(right.replicas)):
        return False
    return _formula(left, replica) == _formula(right, replica)


def _formula(header: RunHeader, replica: int) -> tuple[object, ...]:
    """All that a simulated step's duration depends on, beside its batch."""
    pool = pool_of(header, replica)
    profile = header.inputs.get("hardware.profile")
    return (
        header.cost_model,
        profile and profile.sha256,
        header.model,
        header.gpu,
        header.scenario.get("model"),
        header.scenario.get("hardware"),
        header.replicas[replica].tensor_parallel_size,
        pool.get("cuda_graph_batch_sizes"),
        pool.get("max_plans_in_flight"),
    )


def _split(
    a: RunTables,
    b: RunTables,
    errors: Mapping[int, _StepErrors],
    equal_steps: tuple[StepDurations, ...],
    basis: str,
) -> DurationComparison:
    left, right = samples_of(a).completed, samples_of(b).completed
    _, rows_a, rows_b = np.intersect1d(left["request_id"], right["request_id"], return_indices=True)
    left = {name: column[rows_a] for name, column in left.items()}
    right = {name: column[rows_b] for name, column in right.items()}
    to_first, to_end, known = _errors_of_requests(right, errors)
    left, right = ({n: c[known] for n, c in columns.items()} for columns in (left, right))
    splits = tuple(_splits(left, right, to_first[known], to_end[known])) if known.any() else ()
    return DurationComparison(equal_steps, splits, int(known.sum()), int((~known).sum()), basis)


def _errors_of_requests(
    requests: Columns, errors: Mapping[int, _StepErrors]
) -> tuple[Float64, Float64, Bool]:
    """B's surplus (ns) in each request's TTFT and E2E, and whether it is known. float64[n] each."""
    n = len(requests["request_id"])
    to_first, to_end, known = np.zeros(n), np.zeros(n), np.zeros(n, np.bool_)
    for replica, error in errors.items():
        rows = np.flatnonzero(requests["replica"] == replica)
        (e0, u0), (e1, _), (e2, u2) = (
            error.until(int64(requests, name)[rows])
            for name in ("arrival_ns", "first_token_ns", "finish_ns")
        )
        to_first[rows], to_end[rows] = e1 - e0, e2 - e0
        known[rows] = u2 == u0
    return to_first, to_end, known


def _splits(a: Columns, b: Columns, to_first: Float64, to_end: Float64) -> list[Split]:
    several = (a["output_tokens"] > 1) & (b["output_tokens"] > 1)
    gaps = np.maximum(int64(b, "output_tokens") - 1, 1)
    found = []
    for name, values_a, values_b, surplus_ns in (
        ("ttft", latency.ttft_ms(a), latency.ttft_ms(b), to_first),
        (
            "tpot",
            latency.tpot_ms(a)[several],
            latency.tpot_ms(b)[several],
            ((to_end - to_first) / gaps)[several],
        ),
        ("e2el", latency.e2el_ms(a), latency.e2el_ms(b), to_end),
    ):
        if len(values_a):
            in_a_time = values_b - surplus_ns / latency.NS_PER_MS
            found += _splits_of(name, values_a, values_b, in_a_time)
    return found


def _splits_of(name: str, a: Float64, b: Float64, in_a_time: Float64) -> list[Split]:
    statistics = [("mean", [float(np.mean(values)) for values in (a, b, in_a_time)])]
    for percent in SPLIT_PERCENTILES:
        label = "median" if percent == 50 else f"p{percent:g}"
        values = [float(np.percentile(values, percent)) for values in (a, b, in_a_time)]
        statistics.append((label, values))
    return [
        Split(f"{label}_{name}_ms", in_b - in_a, in_b - middle, middle - in_a)
        for label, (in_a, in_b, middle) in statistics
    ]


def _equal_steps(
    pairs: Mapping[int, tuple[ReplicaSteps, ReplicaSteps]], equal: Mapping[int, int]
) -> tuple[StepDurations, ...]:
    sums: dict[str, list[int]] = {}
    for replica, (a, b) in pairs.items():
        n = equal[replica]
        prefill = a.steps["prefill_tokens"][:n] > 0
        decode = a.steps["decode_tokens"][:n] > 0
        period_a, period_b = (np.subtract(*_period_ns(side.steps)[::-1])[:n] for side in (a, b))
        for kind, rows in (
            ("decode", decode & ~prefill),
            ("prefill", prefill & ~decode),
            ("mixed", prefill & decode),
        ):
            figures = (
                np.count_nonzero(rows),
                a.steps["gpu_ns"][:n][rows].sum(),
                b.steps["gpu_ns"][:n][rows].sum(),
                period_a[rows].sum(),
                period_b[rows].sum(),
            )
            total = sums.setdefault(kind, [0] * len(figures))
            sums[kind] = [old + int(new) for old, new in zip(total, figures, strict=True)]
    return tuple(StepDurations(kind, *figures) for kind, figures in sums.items() if figures[0])
