"""What a deployment will roughly do under a load, from means alone, before anything runs.

A fluid model of one replica. Let d be the time that a request's prefill adds to the steps that
carry it, T(B) a step that decodes B requests, r the request rate of the replica and O the mean
output. Prefill takes the share r d of all time, the rest is decoding, so that

    TPOT = T(B) / (1 - r d)        and, by Little's law,        B = r O TPOT

whose fixed point is looked for. TTFT is the prefill step itself, what is left of the step in
flight, and the wait behind other prefills as in an M/G/1 queue: r E[d^2] / (2 (1 - r d)). The
capacity is the largest r with a fixed point whose B fits `max_running_requests` and the KV pages.
Under a closed loop r follows from the number of clients, offline it is the capacity.

What it leaves out: bursts, tails, retractions, the router, how long a cached prefix survives and
what decodes save by sharing one, and the clocks of a GPU at its power limit.
`tests/test_estimate.py` holds it against simulations of the shipped scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from engine.core.workload import NEVER, Workload
from simulator.cost_model import EAGER, CostModel, Int64, StepFeatures, StepShape
from workbench.metrics.latency import NS_PER_S
from workbench.running.deployment import Deployment, Replica
from workbench.scenario.schema import ClosedLoopLoad, Scenario
from workbench.workload.lengths import Float64

_PROMPTS: Final = 16  # quantiles of prompt lengths that stand for all
_ASKED: Final = 24  # batch sizes at which step times are asked for
_BATCHES: Final = 1000  # batch sizes at which the fixed point is looked for
_CHUNKS: Final = 4  # of a prompt that stand for all of its chunks
_HIGHEST_RATE: Final = 1e7
_JUST_BELOW: Final = 0.999  # of the capacity, where latencies are still finite
_ROUNDS: Final = 60  # of a bisection: more than a double has bits

State = Literal["stable", "overloaded", "offline", "closed_loop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Means that a run will come close to; rates are of the whole deployment.

    Attributes:
        state: whether the load fits, or follows the capacity by itself.
        offered_rate: requests per second that are sent; None offline and in a closed loop.
        capacity: requests per second at most.
        request_rate: requests per second that will be served.
        output_throughput: tokens per second.
        ttft_ms, tpot_ms: means; of an overloaded or offline run without the time in the queue.
        running: requests in a replica's batch.
        kv_percent: KV pages that they hold.
        duration_s: of the whole run.
        prefix_hit_percent: prompt tokens that a cache which never evicts would hold.
        cost_model: who said how long steps take.
    """

    state: State
    offered_rate: float | None
    capacity: float
    request_rate: float
    output_throughput: float
    ttft_ms: float
    tpot_ms: float
    running: float
    kv_percent: float
    duration_s: float
    prefix_hit_percent: float
    cost_model: str


@dataclass(frozen=True, slots=True)
class _Demand:
    """Means of a workload; tokens.

    Attributes:
        prompts: float64[k], equally likely lengths of what has to be computed of a prompt.
        output: per request.
        context: of a decoding request, over its decode steps.
        hit_share: of the prompt tokens, 0 to 1.
    """

    prompts: Float64
    output: float
    context: float
    hit_share: float


@dataclass(frozen=True, slots=True)
class _Point:
    """A replica at a request rate: latencies in s; `fits` says whether it can keep up."""

    fits: bool
    running: float
    tpot_s: float
    ttft_s: float


