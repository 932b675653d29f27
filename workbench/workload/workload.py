"""A scenario's workload in columns: what is asked (`prompts`) and when it arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.core.workload import NEVER, Int32, Int64, Workload
from workbench.scenario import lengths as scenario_lengths
from workbench.scenario import traffic as scenario_traffic
from workbench.scenario.schema import Scenario
from workbench.workload import arrivals, prompts
from workbench.workload.lengths import (
    Distribution,
    Fixed,
    Lognormal,
    Recorded,
    Uniform,
    UniformWhole,
    Zipf,
    sample_ns,
)
from workbench.workload.prompts import Requests
from workbench.workload.random_streams import Stream, generator
from workbench.workload.trace_errors import Problems, TooLongError, TooLongRowsError, WorkloadError
from workbench.workload.traces import Trace, TraceFormat, read_trace

TooLong = Literal["reject", "truncate", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltWorkload:
    """A workload and what its making did to the scenario's wishes.

    Attributes:
        workload: for the driver.
        trace_format: what the trace was read as, None without a trace.
        skipped_rows: trace rows left out because they had no output.
        truncated_requests: prompts shortened to fit, under `too_long: truncate`.
        too_long_requests: requests that cannot fit and that the core will reject.
        notes: all of this and more in words, for the result's header.
    """

    workload: Workload
    trace_format: TraceFormat | None = None
    skipped_rows: int = 0
    truncated_requests: int = 0
    too_long_requests: int = 0
    notes: tuple[str, ...] = ()


def build_workload(
    scenario: Scenario,
    *,
    vocab_size: int,
    max_context_tokens: int | None = None,
) -> BuiltWorkload:
    """Make the requests of a scenario; the same scenario gives the same bytes, always.

    Args:
        scenario: its `workload`, `load`, `aborts`, `too_long` and `seed` are used.
        vocab_size: synthetic token ids are below it.
        max_context_tokens: a request whose prompt_tokens + max_tokens exceed it can never be
            served: the smaller of the model's context length and the KV pool; None: not checked.

    Raises:
        TraceError: the trace cannot be used, or has too long a row under `too_long: error`.
        WorkloadError: anything else that cannot be built.
    """
    try:
        trace = _trace(scenario.workload)
        requests = _requests(scenario, trace, vocab_size)
        max_tokens = _max_tokens(scenario, requests)
        fit = _fitted(requests, max_tokens, scenario.too_long, max_context_tokens, trace)
        workload = _workload(scenario, fit.requests, max_tokens, trace)
        workload.validate()
    except ValueError as error:
        raise WorkloadError(f"the workload cannot be built: {error}") from error
    return BuiltWorkload(
        workload=workload,
        trace_format=trace.format if trace else None,
        skipped_rows=trace.skipped_rows if trace else 0,
        truncated_requests=fit.truncated,
        too_long_requests=fit.too_long,
        notes=(*(trace.notes if trace else ()), *fit.notes),
    )


def _trace(workload: scenario_traffic.Workload) -> Trace | None:
    if not isinstance(workload, scenario_traffic.TraceWorkload):
        return None
    return read_trace(
        workload.path,
        trace_format=workload.format,
        block_size=workload.block_size,
        limit=workload.limit,
    )


def _requests(scenario: Scenario, trace: Trace | None, vocab_size: int) -> Requests:
    workload, seed = scenario.workload, scenario.seed
    limit = None if workload.max_tokens == "output_len" else workload.max_tokens
    if trace is not None:
        return prompts.trace_requests(trace, vocab_size=vocab_size, max_tokens=limit)
    match workload:
        case scenario_traffic.SyntheticWorkload():
            return prompts.synthetic_requests(
                seed,
                num_requests=workload.num_requests,
                prompt_len=_length(workload.prompt_len),
                output_len=_length(workload.output_len),
                max_tokens=limit,
            )
        case scenario_traffic.SharedPrefixWorkload():
            return prompts.shared_prefix_requests(
                seed,
                num_requests=workload.num_requests,
                num_groups=workload.num_groups,
                group_skew=workload.group_skew,
                system_prompt_len=_length(workload.system_prompt_len),
                question_len=_length(workload.question_len),
                output_len=_length(workload.output_len),
                vocab_size=vocab_size,
                max_tokens=limit,
            )
        case scenario_traffic.ConversationWorkload():
            first = workload.first_prompt_len
            return prompts.conversation_requests(
                seed,
                num_conversations=workload.num_conversations,
                turns=_length(workload.turns),
                system_prompt_len=_length(workload.system_prompt_len),
                first_prompt_len=None if first is None else _length(first),
                user_len=_length(workload.user_len),
                output_len=_length(workload.output_len),
                think_time_s=_duration(workload.think_time_s),
                vocab_size=vocab_size,
                max_tokens=limit,
            )
        case _:
            raise WorkloadError(f"workload kind {workload.kind!r} cannot be built")


def _length(length: scenario_lengths.Length) -> Distribution:
    match length:
        case scenario_lengths.FixedLength():
            return Fixed(length.value)
        case scenario_lengths.UniformLength():
            return UniformWhole(length.min, length.max)
        case scenario_lengths.LognormalLength():
            return Lognormal(length.mean, length.std_dev, length.min, length.max)
        case scenario_lengths.ZipfLength():
            return Zipf(length.alpha, length.min, length.max)
        case scenario_lengths.RecordedLength():
            return Recorded(length.values)


def _duration(duration: scenario_lengths.Duration) -> Distribution:
    match duration:
        case scenario_lengths.FixedDuration():
            return Fixed(duration.value)
        case scenario_lengths.UniformDuration():
            return Uniform(duration.min, duration.max)
        case scenario_lengths.LognormalDuration():
            return Lognormal(duration.mean, duration.std_dev, duration.min, duration.max)


def _max_tokens(scenario: Scenario, requests: Requests) -> Int32:
    limit = scenario.workload.max_tokens
    if limit == "output_len":
        return requests.output_tokens
    return np.full(len(requests), limit, np.int32)


@dataclass(frozen=True, slots=True)
class _Fit:
    requests: Requests
    truncated: int = 0
    too_long: int = 0
    notes: tuple[str, ...] = ()


def _fitted(
    requests: Requests,
    max_tokens: Int32,
    too_long: TooLong,
    max_context_tokens: int | None,
    trace: Trace | None,
) -> _Fit:
    if max_context_tokens is None:
        return _Fit(requests)
    room = max_context_tokens - max_tokens.astype(np.int64)  # tokens left for the prompt
    over = requests.prompt_tokens > room
    if not over.any():
        return _Fit(requests)
    if too_long == "error":
        _refuse(requests, max_tokens, np.flatnonzero(over), max_context_tokens, trace)
    cut = over & (room >= 1) if too_long == "truncate" else np.zeros_like(over)
    truncated, left = int(cut.sum()), int((over & ~cut).sum())
    if truncated:
        lengths = np.where(cut, room, requests.prompt_tokens).astype(np.int32)
        requests = requests.with_prompts_cut(lengths)
    limit = f"{max_context_tokens} tokens of prompt and max_tokens together"
    notes = []
    if truncated:
        notes.append(f"{truncated} prompts were truncated to fit {limit}")
    if left:
        notes.append(f"{left} requests exceed {limit} and will be rejected")
    return _Fit(requests, truncated, left, tuple(notes))


def _refuse(
    requests: Requests,
    max_tokens: Int32,
    rows: Int64,
    max_context_tokens: int,
    trace: Trace | None,
) -> None:
    """Raise the error of `too_long: error` for the given rows, of which there is at least one."""
    expected = f"at most {max_context_tokens} together"
    found = [
        f"{requests.prompt_tokens[row]} prompt tokens and {max_tokens[row]} max_tokens"
        for row in rows.tolist()
    ]
    if trace is None:
        raise TooLongError(
            f"{len(rows)} requests are too long (`too_long: error`); request {rows[0]} has "
            f"{found[0]}, {expected} fit"
        )
    problems = Problems(trace.path)
    for line, text in zip(trace.lines[rows].tolist(), found, strict=True):
        problems.add(line, "request", text, f"{expected} (`too_long: error`)")
    problems.raise_if_any(TooLongRowsError)


def _workload(
    scenario: Scenario, requests: Requests, max_tokens: Int32, trace: Trace | None
) -> Workload:
    is_root = requests.parent == NEVER
    root = np.maximum.accumulate(np.where(is_root, np.arange(len(requests)), 0))
    arrival_ns = np.zeros(len(requests), np.int64)
    arrival_ns[is_root] = _arrivals(scenario, int(is_root.sum()), trace)
    return Workload(
        arrival_ns=arrival_ns[root],
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        max_tokens=max_tokens,
        priority=_priorities(scenario, is_root)[root],
        tenant=_tenants(scenario, int(is_root.sum()))[np.cumsum(is_root)[root] - 1],
        parent=requests.parent,
        think_ns=requests.think_ns,
        abort_after_ns=_abort_after_ns(scenario, len(requests)),
        segments=requests.segments,
    )


def _arrivals(scenario: Scenario, n: int, trace: Trace | None) -> Int64:
    load, rng = scenario.load, generator(scenario.seed, Stream.ARRIVALS)
    match load:
        case scenario_traffic.PoissonLoad():
            return arrivals.poisson_arrivals(rng, n, load.request_rate)
        case scenario_traffic.GammaLoad():
            return arrivals.gamma_arrivals(rng, n, load.request_rate, load.burstiness)
        case scenario_traffic.ConstantLoad():
            return arrivals.constant_arrivals(n, load.request_rate)
        case scenario_traffic.RampLoad():
            return arrivals.ramp_arrivals(rng, n, load.start_request_rate, load.end_request_rate)
        case scenario_traffic.AllAtOnceLoad() | scenario_traffic.ClosedLoopLoad():
            return arrivals.all_at_once(n)
        case scenario_traffic.TraceLoad():
            if trace is None:
                raise WorkloadError("load kind 'trace' needs a workload of kind 'trace'")
            return arrivals.scaled_arrivals(trace.arrival_ns, load.time_scale)


def _priorities(scenario: Scenario, is_root: np.ndarray) -> Int32:
    """int32[n]: 1 for the chosen share of the rows without parent, else 0."""
    rng = generator(scenario.seed, Stream.PRIORITIES)
    chosen = rng.random(int(is_root.sum())) < scenario.workload.high_priority_fraction
    priority = np.zeros(len(is_root), np.int32)
    priority[is_root] = chosen
    return priority


def _tenants(scenario: Scenario, count: int) -> Int32:
    """int32[count]: the tenant of each row without parent."""
    rng = generator(scenario.seed, Stream.TENANTS)
    return rng.integers(scenario.workload.num_tenants, size=count).astype(np.int32)


def _abort_after_ns(scenario: Scenario, n: int) -> Int64:
    """int64[n]. Who gives up is drawn before when, so the one does not depend on the other."""
    if scenario.aborts is None:
        return np.full(n, NEVER, np.int64)
    rng = generator(scenario.seed, Stream.ABORTS)
    gives_up = rng.random(n) < scenario.aborts.fraction
    return np.where(gives_up, sample_ns(_duration(scenario.aborts.after_s), rng, n), NEVER)
