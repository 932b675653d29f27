"""Laws of the workload that a scenario gives: determinism, limits, aborts and times."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.core.workload import NEVER, PromptSegments, Workload
from workbench.scenario.schema import Scenario
from workbench.workload.random_streams import Stream, generator
from workbench.workload.trace_errors import (
    TooLongError,
    TooLongRowsError,
    TraceError,
    WorkloadError,
)
from workbench.workload.workload import BuiltWorkload, build_workload

TRACES = Path(__file__).parent / "fixtures" / "traces"
SECOND = 1_000_000_000
VOCAB = 32_000

LOGNORMAL = {"kind": "lognormal", "mean": 300.0, "std_dev": 200.0, "min": 4, "max": 2000}
UNIFORM = {"kind": "uniform", "min": 1, "max": 90}
WORKLOADS: dict[str, dict[str, Any]] = {
    "synthetic": {"num_requests": 200, "prompt_len": LOGNORMAL, "output_len": UNIFORM},
    "shared_prefix": {
        "num_requests": 200,
        "num_groups": 8,
        "system_prompt_len": UNIFORM,
        "question_len": {"kind": "zipf", "alpha": 1.1, "max": 500},
        "output_len": UNIFORM,
        "group_skew": 0.8,
    },
    "conversation": {
        "num_conversations": 40,
        "turns": {"kind": "uniform", "min": 1, "max": 6},
        "system_prompt_len": 64,
        "first_prompt_len": LOGNORMAL,
        "user_len": UNIFORM,
        "output_len": LOGNORMAL,
        "think_time_s": {"kind": "lognormal", "mean": 4.0, "std_dev": 2.0, "max": 30.0},
    },
    "trace": {"path": str(TRACES / "mooncake.jsonl")},
}
KINDS = tuple(WORKLOADS)
POISSON = {"kind": "poisson", "request_rate": 10.0}


def _scenario(kind: str, *, load: dict[str, Any] = POISSON, **changes: Any) -> Scenario:
    workload = {"kind": kind, **WORKLOADS[kind], **changes.pop("workload", {})}
    document = {
        "schema": "workbench/scenario/v1",
        "name": "test",
        "seed": 11,
        "model": {"name": "llama-3.1-8b"},
        "hardware": {"gpu": "h200"},
        "workload": workload,
        "load": load,
        **changes,
    }
    return Scenario.model_validate(document)


def _build(kind: str, **changes: Any) -> BuiltWorkload:
    limit = changes.pop("max_context_tokens", None)
    return build_workload(_scenario(kind, **changes), vocab_size=VOCAB, max_context_tokens=limit)


def _columns(workload: Workload) -> dict[str, np.ndarray]:
    columns = {field.name: getattr(workload, field.name) for field in fields(Workload)}
    segments = columns.pop("segments")
    if segments is not None:
        names = (field.name for field in fields(PromptSegments) if field.name != "vocab_size")
        columns |= {f"segments.{name}": getattr(segments, name) for name in names}
    return columns


def _digest(workload: Workload) -> str:
    digest = hashlib.sha256()
    for name, column in _columns(workload).items():
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _changed(a: Workload, b: Workload) -> set[str]:
    before, after = _columns(a), _columns(b)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


ABORTS = {"fraction": 0.3, "after_s": {"kind": "uniform", "min": 1.0, "max": 2.0}}


def _digests() -> str:
    options = {"aborts": ABORTS, "workload": {"high_priority_fraction": 0.3}}
    return " ".join(_digest(_build(kind, **options).workload) for kind in KINDS)


# Determinism


def test_the_same_scenario_gives_the_same_bytes_in_any_process() -> None:
    """Neither another process nor another hash seed changes a byte of any column."""
    script = "import test_workload_build as t; print(t._digests())"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed, path in (
            (seed, os.pathsep.join([str(Path(__file__).parent), *sys.path])) for seed in ("1", "77")
        )
    ]
    assert outputs == [_digests()] * 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trace"])
def test_another_seed_gives_another_workload(kind: str) -> None:
    """The seed reaches the lengths and the times."""
    changed = _changed(_build(kind).workload, _build(kind, seed=12).workload)
    assert {"arrival_ns", "prompt_tokens", "output_tokens"} <= changed


@pytest.mark.parametrize("kind", KINDS)
def test_changing_the_load_changes_arrivals_only(kind: str) -> None:
    """Every component has its own stream, so two loads meet the very same requests."""
    first = _build(kind).workload
    for load in (
        {"kind": "poisson", "request_rate": 20.0},
        {"kind": "gamma", "request_rate": 10.0, "burstiness": 0.5},
        {"kind": "ramp", "start_request_rate": 1.0, "end_request_rate": 9.0},
        {"kind": "constant", "request_rate": 10.0},
        {"kind": "closed_loop", "max_concurrency": 4},
        {"kind": "all_at_once"},
    ):
        assert _changed(first, _build(kind, load=load).workload) == {"arrival_ns"}


def test_changing_one_length_leaves_the_other_alone() -> None:
    """Outputs, aborts and priorities are drawn apart from prompts."""
    first = _build("synthetic", aborts=ABORTS).workload
    other = _build("synthetic", aborts=ABORTS, workload={"output_len": 7}).workload
    assert _changed(first, other) == {"output_tokens", "max_tokens"}
    other = _build("synthetic", aborts={**ABORTS, "fraction": 0.5}).workload
    assert _changed(first, other) == {"abort_after_ns"}
    other = _build("synthetic", aborts=ABORTS, workload={"high_priority_fraction": 0.5}).workload
    assert _changed(first, other) == {"priority"}


def test_streams_are_children_of_the_seed_in_spawn_order() -> None:
    """Stream i draws what numpy's i-th spawned child draws, unlike every other stream."""
    children = np.random.SeedSequence(11).spawn(len(Stream))
    draws = [generator(11, stream).integers(2**63) for stream in Stream]
    assert draws == [np.random.default_rng(child).integers(2**63) for child in children]
    assert len(set(draws)) == len(Stream)