def estimate(scenario: Scenario, deployment: Deployment, workload: Workload) -> Estimate:
    """Estimate a run of `workload`, which was built from `scenario`, on `deployment`."""
    demand = _demand(workload, scenario.scheduler.prefix_cache.enabled)
    model = _Fluid(deployment.replicas[0], demand)
    replicas = len(deployment.replicas)
    capacity = model.capacity() * replicas
    offered, state = _offered(scenario, workload)
    if isinstance(scenario.load, ClosedLoopLoad):
        served = model.closed_loop_rate(scenario.load.max_concurrency / replicas) * replicas
    else:
        served = capacity if offered is None else min(offered, capacity)
    if offered is not None and offered >= capacity:
        state = "overloaded"
    point = model.at(min(served, capacity * _JUST_BELOW) / replicas)
    ttft_s = point.ttft_s
    if isinstance(scenario.load, ClosedLoopLoad):  # what is not decoding waits for its first token
        there_s = scenario.load.max_concurrency / served
        ttft_s = max(ttft_s, there_s - demand.output * point.tpot_s)
    facts = deployment.replicas[0].facts
    held = 100 * point.running * demand.context / (facts.num_pages * facts.page_size)
    return Estimate(
        state=state,
        offered_rate=offered,
        capacity=capacity,
        request_rate=served,
        output_throughput=served * demand.output,
        ttft_ms=ttft_s * 1e3,
        tpot_ms=point.tpot_s * 1e3,
        running=point.running,
        kv_percent=min(100.0, held),
        duration_s=len(workload) / served,
        prefix_hit_percent=100 * demand.hit_share,
        cost_model=deployment.cost_model_name,
    )


def _offered(scenario: Scenario, workload: Workload) -> tuple[float | None, State]:
    """Requests per second that are sent, turns of conversations included."""
    load = scenario.load
    if isinstance(load, ClosedLoopLoad):
        return None, "closed_loop"
    if load.kind == "all_at_once":
        return None, "offline"
    roots = workload.parent == NEVER
    thinking_s = float(workload.think_ns[~roots].sum()) / NS_PER_S / max(1, int(roots.sum()))
    span_s = float(np.ptp(workload.arrival_ns[roots])) / NS_PER_S + thinking_s
    return (len(workload) / span_s, "stable") if span_s > 0 else (None, "offline")


def _demand(workload: Workload, prefix_cache: bool) -> _Demand:
    output = np.minimum(workload.output_tokens, workload.max_tokens).astype(np.float64)
    prompt = workload.prompt_tokens.astype(np.float64)
    share = shared_prefix_share(workload) if prefix_cache else 0.0
    quantiles = (np.arange(_PROMPTS) + 0.5) / _PROMPTS
    computed = np.maximum(1.0, np.quantile(prompt, quantiles) * (1 - share))
    context = float(((prompt + output / 2) * output).sum() / output.sum())
    return _Demand(computed, float(output.mean()), context, share)


def shared_prefix_share(workload: Workload) -> float:
    """Share of all prompt tokens whose text stood in an earlier prompt or answer, 0 to 1."""
    segments = workload.segments
    if segments is None:
        return 0.0
    _, first = np.unique(segments.keys, return_index=True)
    fresh = np.zeros(len(segments.keys), np.bool_)
    fresh[first] = True
    fresh &= ~np.isin(segments.keys, segments.output_keys)
    total = int(workload.prompt_tokens.sum())
    return max(0.0, 1 - int(segments.lengths[fresh].sum()) / total)


