"""The first decision in which two runs differ.

Steps of a replica are laid side by side by their number. Two steps are equal if they batch the
same: the same prefill items, the same decoding requests, the same retractions. When each happened
plays no part, so a simulation can be compared with an engine whose steps take other times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.core.events import Detail
from workbench.analysis.source import Int64, RunTables, detail_of, int64
from workbench.analysis.step_batches import BATCH, STATE, ReplicaSteps, StepBatch, replica_steps
from workbench.analysis.timeline import NEVER
from workbench.record.header import STATUS_TEXTS

Where = Literal["equal", "routing", "batch", "length", "unknown"]


@dataclass(frozen=True, slots=True)
class StateDifference:
    """Two equal steps that left the scheduler in different states, before any batch differed."""

    replica: int
    step: int
    what: str
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the decisions of two runs part.

    Attributes:
        where: "equal": nowhere; "routing": a request went to another replica; "batch": a step
            batched something else; "length": equal as far as the shorter run goes; "unknown": the
            records do not hold steps.
        equal_steps: replica -> how many of its first steps are equal.
        compared_steps: replica -> how many steps both runs have.
        replica, step: of the first difference; -1 if there is none.
        t_a_ns, t_b_ns: when it was planned in each run.
        a, b: that step in each run; None where the run has no such step.
        request_ids: requests that the two steps treat differently, ascending.
        sentences: what A did and what B did, in words.
        state: the first difference in the queue or the pages, if one comes before.
        by_counts_only: a record lacks items, so only the sizes of batches could be compared.
    """

    where: Where
    equal_steps: dict[int, int]
    compared_steps: dict[int, int]
    replica: int = -1
    step: int = -1
    t_a_ns: int = -1
    t_b_ns: int = -1
    a: StepBatch | None = None
    b: StepBatch | None = None
    request_ids: tuple[int, ...] = ()
    sentences: tuple[str, ...] = ()
    state: StateDifference | None = None
    by_counts_only: bool = False


@dataclass(frozen=True, slots=True)
class _Pair:
    """One replica of both runs."""

    a: ReplicaSteps
    b: ReplicaSteps

    @property
    def common(self) -> int:
        return min(len(self.a), len(self.b))

    @property
    def with_items(self) -> bool:
        return self.a.has_items and self.b.has_items


def first_divergence(a: RunTables, b: RunTables) -> Divergence:
    """Compare the decisions of two runs, replica by replica, step by step."""
    if min(detail_of(a), detail_of(b)) < Detail.STEPS:
        return Divergence("unknown", {}, {})
    replicas = _replicas(a) | _replicas(b)
    pairs = {i: _Pair(replica_steps(a, i), replica_steps(b, i)) for i in sorted(replicas)}
    equal = {replica: _equal_steps(pair) for replica, pair in pairs.items()}
    compared = {replica: pair.common for replica, pair in pairs.items()}
    state = _first_state_difference(pairs, equal)
    by_counts = not all(pair.with_items for pair in pairs.values())
    found = [
        difference
        for replica, pair in pairs.items()
        if (difference := _of_replica(pair, equal[replica], a, b)) is not None
    ]
    routing = _routing(a, b)
    if routing is not None:
        found.append(routing)
    if not found:
        found = [Divergence("equal", {}, {})]
    first = min(found, key=lambda difference: (difference.where == "length", difference.t_a_ns))
    return Divergence(
        where=first.where,
        equal_steps=equal,
        compared_steps=compared,
        replica=first.replica,
        step=first.step,
        t_a_ns=first.t_a_ns,
        t_b_ns=first.t_b_ns,
        a=first.a,
        b=first.b,
        request_ids=first.request_ids,
        sentences=first.sentences,
        state=state,
        by_counts_only=by_counts,
    )


def _replicas(run: RunTables) -> set[int]:
    return set(np.unique(run.table("steps")["replica"]).tolist())


def _equal_steps(pair: _Pair) -> int:
    """How many steps from the first on are equal in both runs."""
    n = pair.common
    same = np.ones(n, np.bool_)
    for name in ("step", *BATCH):
        same &= pair.a.steps[name][:n] == pair.b.steps[name][:n]
    first = int(np.argmin(same)) if not same.all() else n
    if pair.with_items:
        first = min(first, _first_other_item(pair, first))
    return min(first, _first_other_decode(pair, first))


