"""What one replica did at every instant of a run, as cumulative functions of time.

At each instant exactly one holds: the GPU runs a step; or no step is on the GPU but one is between
its plan and its commit (*host*: the host keeps the GPU waiting); or nothing is planned (*idle*). A
step's GPU interval is `[start_ns, start_ns + gpu_ns)`, cut off at its commit and at the start of
the next step, so intervals never overlap. Within it, GPU time divides into a decode part and a
prefill part in fixed proportion. Every function below returns whole ns and is non-decreasing, so
that windows add up exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.core.enums import AdmissionBlock
from engine.core.events import Columns
from workbench.analysis.source import Int64, int64

NEVER = -1


@dataclass(frozen=True, slots=True)
class ReplicaTimeline:
    """One replica's steps in order of their id; all arrays are int64[n] unless stated.

    Attributes:
        rows: row of each step in the `steps` table.
        step, plan_ns, end_ns, prefill_tokens, decode_requests, block_reason: as in that table.
        gpu_start_ns, gpu_end_ns: when the step had the GPU.
        decode_ns: the decode part of that interval.
        iteration_steps: int64[iterations], index of the step that holds decode iteration
            `first_iteration + i`.
    """

    rows: Int64
    step: Int64
    plan_ns: Int64
    end_ns: Int64
    prefill_tokens: Int64
    decode_requests: Int64
    block_reason: Int64
    gpu_start_ns: Int64
    gpu_end_ns: Int64
    decode_ns: Int64
    iterations: Int64
    iteration_steps: Int64
    _gpu_before: Int64
    _decode_before: Int64
    _block_start: Int64
    _block_end: Int64
    _block_before: Int64

    def __len__(self) -> int:
        return len(self.step)

    def gpu_until(self, t_ns: Int64) -> Int64:
        """GPU time before each instant. int64[k] -> int64[k] ns."""
        if not len(self):
            return np.zeros(len(t_ns), np.int64)
        i = self.step_on_gpu(t_ns)
        length = self.gpu_end_ns[i] - self.gpu_start_ns[i]
        before: Int64 = self._gpu_before[i] + np.clip(t_ns - self.gpu_start_ns[i], 0, length)
        return before

    def decode_until(self, t_ns: Int64) -> Int64:
        """Decode part of the GPU time before each instant. int64[k] -> int64[k] ns."""
        if not len(self):
            return np.zeros(len(t_ns), np.int64)
        i = self.step_on_gpu(t_ns)
        length = self.gpu_end_ns[i] - self.gpu_start_ns[i]
        into = np.clip(t_ns - self.gpu_start_ns[i], 0, length)
        return self._decode_before[i] + _proportion(into, self.decode_ns[i], length)

    def planned_until(self, t_ns: Int64) -> Int64:
        """Time before each instant with a step between plan and commit. int64[k] -> int64[k] ns."""
        if not len(self):
            return np.zeros(len(t_ns), np.int64)
        i = np.maximum(np.searchsorted(self._block_start, t_ns, "right") - 1, 0)
        length = self._block_end[i] - self._block_start[i]
        before: Int64 = self._block_before[i] + np.clip(t_ns - self._block_start[i], 0, length)
        return before

    def blocked(self, t0_ns: Int64, t1_ns: Int64) -> dict[AdmissionBlock, Int64]:
        """Time in each window under each plan's block reason; a reason lasts until the next plan.

        Both bounds int64[k]; `t0_ns` must not precede the first plan where `t0_ns < t1_ns`.
        """
        out: dict[AdmissionBlock, Int64] = {}
        if not len(self):
            return {reason: np.zeros(len(t0_ns), np.int64) for reason in AdmissionBlock}
        first, last = self.last_plan(t0_ns), self.last_plan(t1_ns)
        spans = np.diff(self.plan_ns)
        for reason in AdmissionBlock:
            holds = self.block_reason == reason
            before = np.concatenate(([0], np.cumsum(np.where(holds[:-1], spans, 0))))
            upto_0 = before[first] + np.where(holds[first], t0_ns - self.plan_ns[first], 0)
            upto_1 = before[last] + np.where(holds[last], t1_ns - self.plan_ns[last], 0)
            out[reason] = np.where(t0_ns < t1_ns, upto_1 - upto_0, 0)
        return out

    def step_on_gpu(self, t_ns: Int64) -> Int64:
        """Index of the last step that has begun on the GPU at each instant (0 before any has)."""
        return np.maximum(np.searchsorted(self.gpu_start_ns, t_ns, "right") - 1, 0)

    def last_plan(self, t_ns: Int64) -> Int64:
        """Index of the last step planned at or before each instant (0 before any was)."""
        return np.maximum(np.searchsorted(self.plan_ns, t_ns, "right") - 1, 0)

    def next_plan_ns(self, t_ns: Int64) -> Int64:
        """When the scheduler was next asked, at or after each instant; int64 max if never again."""
        i = np.searchsorted(self.plan_ns, t_ns, "left")
        padded = np.append(self.plan_ns, np.iinfo(np.int64).max)
        return padded[i]

    def result_ready_ns(self, t_ns: Int64) -> Int64:
        """GPU end of the step committed exactly at each instant; the instant itself if none was."""
        if not len(self):
            return t_ns
        i = np.maximum(np.searchsorted(self.end_ns, t_ns, "right") - 1, 0)
        return np.where(self.end_ns[i] == t_ns, self.gpu_end_ns[i], t_ns)

    def index_of(self, steps: Int64) -> Int64:
        """Index of each step id; NEVER where this replica recorded no such step."""
        return _find(self.step, steps)

    def step_of_iteration(self, iterations: Int64) -> Int64:
        """Index of the step of each decode iteration; NEVER where none was recorded."""
        at = _find(self.iterations, iterations)
        return np.where(at >= 0, self.iteration_steps[at], NEVER) if len(self.iterations) else at


def build_timeline(steps: Columns, replica: int, decode_part_ns: Int64) -> ReplicaTimeline:
    """The timeline of `replica`. `decode_part_ns` int64[rows of steps]: see `decode_share`."""
    rows = np.flatnonzero(steps["replica"] == replica)
    rows = rows[np.argsort(steps["step"][rows], kind="stable")]
    column = {name: int64(steps, name)[rows] for name in steps}
    plan = np.maximum.accumulate(column["plan_ns"])
    end = np.maximum.accumulate(np.maximum(column["end_ns"], plan))
    gpu_start, gpu_end = _gpu_intervals(plan, end, column["start_ns"], column["gpu_ns"])
    length = gpu_end - gpu_start
    decode = _proportion(length, decode_part_ns[rows], column["gpu_ns"])
    block_start, block_end = _planned_blocks(plan, end)
    decoding = np.flatnonzero(column["decode_iteration"] >= 0)
    return ReplicaTimeline(
        rows=rows,
        step=column["step"],
        plan_ns=plan,
        end_ns=end,
        prefill_tokens=column["prefill_tokens"],
        decode_requests=column["decode_requests"],
        block_reason=column["block_reason"],
        gpu_start_ns=gpu_start,
        gpu_end_ns=gpu_end,
        decode_ns=decode,
        iterations=column["decode_iteration"][decoding],
        iteration_steps=decoding,
        _gpu_before=_sum_before(length),
        _decode_before=_sum_before(decode),
        _block_start=block_start,
        _block_end=block_end,
        _block_before=_sum_before(block_end - block_start),
    )


def _gpu_intervals(plan: Int64, end: Int64, start: Int64, gpu: Int64) -> tuple[Int64, Int64]:
    gpu_start = np.maximum.accumulate(np.minimum(np.maximum(start, plan), end))
    gpu_end = np.clip(start + gpu, gpu_start, np.maximum(end, gpu_start))
    gpu_end[:-1] = np.minimum(gpu_end[:-1], gpu_start[1:])
    return gpu_start, gpu_end


def _planned_blocks(plan: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Union of the intervals [plan, end); both inputs non-decreasing."""
    if not len(plan):
        return plan, end
    opens = np.concatenate(([True], plan[1:] > end[:-1]))
    first = np.flatnonzero(opens)
    last = np.append(first[1:] - 1, len(plan) - 1)
    return plan[first], end[last]


def _proportion(part: Int64, of: Int64, whole: Int64) -> Int64:
    """floor(part / whole * of), and exactly `of` at part == whole. Needs 0 <= of <= whole."""
    share = np.floor(part * (of / np.maximum(whole, 1))).astype(np.int64)
    return np.where(part >= whole, of, np.minimum(share, np.minimum(of, part)))


def _sum_before(lengths: Int64) -> Int64:
    return np.cumsum(lengths) - lengths


def _find(ascending: Int64, wanted: Int64) -> Int64:
    at = np.searchsorted(ascending, wanted)
    inside = at < len(ascending)
    at = np.where(inside, at, 0)
    if not len(ascending):
        return np.full(len(wanted), NEVER, np.int64)
    return np.where(inside & (ascending[at] == wanted), at, NEVER)
