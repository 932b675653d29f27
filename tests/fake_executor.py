"""An engine without tensors: steps take a stated time, and tokens are a hash of the text.

`FakeRunner` stands in for `engine.runtime.model_runner.ModelRunner`. Wrong behaviour of whoever
drives it (tokens of a text that is not known, steps out of order, work after death) is an
AssertionError; faults are made on demand.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.core.model_spec import ModelSpec, load_model_spec
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.models.model_folder import find_model
from engine.runtime.executor import ExecutorDiedError, StepFailedError, StepOutput
from engine.runtime.runner_config import RunnerConfig

MS = 1_000_000
NUM_PAGES = 20_000


class FakeClock:
    """Time that passes only while somebody sleeps, so that tests need not wait.

    Args:
        tick_ns: the least that a sleep takes, a sleep of 0 too.
    """

    def __init__(self, tick_ns: int = 50_000) -> None:
        self.now = 0
        self._tick_ns = tick_ns

    def __call__(self) -> int:
        return self.now

    def restart(self) -> None:
        self.now = 0

    def sleep(self, duration_ns: int) -> None:
        assert duration_ns >= 0
        self.now += max(duration_ns, self._tick_ns)


@dataclass
class Faults:
    """What goes wrong, by plan id.

    Attributes:
        fails: plans whose result is a failure.
        unlaunchable: plans that cannot be launched.
        dies_at: the device is lost in this plan; None: never.
        dies_at_launch: it is noticed when the plan is launched, not when it is awaited.
        not_numbers: ids of requests whose next token is -1, once each.
        raises: plan -> a defect of the runner that its result raises.
    """

    fails: set[int] = field(default_factory=set)
    unlaunchable: set[int] = field(default_factory=set)
    dies_at: int | None = None
    dies_at_launch: bool = False
    not_numbers: set[int] = field(default_factory=set)
    raises: dict[int, Exception] = field(default_factory=dict)


class Version(str):
    """A string that is more than one, as torch's version."""

    __slots__ = ()


def next_token(state: int, vocab_size: int) -> int:
    """The token after a text whose CRC-32 is `state`."""
    return (state * 0x9E3779B1 >> 7) % vocab_size


def continuation(prompt: Sequence[int], count: int, vocab_size: int) -> list[int]:
    """The first `count` tokens after a prompt."""
    state, tokens = zlib.crc32(np.asarray(prompt, np.int32).tobytes()), []
    for _ in range(count):
        tokens.append(next_token(state, vocab_size))
        state = zlib.crc32(np.int32(tokens[-1]).tobytes(), state)
    return tokens


class FakeRunner:
    """Computes nothing and knows everything.

    Args:
        config: as a real runner gets it.
        clock: of the run.
        step_ns: how long a plan takes.
        num_pages: KV pages, if `config` does not say.
        faults: what goes wrong.

    Attributes:
        plans: ids of the plans that were launched.
        requests: every request that was ever in one, by id.
        closed: whether `close` was called.
    """

    eos_token_ids = ()

    def __init__(
        self,
        config: RunnerConfig,
        clock: Callable[[], int],
        *,
        step_ns: Callable[[StepPlan], int] = lambda plan: MS,
        num_pages: int = NUM_PAGES,
        faults: Faults | None = None,
    ) -> None:
        self.spec = _spec(config.model)
        self.max_model_len = self.spec.max_model_len
        self.num_pages = config.num_pages or num_pages
        self.config = replace(config, num_pages=self.num_pages, max_model_len=self.max_model_len)
        self.clock = clock
        self.faults = faults or Faults()
        self.plans: list[int] = []
        self.requests: dict[int, Request] = {}
        self.closed = False
        self._step_ns = step_ns
        self._free_ns = 0
        self._dead = False
        self._states: dict[tuple[int, int], int] = {}  # (request, epoch) -> CRC-32 of its text

    def facts(self) -> dict[str, Any]:
        return {
            "device": "fake device",
            "version": Version("1.0"),
            "kernels": {"attention": "none"},
            "cuda_graph_batch_sizes": list(self.config.cuda_graph_batch_sizes),
        }

    def register(self, request_id: int, params: object) -> None:
        raise AssertionError("a scenario's requests are greedy")

    def forget(self, request_id: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def launch(self, plan: StepPlan) -> FakeStep:
        assert not self._dead, "work for a dead device"
        assert not self.closed
        faults, died = self.faults, ExecutorDiedError("the device fell off the bus")
        if plan.plan_id in faults.unlaunchable:
            raise StepFailedError("out of memory before the step")
        dies = plan.plan_id == faults.dies_at
        if dies and faults.dies_at_launch:
            self._dead = True
            raise died
        self.plans.append(plan.plan_id)
        start_ns = max(self.clock(), self._free_ns)
        gpu_ns = self._step_ns(plan)
        self._free_ns = start_ns + gpu_ns
        error: Exception | None = faults.raises.get(plan.plan_id)
        if plan.plan_id in faults.fails:
            error = StepFailedError("out of memory in the step")
        if dies:
            error = died
        ids = np.array(self._sample(plan), np.int32)
        return FakeStep(self, StepOutput(ids, None, None, start_ns, gpu_ns), error)

    def _sample(self, plan: StepPlan) -> Iterable[int]:
        for item in plan.prefills:
            known = item.context_tokens + item.num_tokens
            self.requests[item.request.request_id] = item.request
            text = item.request.tokens.ids(0, known)
            assert text.min() >= 0
            assert text.max() < self.spec.vocab_size
            self._states[item.request.request_id, item.epoch] = zlib.crc32(text.tobytes())
        return [
            self._next(request.request_id, epoch) for request, epoch in plan.sampling_requests()
        ]

    def _next(self, request_id: int, epoch: int) -> int:
        """The token after everything that this request has been given since its prefill."""
        state = self._states[request_id, epoch]
        token = next_token(state, self.spec.vocab_size)
        self._states[request_id, epoch] = zlib.crc32(np.int32(token).tobytes(), state)
        if request_id in self.faults.not_numbers:
            self.faults.not_numbers.remove(request_id)
            return -1
        return token


class FakeStep:
    """A step that is done when its time is over."""

    def __init__(self, runner: FakeRunner, output: StepOutput, error: Exception | None) -> None:
        self._runner, self._output, self._error = runner, output, error
        self._taken = False

    def is_done(self) -> bool:
        return self._runner.clock() >= self._output.start_ns + self._output.gpu_ns

    def result(self) -> StepOutput:
        assert not self._taken, "a result is taken once"
        self._taken = True
        if isinstance(self._error, ExecutorDiedError):
            self._runner._dead = True
        if self._error is not None:
            raise self._error
        return self._output


def _spec(model: str) -> ModelSpec:
    return load_model_spec(find_model(model, "dummy").shape)