def test_components_are_independent_of_each_other() -> None:
    """Prompts and outputs of one distribution are not correlated."""
    sizes = {"num_requests": 20_000, "prompt_len": LOGNORMAL, "output_len": LOGNORMAL}
    workload = _build("synthetic", workload=sizes).workload
    correlation = np.corrcoef(workload.prompt_tokens, workload.output_tokens)[0, 1]
    assert abs(correlation) < 5 / 20_000**0.5


# Times


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fulfils_the_contract_of_a_workload(kind: str) -> None:
    """Columns, order, parents and segment sums are as `Workload` promises."""
    built = _build(kind, aborts=ABORTS)
    built.workload.validate()
    assert len(built.workload) > 0


def test_conversations_arrive_by_the_load() -> None:
    """The load paces first turns; a follower carries its conversation's arrival."""
    workload = _build("conversation", load={"kind": "constant", "request_rate": 2.0}).workload
    is_first = workload.parent == NEVER
    assert is_first.sum() == 40
    np.testing.assert_array_equal(workload.arrival_ns[is_first], np.arange(40) * SECOND // 2)
    followers = np.flatnonzero(~is_first)
    np.testing.assert_array_equal(
        workload.arrival_ns[followers], workload.arrival_ns[followers - 1]
    )


def test_a_trace_load_replays_the_timestamps() -> None:
    """time_scale 2 takes twice as long."""
    times_ms = np.array([0, 0, 3052, 3053, 6001, 6001, 9100])
    for scale in (1.0, 2.0):
        workload = _build("trace", load={"kind": "trace", "time_scale": scale}).workload
        np.testing.assert_array_equal(workload.arrival_ns, times_ms * int(scale * 1_000_000))


def test_all_loads_reach_the_arrivals() -> None:
    """Each kind of load gives its own process, not a fallback."""
    spans = {}
    for kind, keys in {
        "all_at_once": {},
        "closed_loop": {"max_concurrency": 3},
        "constant": {"request_rate": 10.0},
        "poisson": {"request_rate": 10.0},
        "gamma": {"request_rate": 10.0, "burstiness": 0.2},
        "ramp": {"start_request_rate": 0.0, "end_request_rate": 20.0},
    }.items():
        arrival_ns = _build("synthetic", load={"kind": kind, **keys}).workload.arrival_ns
        spans[kind] = arrival_ns[-1] / SECOND
    assert spans["all_at_once"] == spans["closed_loop"] == 0
    assert spans["constant"] == 19.9
    assert 10 < spans["poisson"] < 40
    assert 18 < spans["ramp"] <= 20
    assert spans["gamma"] not in (0, spans["poisson"])


# Limits


def test_max_tokens_is_the_output_length_by_default() -> None:
    """A benchmark that ignores EOS asks for exactly what it gets."""
    workload = _build("synthetic").workload
    np.testing.assert_array_equal(workload.max_tokens, workload.output_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_limit_cuts_outputs(kind: str) -> None:
    """With a number, all ask for it and the model stops at it or by itself before."""
    free = _build(kind).workload
    limited = _build(kind, workload={"max_tokens": 30}).workload
    assert set(limited.max_tokens.tolist()) == {30}
    np.testing.assert_array_equal(limited.output_tokens, np.minimum(free.output_tokens, 30))


def test_too_long_requests_are_left_to_the_core() -> None:
    """`reject` changes nothing and tells how many will be rejected."""
    free = _build("trace").workload
    built = _build("trace", max_context_tokens=1352)
    assert _digest(built.workload) == _digest(free)
    assert built.too_long_requests == 2
    assert built.truncated_requests == 0
    assert "2 requests exceed 1352 tokens" in built.notes[-1]


def test_too_long_prompts_are_truncated_to_their_beginning() -> None:
    """`truncate` leaves room for max_tokens, keeps the shared beginning and counts."""
    built = _build("trace", too_long="truncate", max_context_tokens=1352)
    assert built.workload.prompt_tokens.tolist() == [1300, 1100, 512, 852, 40, 700, 1349]
    assert built.truncated_requests == 2
    assert built.too_long_requests == 0
    assert built.notes == (
        "2 prompts were truncated to fit 1352 tokens of prompt and max_tokens together",
    )
    segments = built.workload.segments
    assert segments is not None
    first, last = (segments.tokens(row, 1).ids(0, 1300) for row in (0, 6))
    np.testing.assert_array_equal(first, last)


def test_what_truncation_cannot_help_stays_too_long() -> None:
    """A request whose max_tokens alone exceed the context is left to the core."""
    built = _build("trace", too_long="truncate", max_context_tokens=500)
    assert built.workload.prompt_tokens.tolist() == [448, 474, 499, 1537, 40, 491, 497]
    assert built.truncated_requests == 5
    assert built.too_long_requests == 1


def test_a_too_long_row_can_be_an_error_that_names_its_line() -> None:
    """`error` refuses the whole trace, pointing at each row."""
    with pytest.raises(TooLongRowsError) as caught:
        _build("trace", too_long="error", max_context_tokens=1352)
    message = str(caught.value)
    assert "mooncake.jsonl:4: request: found 1537 prompt tokens and 500 max_tokens" in message
    assert "mooncake.jsonl:7: request: found 2048 prompt tokens and 3 max_tokens" in message
    assert "at most 1352 together" in message


def test_too_long_requests_of_other_kinds_can_be_an_error_too() -> None:
    """Without a trace there is no line to name, only a request."""
    with pytest.raises(TooLongError, match=r"request \d+ has \d+ prompt tokens"):
        _build("conversation", too_long="error", max_context_tokens=500)


def test_requests_that_fit_are_not_mentioned() -> None:
    """A limit that nothing exceeds leaves no note."""
    built = _build("trace", too_long="error", max_context_tokens=2051)
    assert built.notes == ()


# Aborts, priorities, notes


def test_aborts_hit_the_fraction_and_follow_their_distribution() -> None:
    """The share of clients that give up, and when, are as asked."""
    workload = _build("synthetic", aborts=ABORTS, workload={"num_requests": 20_000}).workload
    after = workload.abort_after_ns[workload.abort_after_ns != NEVER]
    assert len(after) == pytest.approx(6000, abs=5 * (20_000 * 0.21) ** 0.5)
    assert after.min() >= SECOND
    assert after.max() <= 2 * SECOND
    assert len(np.unique(after)) > 0.99 * len(after)


def test_nobody_aborts_unless_asked() -> None:
    """No aborts in the scenario means none in the workload."""
    assert (_build("synthetic").workload.abort_after_ns == NEVER).all()


def test_a_conversation_has_one_priority() -> None:
    """The high-priority share is of conversations, and all turns keep it."""
    changes = {"workload": {"high_priority_fraction": 0.4, "num_conversations": 2000}}
    workload = _build("conversation", **changes).workload
    is_first = workload.parent == NEVER
    assert workload.priority[is_first].mean() == pytest.approx(0.4, abs=5 * (0.24 / 2000) ** 0.5)
    followers = np.flatnonzero(~is_first)
    np.testing.assert_array_equal(workload.priority[followers], workload.priority[followers - 1])


def test_a_conversation_has_one_tenant() -> None:
    """Tenants are drawn evenly per conversation, all turns keep theirs, and one is the default."""
    assert not _build("conversation").workload.tenant.any()
    changes = {"workload": {"num_tenants": 4, "num_conversations": 2000}}
    workload = _build("conversation", **changes).workload
    is_first = workload.parent == NEVER
    share = np.bincount(workload.tenant[is_first]) / 2000
    np.testing.assert_allclose(share, 0.25, atol=5 * (0.1875 / 2000) ** 0.5)
    followers = np.flatnonzero(~is_first)
    np.testing.assert_array_equal(workload.tenant[followers], workload.tenant[followers - 1])


def test_skipped_rows_and_notes_of_a_trace_are_passed_on() -> None:
    """What the reader left out is known to whoever reports the result."""
    built = _build("trace", workload={"path": str(TRACES / "burstgpt_v1.csv")})
    assert built.trace_format == "burstgpt"
    assert built.skipped_rows == 2
    assert built.notes == ("2 rows without output tokens (failed requests) were skipped",)
    assert built.workload.segments is None


def test_trace_options_reach_the_reader() -> None:
    """Limit, format and block size of the scenario are used."""
    assert len(_build("trace", workload={"limit": 3}).workload) == 3
    with pytest.raises(TraceError, match="one for each 100 tokens"):
        _build("trace", workload={"block_size": 100})
    with pytest.raises(TraceError, match="this looks like mooncake, not like azure"):
        _build("trace", workload={"format": "azure"})


def test_what_cannot_be_built_is_a_workload_error() -> None:
    """Numbers that pass one by one but not together are the user's error, not a crash."""
    with pytest.raises(WorkloadError, match="the last request would arrive after"):
        _build("synthetic", load={"kind": "constant", "request_rate": 1e-9})
