"""Serves texts with a real model runner and the real scheduler, and keeps what was seen of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from late_executor import LateExecutor

from engine.core.config import SchedulerConfig
from engine.core.journal import Journal, read_calls, replay
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.runtime.build import build_runner
from engine.runtime.executor import Executor, StepOutput
from engine.runtime.model_runner import ModelRunner
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.serving_loop import LoopEvents, ServingLoop, Turn


def clock() -> Callable[[], int]:
    """Ticks once whenever somebody looks."""
    return itertools.count().__next__


def make_runner(model: str, **settings: Any) -> ModelRunner:
    """A runner of at most 4 requests of 256 tokens, if `settings` do not say otherwise."""
    known = dict(max_running_requests=4, max_num_batched_tokens=64, num_pages=64)
    return build_runner(RunnerConfig(model=model, **{**known, **settings}), clock())


def scheduler_config(runner: ModelRunner, **settings: Any) -> SchedulerConfig:
    """Settings that fit a runner."""
    config = runner.config
    known = dict(
        num_pages=runner.num_pages,
        max_model_len=runner.max_model_len,
        page_size=config.page_size,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_running_requests=config.max_running_requests,
        cuda_graph_batch_sizes=config.cuda_graph_batch_sizes,
        check_every=5,
    )
    return SchedulerConfig(**{**known, **settings})


@dataclass
class Served:
    """Requests that are over.

    Attributes:
        requests: by id.
        logits: by id and number of outputs before: the last logits seen for that token, fp32[V].
        seen: counts of what happened.
        failures: errors of steps.
    """

    requests: dict[int, Request] = field(default_factory=dict)
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)

    def text(self, request_id: int) -> list[int]:
        """What was generated."""
        request = self.requests[request_id]
        tokens = request.tokens
        assert isinstance(tokens, TokenBuffer)
        return tokens.ids(request.prompt_tokens, len(tokens)).tolist()


class TinyEngine:
    """One runner, one scheduler, one loop.

    Args:
        runner: computes.
        late: whether steps are done later than they are launched; a seed: how much later.
        executor: in place of the runner, if something wraps it.
        settings: of the scheduler.
    """

    def __init__(
        self,
        runner: ModelRunner,
        late: int | bool = False,
        executor: Executor | None = None,
        **settings: Any,
    ) -> None:
        self.served = Served()
        self.config = scheduler_config(runner, **settings)
        self.journal = Journal()
        self.scheduler = Scheduler(self.config, journal=self.journal)
        self.executor = executor or runner
        if late is not False:
            coin = None if late is True else Random(late)
            # Just late enough for as many plans in flight as there may be.
            denials = self.config.max_plans_in_flight - 1
            self.executor = LateExecutor(self.executor, denials, coin)
        self._prompts: dict[int, list[int]] = {}
        self._aborts: dict[int, int] = {}
        self._due: list[int] = []
        self._rows: list[tuple[int, int]] = []
        _spy_on_logits(runner, self._take_logits)
        events = LoopEvents(on_failure=self.served.failures.append)
        self.loop = ServingLoop(self.scheduler, self.executor, clock(), self, events=events)

    def planned(self, plan: StepPlan) -> None:
        seen = self.served.seen
        rows = [(r, 0) for r, _ in plan.sampling_requests()]
        decodes = {id(r) for r, _ in plan.decode_members()}
        self._rows = [(r.request_id, _position(plan, r, id(r) in decodes)) for r, _ in rows]
        seen["mixed"] += bool(plan.prefills and plan.decode_requests)
        seen["chunks"] += sum(not item.samples for item in plan.prefills)
        seen["continued"] += sum(item.context_tokens > 0 for item in plan.prefills)
        seen["hit_tokens"] += plan.hit_tokens
        seen["retracted"] += plan.retracted
        seen["fed"] += plan.feeds_from >= 0

    def stopped(self, plan: StepPlan, output: StepOutput) -> Sequence[int]:
        for request, epoch in plan.sampling_requests():
            limit = self._aborts.get(request.request_id)
            if limit is not None and epoch == request.epoch:
                outputs = len(request.tokens) - request.prompt_tokens
                if outputs >= limit:
                    self._due.append(request.request_id)
        return ()

    def serve(
        self,
        prompts: Mapping[int, Sequence[int]],
        max_tokens: int,
        aborts: Mapping[int, int] | None = None,
    ) -> Served:
        """Serve prompts to the end.

        Args:
            prompts: by request id.
            max_tokens: of each.
            aborts: request id -> after how many outputs its client gives up.
        """
        self.begin(prompts, max_tokens, aborts)
        while self.turn():
            pass
        return self.served

    def begin(
        self,
        prompts: Mapping[int, Sequence[int]],
        max_tokens: int,
        aborts: Mapping[int, int] | None = None,
    ) -> None:
        """Take prompts in; see `serve`."""
        self._aborts = dict(aborts or {})
        for request_id, prompt in prompts.items():
            self._prompts[request_id] = list(prompt)
            request = _request(request_id, prompt, max_tokens)
            self.served.requests[request_id] = request
            assert not self.loop.add(request)

    def turn(self) -> bool:
        """Drive on a little; False if nothing is left to do."""
        if self.loop.turn() is Turn.IDLE:
            assert not self.loop.has_work, "nothing runs, and nothing will ever change that"
        for request_id in self._due:
            self.loop.abort(request_id)
        self._due.clear()
        return self.loop.has_work

    def replay(self) -> int:
        """Give the journal to a fresh scheduler that knows the prompts only."""
        data = self.journal.to_array()
        buffers = {i: TokenBuffer(prompt) for i, prompt in self._prompts.items()}
        return replay(read_calls(data), Scheduler(self.config), buffers.__getitem__)

    def _take_logits(self, logits: torch.Tensor) -> None:
        rows = logits[: len(self._rows)].float().cpu()  # a captured step may be padded
        for key, row in zip(self._rows, rows, strict=True):
            self.served.logits[key] = row.clone()


def _position(plan: StepPlan, request: Request, decodes: bool) -> int:
    """How many outputs come before the token that a plan samples for a request."""
    known = request.offset + plan.decode_iteration if decodes else request.known_tokens
    return known - request.prompt_tokens


def _request(request_id: int, prompt: Sequence[int], max_tokens: int) -> Request:
    tokens = TokenBuffer(list(prompt), len(prompt) + max_tokens)
    return Request(request_id, len(prompt), max_tokens, tokens=tokens)


def _spy_on_logits(runner: ModelRunner, take: Callable[[torch.Tensor], None]) -> None:
    """Show every sampler call's logits to `take`; not what a CUDA Graph replays."""
    transformer = runner.transformer
    sample = getattr(transformer, "unspied_sample", transformer.kernels.sample)
    transformer.unspied_sample = sample  # type: ignore[attr-defined]

    def spied(logits: torch.Tensor, *rest: Any) -> Any:
        if not (logits.is_cuda and torch.cuda.is_current_stream_capturing()):
            take(logits)
        return sample(logits, *rest)

    transformer.kernels = replace(transformer.kernels, sample=spied)