def _first_other_item(pair: _Pair, limit: int) -> int:
    """Position of the first step below `limit` whose prefill items differ; `limit` if none does."""
    sides = []
    for side in (pair.a, pair.b):
        kept = side.items["step"] < _step_id(side, limit)
        names = ("step", "request_id", "kind", "num_tokens", "context_tokens")
        sides.append(np.stack([side.items[name][kept] for name in names]))
    n = min(side.shape[1] for side in sides)
    differs = (sides[0][:, :n] != sides[1][:, :n]).any(axis=0)
    if differs.any():
        at = int(np.argmax(differs))
        step = min(int(side[0, at]) for side in sides)
    elif sides[0].shape[1] != sides[1].shape[1]:
        longer = max(sides, key=lambda side: side.shape[1])
        step = int(longer[0, n])
    else:
        return limit
    return int(np.searchsorted(pair.a.steps["step"], step))


def _step_id(side: ReplicaSteps, position: int) -> int:
    return int(side.steps["step"][position - 1]) + 1 if position else 0


def _first_other_decode(pair: _Pair, limit: int) -> int:
    """Position of the first step below `limit` that decodes other requests, or `limit`."""
    last_iteration = int(pair.a.steps["decode_iteration"][:limit].max(initial=-1))
    iteration = _first_iteration_apart(
        _stays(pair.a.spans, last_iteration), _stays(pair.b.spans, last_iteration)
    )
    position = pair.a.step_of_iteration(iteration) if iteration >= 0 else NEVER
    return limit if position < 0 else min(position, limit)


def _stays(spans: dict[str, Int64], last_iteration: int) -> Int64:
    """int64[3, m]: request, first and last iteration of each stay, cut off at `last_iteration`."""
    last = np.minimum(spans["first_iteration"] + spans["scheduled"] - 1, last_iteration)
    kept = last >= spans["first_iteration"]
    columns = (spans["request_id"], spans["first_iteration"], last)
    return np.stack([column[kept] for column in columns])


def _first_iteration_apart(a: Int64, b: Int64) -> int:
    """The first iteration with other members in the two runs; NEVER if there is none.

    A stay that only one run has differs at its start, one that ends at different times right after
    the earlier end.
    """
    span = int(max(a[1].max(initial=0), b[1].max(initial=0))) + 1
    keys, inverse = np.unique(
        np.concatenate((a[0] * span + a[1], b[0] * span + b[1])), return_inverse=True
    )
    last_a, last_b = np.full((2, len(keys)), NEVER)
    last_a[inverse[: a.shape[1]]], last_b[inverse[a.shape[1] :]] = a[2], b[2]
    in_both = (last_a >= 0) & (last_b >= 0)
    apart = np.where(in_both, np.minimum(last_a, last_b) + 1, keys % span)[last_a != last_b]
    return int(apart.min()) if len(apart) else NEVER


def _first_state_difference(
    pairs: dict[int, _Pair], equal: dict[int, int]
) -> StateDifference | None:
    found: list[tuple[int, StateDifference]] = []
    for replica, pair in pairs.items():
        n = equal[replica]
        for name in STATE:
            differs = pair.a.steps[name][:n] != pair.b.steps[name][:n]
            if differs.any():
                at = int(np.argmax(differs))
                values = (int(side.steps[name][at]) for side in (pair.a, pair.b))
                step, plan_ns = int(pair.a.steps["step"][at]), int(pair.a.steps["plan_ns"][at])
                found.append((plan_ns, StateDifference(replica, step, name, *values)))
    return min(found, key=lambda entry: entry[0])[1] if found else None


def _of_replica(pair: _Pair, equal: int, a: RunTables, b: RunTables) -> Divergence | None:
    if equal == len(pair.a) == len(pair.b):
        return None
    left = pair.a.batch(equal) if equal < len(pair.a) else None
    right = pair.b.batch(equal) if equal < len(pair.b) else None
    known = left or right
    if known is None:
        return None
    if left is None or right is None:
        shorter, side = ("A", right) if left is None else ("B", left)
        sentences: tuple[str, ...] = (_ended(shorter, pair, a if left is None else b),)
        requests = _requests_of(side)
    else:
        sentences, requests = _describe(pair, left, right, a, b)
    return Divergence(
        where="length" if left is None or right is None else "batch",
        equal_steps={},
        compared_steps={},
        replica=pair.a.replica,
        step=known.step,
        t_a_ns=known.plan_ns if left is None else left.plan_ns,
        t_b_ns=known.plan_ns if right is None else right.plan_ns,
        a=left,
        b=right,
        request_ids=requests,
        sentences=sentences,
    )


