"""What only serving shows: the host's time for steps, and first steps after idle times.

Small made-up workloads are served by the very driver that serves scenarios, with its clients and
with a prefix cache, so that the host does all that it does in service.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.events import Columns, EventLog
from engine.core.token_ids import TokenBuffer, TokenSource
from engine.core.workload import Workload
from engine.profiling.measuring import FEATURES
from engine.runtime.executor import Executor
from simulator.cost_model import UNKNOWN, Int64
from simulator.fitting.base import Float64
from simulator.samples import HostSamples, WakeSamples
from workbench.analysis.predicted_steps import idle_ns
from workbench.running.engine_driver import Driver, WallClock

BATCHES: Final = (1, 4, 16, 64, 128, 256)  # requests at once
_PROMPTS: Final = (50, 800)  # tokens, as many short ones as long ones on a scale of ratios
_OUTPUTS: Final = (8, 40)
_FEWEST_MORE: Final = 8  # requests that come when others end
_IDLE_MS: Final = (0.5, 2.0, 10.0, 50.0, 250.0)
_IDLE_PROMPTS: Final = (24, 60, 180)  # tokens; so few that clocks do not fall
_REPEATS: Final = 5
_FEWEST_WOKEN: Final = 1 + 3  # of each idle time; the first prompt of all comes after none


class Service:
    """Serves made-up workloads.

    Args:
        executor: of the engine.
        config: of its scheduler.
        clock: the executor's.
        vocab_size: prompts are of random tokens below it.
    """

    def __init__(
        self, executor: Executor, config: SchedulerConfig, clock: WallClock, vocab_size: int
    ) -> None:
        self._executor, self._config, self._clock = executor, config, clock
        self._vocab_size = vocab_size
        # A request of more tokens, its answer's among them, would be rejected.
        self._longest = min(config.max_model_len, config.num_pages * config.page_size)
        self._draw = np.random.default_rng(1)

    def host_samples(self, within_s: float | None = None) -> HostSamples:
        """Steps of few and of many requests, some of which end while others begin.

        Args:
            within_s: that all may take, in about equal parts: clients give up what is not done.
        """
        batches = [batch for batch in BATCHES if self._have_room(batch)]
        each_s = None if within_s is None else within_s / len(batches)
        parts = [self._steps(self._closed(batch, each_s), batch) for batch in batches]
        steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        results = steps["end_ns"] - steps["start_ns"] - steps["gpu_ns"]
        return HostSamples(
            requests=_whole(steps["prefill_requests"] + steps["decode_requests"]),
            prefill_requests=_whole(steps["prefill_requests"]),
            prefill_tokens=_whole(steps["prefill_tokens"]),
            host_ns=_whole(steps["host_ns"]),
            result_ns=_whole(np.maximum(results, 0)),
        )

    def wake_samples(self, within_s: float | None = None) -> WakeSamples:
        """One short prompt after each idle time, several times.

        Args:
            within_s: that all may take, as long as it is enough for three of each.
        """
        whole = max(1, min(self._longest - 1, self._config.prefill_budget))  # in one step
        lengths = sorted({min(n, whole) for n in _IDLE_PROMPTS}) * _REPEATS
        taken_ns = self._taken_ns(lengths, _REPEATS if within_s is None else 1)
        if within_s is not None:
            idle_s, taken_s = sum(_IDLE_MS) / 1e3, len(_IDLE_MS) * float(taken_ns.mean()) / 1e9
            count = max(_FEWEST_WOKEN, int(within_s / (idle_s + taken_s)))
            lengths, taken_ns = lengths[:count], taken_ns[:count]
        parts = [self._steps(self._spaced(lengths, taken_ns + ms * 1e6), None) for ms in _IDLE_MS]
        idle = np.concatenate([idle_ns(part)[1:] for part in parts])
        steps = {name: np.concatenate([part[name][1:] for part in parts]) for name in parts[0]}
        woke = np.flatnonzero(idle > 0)
        shapes = np.column_stack([steps[name] for name in FEATURES])[woke].tolist()
        leads = np.maximum(steps["start_ns"] - steps["plan_ns"], 0)
        return WakeSamples(
            shapes=tuple((*map(int, shape), UNKNOWN) for shape in shapes),
            idle_ns=_whole(idle[woke]),
            lead_ns=_whole(leads[woke]),
            gpu_ns=_whole(np.maximum(steps["gpu_ns"][woke], 1)),
        )

    def _taken_ns(self, lengths: list[int], repeats: int) -> Float64:
        """What each of some prompts takes from its plan until its token is known, about."""
        tried = sorted(set(lengths)) * repeats
        steps = self._steps(self._spaced(tried, np.zeros(len(tried))), 1)  # one by one
        taken = steps["end_ns"] - steps["plan_ns"]
        of = {n: float(np.median(taken[steps["prefill_tokens"] == n])) for n in set(lengths)}
        return np.array([of[n] for n in lengths])

    def _have_room(self, batch: int) -> bool:
        """Whether so many requests can be there at once, short ones at least."""
        config = self._config
        slots = config.num_pages * config.page_size
        room = min(config.max_running_requests, slots // (_PROMPTS[0] + _OUTPUTS[0]))
        return batch <= max(1, room)

    def _closed(self, batch: int, within_s: float | None = None) -> Workload:
        """So many requests at once, and after each that ends another one.

        In little time each has its part of it, and is given up after that.
        """
        count = batch + max(_FEWEST_MORE, batch // 2)
        most = _OUTPUTS[1] + batch // 4  # it takes many steps to begin many requests
        most = min(most, max(1, self._longest // 2))
        longest = max(1, min(_PROMPTS[1], self._longest - most))
        shortest = min(_PROMPTS[0], longest)
        prompts = np.exp(self._draw.uniform(np.log(shortest), np.log(longest), count))
        outputs = self._draw.integers(min(_OUTPUTS[0], most), most + 1, count)
        work = Workload.from_lengths(
            np.zeros(count, np.int64), prompts.astype(np.int32), outputs.astype(np.int32)
        )
        if within_s is None:
            return work
        patience_ns = round(within_s * 1e9) // -(-count // batch)
        return replace(work, abort_after_ns=np.full(count, patience_ns, np.int64))

    def _spaced(self, lengths: list[int], apart_ns: Float64) -> Workload:
        """Prompts, each to be answered with one token, and how long after each the next arrives."""
        arrivals = np.concatenate([[0.0], np.cumsum(apart_ns)[:-1]]).astype(np.int64)
        return Workload.from_lengths(
            arrivals, np.array(lengths, np.int32), np.ones(len(lengths), np.int32)
        )

    def _steps(self, workload: Workload, max_concurrency: int | None) -> Columns:
        """Serve a workload; returns its steps."""
        log = EventLog()
        driver = Driver(
            workload, self._config, self._executor, self._clock,
            lambda request_id: self._text(workload, request_id),
            max_concurrency=max_concurrency, log=log,
        )  # fmt: skip
        driver.run()
        driver.close()
        return log.tables()["steps"]

    def _text(self, workload: Workload, request_id: int) -> TokenSource:
        prompt = int(workload.prompt_tokens[request_id])
        ids = self._draw.integers(0, self._vocab_size, prompt)
        return TokenBuffer(ids, prompt + int(workload.max_tokens[request_id]))


def _whole(column: Int64) -> tuple[int, ...]:
    return tuple(column.astype(np.int64).tolist())