class _Fluid:
    """One replica under a stream of requests.

    Step times are asked for at some batch sizes and prompt lengths, all at once, and interpolated
    between them.
    """

    def __init__(self, replica: Replica, demand: _Demand) -> None:
        self._scheduler = replica.config.scheduler
        self._demand = demand
        facts = replica.facts
        held = facts.num_pages * facts.page_size / demand.context
        most = max(1.0, min(facts.max_running_requests, held))
        asked = np.unique(np.rint(np.geomspace(1, max(2, int(most)), _ASKED)).astype(np.int64))
        decode = self._times(replica.config.cost_model, [self._decode(int(b)) for b in asked])
        whole = self._prefill_times(replica.config.cost_model, asked)
        alone = self._scheduler.mode == "prefill_first"
        added = whole if alone else np.maximum(0.0, whole - decode[:, None])
        self._batch = np.concatenate(([0.0], np.geomspace(0.01, most, _BATCHES)))
        columns = (decode, whole.mean(1), added.mean(1), (added**2).mean(1))
        self._decode_s, self._whole_s, self._added_s, self._added_squared = (
            np.interp(self._batch, asked, column) for column in columns
        )

    def capacity(self) -> float:
        """The largest request rate that it keeps up with, per second."""
        low, high = 0.0, 1.0
        while self.at(high).fits and high < _HIGHEST_RATE:
            low, high = high, 2 * high
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle).fits else (low, middle)
        return low

    def closed_loop_rate(self, clients: float) -> float:
        """Requests per second of clients that send one when the last has ended."""
        low, high = 0.0, self.capacity()
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            point = self.at(middle)
            there = middle * (point.ttft_s + self._demand.output * point.tpot_s)
            low, high = (middle, high) if point.fits and there < clients else (low, middle)
        return low

    def at(self, request_rate: float) -> _Point:
        """What it does at a request rate: the smallest batch that reproduces itself."""
        free = 1 - request_rate * self._added_s
        tpot = self._decode_s / np.where(free > 0, free, np.nan)
        wanted = request_rate * max(0.0, self._demand.output - 1) * tpot
        enough = np.flatnonzero(wanted <= self._batch)
        fits = len(enough) > 0
        i = int(enough[0]) if fits else len(self._batch) - 1
        behind = request_rate * self._added_squared[i] / (2 * max(free[i], 1e-9))
        in_flight = self._decode_s[i] / 2 * min(1.0, float(self._batch[i]))
        return _Point(
            fits=fits,
            running=float(wanted[i]) if fits else float(self._batch[i]),
            tpot_s=float(tpot[i]) if fits else np.inf,
            ttft_s=float(self._whole_s[i] + behind + in_flight),
        )

    def _prefill_times(self, costs: CostModel, batches: Int64) -> Float64:
        """float64[batches, prompts]: s of the steps that carry a prompt beside so many decodes."""
        shapes, weights, owners = [], [], []
        for batch in batches.tolist():
            beside = 0 if self._scheduler.mode == "prefill_first" else batch
            room = max(1.0, self._scheduler.prefill_budget - beside)
            for tokens in self._demand.prompts.tolist():
                chunks = max(1, int(np.ceil(tokens / room)))
                pieces = min(chunks, _CHUNKS)
                size = max(1, round(tokens / chunks))
                for piece in range(pieces):
                    context = int(tokens / pieces * (piece + 0.5) - size / 2)
                    shapes.append(self._mixed(beside, size, max(0, context)))
                    weights.append(chunks / pieces)
                owners.append(len(shapes) - pieces)
        times = self._times(costs, shapes) * np.array(weights)
        return np.add.reduceat(times, owners).reshape(len(batches), -1)

    def _times(self, costs: CostModel, shapes: Sequence[StepShape]) -> Float64:
        """Seconds from one step of each shape to the next."""
        found = costs.step_costs(StepFeatures.from_shapes(shapes))
        gpu, host = found.gpu_ns, found.host_ns
        apart = self._scheduler.max_plans_in_flight == 1
        seconds: Float64 = (gpu + host if apart else np.maximum(gpu, host)) / NS_PER_S
        return seconds

    def _decode(self, batch: int) -> StepShape:
        held = int(self._demand.context)
        sizes = self._scheduler.cuda_graph_batch_sizes
        return StepShape(
            decode_requests=batch,
            decode_tokens=batch,
            decode_context=batch * held,
            decode_max_context=held,
            sampled_tokens=batch,
            graph_batch=min((size for size in sizes if size >= batch), default=EAGER),
        )

    def _mixed(self, batch: int, prefill: int, context: int) -> StepShape:
        """A step with a chunk of a prompt, behind `context` tokens of it, and `batch` decodes."""
        return self._decode(batch)._replace(
            prefill_tokens=prefill,
            prefill_requests=1,
            prefill_context=context,
            prefill_pairs=prefill * context + prefill * (prefill + 1) // 2,
            prefill_max_context=context + prefill,
            decode_max_context=int(self._demand.context) if batch else 0,
            sampled_tokens=batch + 1,
            graph_batch=EAGER,
        )