def _ended(name: str, pair: _Pair, run: RunTables) -> str:
    how = "" if run.header.status == "complete" else f" ({STATUS_TEXTS[run.header.status]})"
    return f"{name}{how} ends after {pair.common:,} steps of replica {pair.a.replica}, all equal"


def _requests_of(batch: StepBatch | None) -> tuple[int, ...]:
    if batch is None:
        return ()
    return tuple(sorted({*batch.prefills, *batch.decodes}))


def _describe(
    pair: _Pair, left: StepBatch, right: StepBatch, a: RunTables, b: RunTables
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sentences about two steps that differ, and the requests they treat differently."""
    found: dict[int, str] = {}
    prefilled = left.prefills.keys() | right.prefills.keys() if pair.with_items else ()
    for request in sorted(prefilled):
        text = _prefill_sentence(request, pair, left, right, a, b)
        if text is not None:
            found[request] = text
    for verb, in_a, in_b in (
        ("admits", left.admitted, right.admitted),
        ("decodes", left.decodes, right.decodes),
        ("sends back", left.retracted, right.retracted),
    ):
        for request in sorted(in_a ^ in_b):
            does, not_ = ("A", "B") if request in in_a else ("B", "A")
            found.setdefault(request, f"{does} {verb} r{request}, {not_} does not")
    if not found:
        sizes = [
            f"{name}: A {int(pair.a.steps[name][at])}, B {int(pair.b.steps[name][at])}"
            for name in BATCH
            for at in [int(np.searchsorted(pair.a.steps["step"], left.step))]
            if pair.a.steps[name][at] != pair.b.steps[name][at]
        ]
        return tuple(sizes), ()
    return tuple(found.values()), tuple(sorted(found))


def _prefill_sentence(
    request: int, pair: _Pair, left: StepBatch, right: StepBatch, a: RunTables, b: RunTables
) -> str | None:
    in_a, in_b = left.prefills.get(request), right.prefills.get(request)
    if in_a == in_b:
        return None
    if in_a is not None and in_b is not None:
        return f"A prefills {_chunk(request, in_a)}, B {_chunk(request, in_b)}"
    does, not_, chunk = ("A", "B", in_a) if in_a is not None else ("B", "A", in_b)
    side, run, batch = (pair.b, b, right) if not_ == "B" else (pair.a, a, left)
    verb = "admits" if request in (left.admitted | right.admitted) else "prefills"
    text = f"{does} {verb} {_chunk(request, chunk or (0, 0))}, {not_} does not"
    return f"{text}: {_why_not(request, side, run, batch)}"


def _chunk(request: int, chunk: tuple[int, int]) -> str:
    tokens, context = chunk
    return f"r{request} ({tokens:,} tokens after {context:,})"


def _why_not(request: int, side: ReplicaSteps, run: RunTables, batch: StepBatch) -> str:
    """What the run that left a request out shows about it."""
    requests = run.table("requests")
    row = np.flatnonzero(requests["request_id"] == request)
    arrival = int(int64(requests, "arrival_ns")[row[0]]) if len(row) else -1
    if arrival < 0:
        return "it was never sent there"
    if arrival > batch.plan_ns:
        return f"it comes {(arrival - batch.plan_ns) / 1e6:,.3f} ms later there"
    later = side.first_prefill(request, batch.step)
    then = f"there it has its next prefill in step {later:,}" if later >= 0 else "nor ever after"
    return f"{then} (block reason there: {batch.block_reason.name})"


def _routing(a: RunTables, b: RunTables) -> Divergence | None:
    """The first request that reached different replicas."""
    left, right = a.table("requests"), b.table("requests")
    _, rows_a, rows_b = np.intersect1d(left["request_id"], right["request_id"], return_indices=True)
    to_a, to_b = left["replica"][rows_a], right["replica"][rows_b]
    moved = np.flatnonzero((to_a != to_b) & (to_a >= 0) & (to_b >= 0))
    if not len(moved):
        return None
    arrival = int64(left, "arrival_ns")[rows_a[moved]]
    at = moved[int(np.lexsort((left["request_id"][rows_a[moved]], arrival))[0])]
    request = int(left["request_id"][rows_a[at]])
    goes = f"r{request} goes to replica {int(to_a[at])} in A, to replica {int(to_b[at])} in B"
    return Divergence(
        where="routing",
        equal_steps={},
        compared_steps={},
        replica=int(to_a[at]),
        t_a_ns=int(left["arrival_ns"][rows_a[at]]),
        t_b_ns=int(right["arrival_ns"][rows_b[at]]),
        request_ids=(request,),
        sentences=(goes,),
    )
