"""What a step takes on the host, part by part: planning, preparing inputs, committing, and texts.

Requests decode as they do when an engine serves them, with two plans in flight, a radix cache and
random tokens; only the device is missing. The step calibration measures all of that together, and
launching besides (`engine.profiling.measuring`); these are its parts, on the same host as the
kernels. Writing texts is no part of it: callers do that while the next step runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.demo import demo_model_folder
from engine.profiling.kernel_cases import HOST_WORK, PAGE_SIZE
from engine.runtime.host_step import StepBuilder
from engine.runtime.request_rows import RequestRows
from engine.runtime.tokenizer import Detokenizer, Tokenizer

P = ParamSpec("P")
Result = TypeVar("Result")

_PROMPT_TOKENS, _STEPS, _WARM = 200, 40, 8
_VOCAB: Final = 1000  # ids below it are in any vocabulary


class HostWork:
    """Times parts of the host's work in steps that decode."""

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None

    def times(self, op: str, requests: int) -> list[float]:
        """ns of one of `HOST_WORK` in each of some steps of so many requests."""
        if op == "detokenize":
            return self._texts(requests)
        return _steps(requests)[op]

    def _texts(self, requests: int) -> list[float]:
        """Of one more token of each text, written piece by piece."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(_texts_of())
        ids = np.random.default_rng(1).integers(
            0, self._tokenizer.vocab_size, (_WARM + _STEPS, requests)
        )
        texts = [Detokenizer(self._tokenizer) for _ in range(requests)]
        times = []
        for row in ids.tolist():
            begin = time.perf_counter_ns()
            for text, token_id in zip(texts, row, strict=True):
                text.push(token_id)
            times.append(float(time.perf_counter_ns() - begin))
        return times[_WARM:]


def _texts_of() -> Path:
    """A model's folder with a tokenizer; what a token costs hardly depends on whose it is."""
    folder = demo_model_folder("demo-dense")
    if folder is None:
        raise RuntimeError("the demo model demo-dense is not part of this installation")
    return folder


def _steps(requests: int) -> dict[str, list[float]]:
    """ns of each part but texts, in each of some steps."""
    scheduler, builder = _engine(requests)
    draw = np.random.default_rng(requests)
    flying: deque[StepPlan] = deque()
    times: dict[str, list[float]] = {op: [] for op in HOST_WORK if op != "detokenize"}
    decoded = now = 0
    while decoded < _WARM + _STEPS:
        now += 1
        plan, plan_ns = _timed(_planned, scheduler, now)
        _, prepare_ns = _timed(builder.build, plan)
        flying.append(plan)
        if len(flying) < scheduler.config.max_plans_in_flight:
            continue
        done = flying.popleft()
        ids = draw.integers(0, _VOCAB, len(done.sampling_requests())).tolist()
        result = StepResult(token_ids=ids)
        _, commit_ns = _timed(scheduler.commit, done.plan_id, result, now)
        if plan.decode_requests == requests and not plan.prefill_tokens:
            decoded += 1
            for op, ns in (("plan", plan_ns), ("prepare", prepare_ns), ("commit", commit_ns)):
                times[op].append(ns)
    return {op: found[_WARM:] for op, found in times.items()}


def _engine(requests: int) -> tuple[Scheduler, StepBuilder]:
    """A scheduler with so many requests that decode on and on, and what prepares its steps."""
    output = 4 * (_WARM + _STEPS) + 2 * requests  # while prompts come in, the first ones decode
    length = _PROMPT_TOKENS + output
    pages = -(-length // PAGE_SIZE) + 1
    config = SchedulerConfig(
        num_pages=requests * pages, max_model_len=length, page_size=PAGE_SIZE,
        max_running_requests=requests, admission="reserve", cuda_graph_batch_sizes=(requests,),
    )  # fmt: skip
    scheduler = Scheduler(config)
    draw = np.random.default_rng(1)
    for number in range(requests):
        tokens = TokenBuffer(draw.integers(0, _VOCAB, _PROMPT_TOKENS), length)
        scheduler.add(Request(number, _PROMPT_TOKENS, output, tokens=tokens), 0)
    rows = RequestRows(config.max_plans_in_flight * requests, lambda _row, _request: None)
    return scheduler, StepBuilder(rows, pages, PAGE_SIZE)


def _planned(scheduler: Scheduler, now: int) -> StepPlan:
    """The next step, with its members read as an executor does."""
    plan = scheduler.plan(now)
    if plan is None:
        raise RuntimeError("the scheduler has no step although all requests decode on")
    plan.decode_members()
    return plan


def _timed(work: Callable[P, Result], *of: P.args, **named: P.kwargs) -> tuple[Result, float]:
    """What `work` returns, and the ns that it took."""
    begin = time.perf_counter_ns()
    result = work(*of, **named)
    return result, float(time.perf_counter_ns() - begin)
