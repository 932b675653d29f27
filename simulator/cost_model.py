"""What a step costs: the one interface between the simulator and whatever predicts durations.

A step is described by integer features; their names are those of the `steps` event table. Times are
integer ns. `gpu_ns` is what the GPU takes from its first to its last kernel, `host_ns` what the CPU
takes to plan a step and to handle its result; whoever runs the steps knows which of the two
overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.power_state import PowerFit
from simulator.waking import WakeFit

Int64 = NDArray[np.int64]

EAGER = 0
UNKNOWN = -1


class StepShape(NamedTuple):
    """The features of one step.

    Attributes:
        prefill_tokens: prompt tokens computed in this step.
        prefill_requests: requests they belong to.
        prefill_context: sum over them of tokens already in the KV cache.
        prefill_pairs: sum over them of (query, key) pairs under the causal mask.
        prefill_max_context: the longest of them, new tokens included.
        decode_requests: decode and verify items.
        decode_tokens: their tokens; = decode_requests without speculation.
        decode_context: sum of their context lengths, new tokens included.
        decode_max_context: the longest of them.
        shared_context: KV tokens that requests share, once for each but one of them.
        sampled_tokens: rows of logits.
        graph_batch: rows of the CUDA Graph that runs the step, EAGER without one.
        active_experts: distinct (layer, expert) pairs that the step visits, summed over all MoE
            layers, or UNKNOWN.
    """

    prefill_tokens: int = 0
    prefill_requests: int = 0
    prefill_context: int = 0
    prefill_pairs: int = 0
    prefill_max_context: int = 0
    decode_requests: int = 0
    decode_tokens: int = 0
    decode_context: int = 0
    decode_max_context: int = 0
    shared_context: int = 0
    sampled_tokens: int = 0
    graph_batch: int = EAGER
    active_experts: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class StepFeatures:
    """The features of n steps, one int64[n] column each; see `StepShape`."""

    prefill_tokens: Int64
    prefill_requests: Int64
    prefill_context: Int64
    prefill_pairs: Int64
    prefill_max_context: Int64
    decode_requests: Int64
    decode_tokens: Int64
    decode_context: Int64
    decode_max_context: Int64
    shared_context: Int64
    sampled_tokens: Int64
    graph_batch: Int64
    active_experts: Int64

    @classmethod
    def from_shapes(cls, shapes: Sequence[StepShape]) -> StepFeatures:
        """Columns of a list of steps."""
        rows = np.array(shapes, np.int64).reshape(-1, len(StepShape._fields))
        return cls(*(np.ascontiguousarray(column) for column in rows.T))

    def __len__(self) -> int:
        return len(self.prefill_tokens)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The costs of n steps.

    Attributes:
        gpu_ns: int64[n], at least 1.
        host_ns: int64[n].
        terms: name -> int64[n], parts of gpu_ns; they sum to it exactly.
        extrapolated: bool[n], the model left the range in which it was measured.
    """

    gpu_ns: Int64
    host_ns: Int64
    terms: dict[str, Int64]
    extrapolated: NDArray[np.bool_]


def whole_ns(ns: NDArray[np.floating]) -> Int64:
    """Whole ns, halves up; ns >= 0."""
    return (ns + 0.5).astype(np.int64)


def sum_of_terms(terms: dict[str, Int64]) -> Int64:
    """gpu_ns of terms, of which there is at least one."""
    first, *others = terms.values()
    total = first.copy()
    for other in others:
        total += other
    return total


class CostModel(Protocol):
    """Predicts step durations. `step_cost` and `decode_run` equal `step_costs` bit for bit.

    A step has at least one token; all methods raise ValueError for a step without. The times are
    those of a GPU with cool clocks that follow each other; `power` says how they grow with what the
    GPU does, and `wake` what the first of them after an idle time takes longer.
    """

    @property
    def name(self) -> str:
        """Who speaks: "analytic, uncalibrated", or the name of a calibrated profile."""
        ...

    @property
    def power(self) -> PowerFit | None:
        """What the GPU's power limit does to steps (`simulator.power_state`); None: nothing."""
        ...

    @property
    def wake(self) -> WakeFit | None:
        """What idle times do to the step after them (`simulator.waking`); None: nothing."""
        ...

    def step_costs(self, features: StepFeatures) -> StepCosts:
        """Costs of many steps, with their terms."""
        ...

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        """(gpu_ns, host_ns, extrapolated) of one step; fast."""
        ...

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        """Costs of `num_steps` successive pure decode steps, the first of which is `shape`.

        After each, decode_context grows by decode_tokens and decode_max_context by 1; all else
        stays. Returns gpu_ns of each, the host_ns that all share, and whether any is extrapolated.

        Raises:
            ValueError: the step prefills, or decodes nothing.
        """
        ...
