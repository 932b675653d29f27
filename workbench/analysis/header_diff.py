"""Which facts of two runs differ, and which of those make their metrics incomparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from workbench.analysis.source import RunTables, int64
from workbench.record.header import RunHeader

_ABSENT: Final = "-"
# Of the record itself, or told elsewhere.
_NO_FACTS: Final = frozenset(
    {"name", "format", "status_reason", "segments", "rows", "notes", "replicas", "scenario"}
    | {"scenario_sha256"}
)
# Another question was asked, or asked of other requests: latencies answer different things.
_QUESTION: Final = ("workload", "load", "seed", "measure", "slo", "aborts", "too_long", "status")
# Durations come from elsewhere: differences are not those of the set-up.
_PROFILE_CONTENT: Final = "inputs.hardware.profile.sha256"
_CLOCK: Final = ("kind", "cost_model", "cost_model_notes")
# Facts of an engine; sources of simulated durations.
_OF_ONE_KIND: Final = (
    "engine.", "hardware.profile", "inputs.hardware.profile.", "cost_model_notes"
)  # fmt: skip
_SAID_ELSEWHERE: Final = frozenset(
    {"schema", "name", "description", "seed", "report", "slo", "load.warmup_requests"}
)


@dataclass(frozen=True, slots=True)
class FactDifference:
    """A fact that differs.

    Attributes:
        key: dotted name, as in the header or the scenario.
        a, b: values in words; "-" where a run does not have it.
        unfair: the difference makes the comparison unfair.
        why: what is unfair about it, or "".
    """

    key: str
    a: str
    b: str
    unfair: bool
    why: str


def header_differences(a: RunTables, b: RunTables) -> tuple[FactDifference, ...]:
    """All differing facts, unfair ones first.

    A different workload, load, seed, measurement or objective is unfair: the runs were asked other
    questions. So is another source of durations. What was set up differently is fair as such, it
    may be what the comparison is about, except between a simulation and an engine, which are meant
    to have the same. Where simulated step times come from is no fact of an engine's run.
    """
    left, right = _facts(a.header), _facts(b.header)
    other_executor = a.header.kind != b.header.kind
    if other_executor:  # what only one of them has cannot be the same in the other
        left, right = (_common(facts) for facts in (left, right))
    found = [_requests_difference(a, b)]
    shown: set[tuple[str, str, str]] = set()
    for key in (*left, *(key for key in right if key not in left)):
        values = (left.get(key, _ABSENT), right.get(key, _ABSENT))
        repeated = (key.rpartition(".")[2].partition("[")[0], *values)
        if values[0] != values[1] and repeated not in shown:
            shown.add(repeated)
            found.append(_difference(key, *values, other_executor))
    different = [difference for difference in found if difference is not None]
    return tuple(sorted(different, key=lambda difference: not difference.unfair))


def _common(facts: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in facts.items() if not key.startswith(_OF_ONE_KIND)}


def _difference(key: str, a: str, b: str, other_executor: bool) -> FactDifference:
    top = key.partition(".")[0].partition("[")[0]
    why = ""
    if top in _QUESTION:
        why = "the runs were asked different things"
    elif top in _CLOCK or key == _PROFILE_CONTENT:
        why = "durations come from different sources"
    elif other_executor and top not in ("commit", "version", "detail"):
        why = "a simulation and an engine should be set up alike"
    return FactDifference(key, a, b, bool(why), why)


def same_requests(a: RunTables, b: RunTables) -> bool:
    """Whether both runs were asked the same requests: ids, lengths, limits and tenants agree."""
    columns = ("request_id", "prompt_tokens", "max_tokens", "tenant")
    left, right = a.table("requests"), b.table("requests")
    if len(left["request_id"]) != len(right["request_id"]):
        return False
    order_a, order_b = (np.argsort(t["request_id"], kind="stable") for t in (left, right))
    return all(
        np.array_equal(int64(left, name)[order_a], int64(right, name)[order_b]) for name in columns
    )


def _requests_difference(a: RunTables, b: RunTables) -> FactDifference | None:
    if same_requests(a, b):
        return None
    described = [
        f"{len(run.table('requests')['request_id']):,} requests, "
        f"{int(run.table('requests')['prompt_tokens'].sum()):,} prompt tokens"
        for run in (a, b)
    ]
    return FactDifference(
        "requests", described[0], described[1], True, "the runs were asked different things"
    )


def _facts(header: RunHeader) -> dict[str, str]:
    """Dotted name -> value in words, resolved facts before the scenario they come from."""
    plain: dict[str, Any] = msgspec.to_builtins(header)
    facts = {
        key: value for name, value in plain.items() if name not in _NO_FACTS
        for key, value in _flat(name, value)
    }  # fmt: skip
    facts["replicas"] = str(len(header.replicas))
    for name in header.replicas[0].__struct_fields__ if header.replicas else ():
        values = sorted({str(getattr(replica, name)) for replica in header.replicas})
        facts[name] = " / ".join(values)
    for name, value in header.scenario.items():
        if name not in _SAID_ELSEWHERE:
            facts |= {key: text for key, text in _flat(name, value) if key not in facts}
    return facts


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            return []
        if any(isinstance(inner, Mapping) for inner in value):
            return [pair for i, inner in enumerate(value) for pair in _flat(f"{name}[{i}]", inner)]
        return [(name, ", ".join(str(inner) for inner in value))]
    return [(name, str(value))]
