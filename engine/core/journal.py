"""The input journal: every call a scheduler received, and a replay that checks every answer.

A journal is a flat sequence of integers, `op, now, count, args...` per call. Replayed into a fresh
scheduler of the same configuration it must give the same plans; token sources come from the caller,
because a workload (or the recorded ids) already holds them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from engine.core.config import Admission, Mode, SchedulerConfig
from engine.core.enums import TransferStatus
from engine.core.plan import StepPlan, StepResult
from engine.core.request import KVHandoff, Request
from engine.core.token_ids import TokenSource
from engine.core.waiting_queue import Policy

if TYPE_CHECKING:
    from engine.core.scheduler import Scheduler

# Stored by position: append, never reorder.
_POLICIES: Final = get_args(Policy)
_MODES: Final = get_args(Mode)
_ADMISSIONS: Final = get_args(Admission)


class Op(IntEnum):
    """Calls in a journal; stored in run records, never renumber."""

    ADD = 0  # request id, prompt_tokens, max_tokens, priority, tenant, handoff, parent, client_wait
    ABORT = 1  # request id
    PLAN = 2  # the plan's signature, nothing for None
    COMMIT = 3  # plan id, failed, has ids, counts of the lists that follow, then the lists
    ADVANCE = 4  # steps
    TRANSFER_DONE = 5  # transfer id, status
    RECONFIGURE = 6  # the settings that may change, see `_settings`
    COMMIT_BROKEN = 7  # count of broken requests, their ids, then as COMMIT


class Call(NamedTuple):
    """One journal entry."""

    op: Op
    now: int
    args: tuple[int, ...]


class JournalMismatchError(RuntimeError):
    """A replayed scheduler decided otherwise than the recorded one."""


class Journal:
    """Collects calls; hand it to a `Scheduler`."""

    def __init__(self) -> None:
        self._data = array("q")

    def add(self, request: Request, now: int) -> None:
        """`Scheduler.add` was called."""
        self._write(Op.ADD, now, (
            request.request_id, request.prompt_tokens, request.max_tokens, request.priority,
            request.tenant, request.handoff, request.parent, request.client_wait_ns,
        ))  # fmt: skip

    def abort(self, request_id: int, now: int) -> None:
        """`Scheduler.abort` was called."""
        self._write(Op.ABORT, now, (request_id,))

    def plan(self, plan: StepPlan | None, now: int) -> None:
        """`Scheduler.plan` was called and decided `plan`."""
        self._write(Op.PLAN, now, plan.signature() if plan is not None else ())

    def commit(self, plan_id: int, result: StepResult, now: int) -> None:
        """`Scheduler.commit` was called."""
        stopped, ids, verified = result.stopped, result.token_ids, result.verified
        head = (
            plan_id,
            result.failed,
            ids is not None,
            len(stopped),
            len(ids or ()),
            len(verified),
        )
        kept: list[int] = []
        for row in result.verified_ids or ():
            kept += (len(row), *row)
        has_kept = result.verified_ids is not None
        args = (*head, has_kept, *stopped, *(int(i) for i in ids or ()), *verified, *kept)
        if result.broken:
            self._write(Op.COMMIT_BROKEN, now, (len(result.broken), *result.broken, *args))
        else:
            self._write(Op.COMMIT, now, args)

    def advance(self, steps: int, now: int) -> None:
        """`Scheduler.advance` was called."""
        self._write(Op.ADVANCE, now, (steps,))

    def transfer_done(self, transfer_id: int, status: TransferStatus, now: int) -> None:
        """`Scheduler.transfer_done` was called."""
        self._write(Op.TRANSFER_DONE, now, (transfer_id, status))

    def reconfigure(self, config: SchedulerConfig, now: int) -> None:
        """`Scheduler.reconfigure` was called."""
        self._write(Op.RECONFIGURE, now, _settings(config))

    def to_array(self) -> NDArray[np.int64]:
        """The journal as int64[n], for storage."""
        return np.array(self._data, np.int64)

    def _write(self, op: Op, now: int, args: tuple[int, ...]) -> None:
        self._data.extend((op, now, len(args), *args))


def read_calls(data: NDArray[np.int64]) -> Iterator[Call]:
    """The calls of a stored journal in order.

    Raises:
        ValueError: the data end inside a call or name an unknown one.
    """
    values, at = data.tolist(), 0
    while at < len(values):
        if at + 3 > len(values) or not 0 <= values[at + 2] <= len(values) - at - 3:
            raise ValueError(f"journal ends inside the call at position {at}")
        count = values[at + 2]
        yield Call(Op(values[at]), values[at + 1], tuple(values[at + 3 : at + 3 + count]))
        at += 3 + count


def replay(
    calls: Iterator[Call],
    scheduler: Scheduler,
    tokens_of: Callable[[int], TokenSource | None] = lambda _: None,
) -> int:
    """Repeat recorded calls on a fresh scheduler, checking each plan; returns the number of plans.

    Raises:
        JournalMismatchError: a plan differs from the recorded one; both are shown.
    """
    plans = 0
    for call in calls:
        plans += apply(call, scheduler, tokens_of)
    return plans


def apply(call: Call, scheduler: Scheduler, tokens_of: Callable[[int], TokenSource | None]) -> bool:
    """Repeat one call; True if it was a plan that decided a step."""
    args, now = call.args, call.now
    if call.op == Op.ADD:
        scheduler.add(_request(args, tokens_of(args[0])), now)
    elif call.op == Op.ABORT:
        scheduler.abort(args[0], now)
    elif call.op == Op.PLAN:
        plan = scheduler.plan(now)
        signature = plan.signature() if plan is not None else ()
        if signature != args:
            raise JournalMismatchError(
                f"at {now} ns the recorded plan was {args}, the replayed one is {signature}"
            )
        if plan is not None:
            plan.decode_members()  # a commit with token ids will want them
        return plan is not None
    elif call.op == Op.COMMIT:
        plan_id, result = _result(args)
        scheduler.commit(plan_id, result, now)
    elif call.op == Op.COMMIT_BROKEN:
        count = 1 + args[0]
        plan_id, result = _result(args[count:], broken=args[1:count])
        scheduler.commit(plan_id, result, now)
    elif call.op == Op.ADVANCE:
        scheduler.advance(args[0], now)
    elif call.op == Op.RECONFIGURE:
        scheduler.reconfigure(_with_settings(scheduler.config, args), now)
    else:
        scheduler.transfer_done(args[0], TransferStatus(args[1]), now)
    return False


def _settings(config: SchedulerConfig) -> tuple[int, ...]:
    """The settings that `Scheduler.reconfigure` may change; the float as its bits."""
    cap = config.max_prefill_tokens
    return (
        _POLICIES.index(config.policy), _MODES.index(config.mode),
        _ADMISSIONS.index(config.admission), config.chunked_prefill, 0 if cap is None else cap,
        *struct.unpack("<q", struct.pack("<d", config.schedule_conservativeness)),
        config.max_num_batched_tokens, config.max_running_requests, config.max_plans_in_flight,
        config.check_every, *config.cuda_graph_batch_sizes,
    )  # fmt: skip


def _with_settings(config: SchedulerConfig, args: tuple[int, ...]) -> SchedulerConfig:
    """The inverse of `_settings`, on a configuration that has all else."""
    policy, mode, admission, chunked, cap, bits, tokens, running, plans, every = args[:10]
    (conservativeness,) = struct.unpack("<d", struct.pack("<q", bits))
    return replace(
        config,
        policy=_POLICIES[policy],
        mode=_MODES[mode],
        admission=_ADMISSIONS[admission],
        chunked_prefill=bool(chunked),
        max_prefill_tokens=cap or None,
        schedule_conservativeness=conservativeness,
        max_num_batched_tokens=tokens,
        max_running_requests=running,
        max_plans_in_flight=plans,
        check_every=every,
        cuda_graph_batch_sizes=args[10:],
    )


def _request(args: tuple[int, ...], tokens: TokenSource | None) -> Request:
    request_id, prompt, limit, priority, tenant, handoff, parent, client_wait_ns = args
    return Request(
        request_id, prompt, limit, priority=priority, tenant=tenant, tokens=tokens,
        handoff=KVHandoff(handoff), parent=parent, client_wait_ns=client_wait_ns,
    )  # fmt: skip


def _result(args: tuple[int, ...], broken: tuple[int, ...] = ()) -> tuple[int, StepResult]:
    plan_id, failed, has_ids, stops, ids, verified, has_kept = args[:7]
    rest = list(args[7:])
    stopped, rest = rest[:stops], rest[stops:]
    token_ids, rest = rest[:ids], rest[ids:]
    counts, rest = rest[:verified], rest[verified:]
    kept: list[list[int]] = []
    while rest:
        kept.append(rest[1 : 1 + rest[0]])
        rest = rest[1 + rest[0] :]
    return plan_id, StepResult(
        stopped=stopped,
        token_ids=token_ids if has_ids else None,
        verified=counts,
        verified_ids=kept if has_kept else None,
        failed=bool(failed),
        broken=broken,
    )
