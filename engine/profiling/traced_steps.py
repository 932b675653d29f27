"""Records traces of an engine's steps with torch's profiler. Needs torch."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections import deque
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from engine.core.plan import StepPlan
from engine.profiling.made_plans import PlanMaker
from engine.profiling.op_classes import LABELLED, MEASURED, RANGE, STEP, WAIT
from engine.profiling.op_ranges import named_ops
from engine.profiling.step_shapes import StepDesign
from engine.runtime.executor import Executor, RunningStep, StepOutput
from engine.runtime.model_runner import ModelRunner

_WARM_UP, _IN_FLIGHT = 3, 2
_SILENT = "6"  # above all levels of the profiler's log


class Tracer:
    """torch's profiler, as a context; afterwards `events` holds what it saw.

    Attributes:
        events: of the Chrome trace format.
        facts: the other keys of that format.
    """

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        else:  # where nothing but the CPU is watched its log has no news; torch 2.13 prints it
            os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
        self._profiler = profile(activities=activities, acc_events=True)  # else it warns
        self.events: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to record."""
        self._profiler.start()

    def stop(self) -> None:
        """Wait for the device, and take what was recorded."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self.facts = json.loads(path.read_text(encoding="utf-8"))
        self.events = self.facts.pop("traceEvents")

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write a trace that Perfetto and chrome://tracing open, compressed.

        Args:
            path: a `.json.gz`.
            about: what was traced; stands in the file under the key "workbench".
        """
        whole = {**self.facts, "workbench": about, "traceEvents": self.events}
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
            json.dump(whole, file, separators=(",", ":"))


def trace_step(
    runner: ModelRunner, maker: PlanMaker, design: StepDesign, steps: int, *, eager: bool = False
) -> Tracer:
    """Run a step again and again as when serving, and once more with all of its ops named.

    The runner cannot replay graphs afterwards.

    Args:
        runner: of the engine.
        maker: of its plans.
        design: the step.
        steps: how often.
        eager: kernel by kernel, where a graph could be replayed.
    """
    before, plan = maker.make(design)
    if before is not None:
        runner.launch(before).result()
    if eager:
        runner.steps.close()
        plan.graph_batch = 0
    on_gpu = runner.device.type == "cuda"
    if not on_gpu:  # nothing but the ranges of its ops divides a CPU's step
        runner.transformer.kernels = named_ops(runner.transformer)
    run_steps(runner, plan, _WARM_UP)
    tracer = Tracer()
    tracer.start()
    with record_function(RANGE + MEASURED):
        run_steps(runner, plan, steps)
    if on_gpu:
        _run_named(runner, plan)
    tracer.stop()
    return tracer


def run_steps(executor: Executor, plan: StepPlan, steps: int) -> list[int]:
    """Times of a step in ns, run as steps follow each other when serving."""
    flying: deque[RunningStep] = deque()
    times: list[int] = []
    for _ in range(steps):
        with record_function(RANGE + STEP):
            flying.append(executor.launch(plan))
        if len(flying) == _IN_FLIGHT:
            times.append(_result(flying.popleft()))
    times += [_result(step) for step in flying]
    return times


def _result(step: RunningStep) -> int:
    with record_function(RANGE + WAIT):
        return step.result().gpu_ns


def _run_named(runner: ModelRunner, plan: StepPlan) -> None:
    runner.steps.close()
    plain = copy(plan)
    plain.graph_batch = 0
    runner.launch(plain).result()
    unnamed = runner.transformer.kernels
    runner.transformer.kernels = named_ops(runner.transformer)
    try:
        with record_function(RANGE + LABELLED):
            runner.launch(plain).result()
    finally:
        runner.transformer.kernels = unnamed


class StepsOfARun:
    """Records some of the steps of an engine while it serves.

    Args:
        runner: of the engine; its `launch` is replaced by one that watches.
        first: steps that go by before.
        steps: to record.

    Attributes:
        tracer: with what was recorded; None: the run has not come so far.
    """

    def __init__(self, runner: ModelRunner, first: int, steps: int) -> None:
        self._runner, self._launch = runner, runner.launch
        self._first, self._last = first, first + steps
        self._unnamed = runner.transformer.kernels
        self._launched = 0
        self._open: tuple[Tracer, Any] | None = None
        self.tracer: Tracer | None = None
        runner.launch = self._watch  # type: ignore[method-assign]

    def _watch(self, plan: StepPlan) -> RunningStep:
        if self._launched == self._first:
            tracer, measured = Tracer(), record_function(RANGE + MEASURED)
            if self._runner.device.type == "cpu":
                self._runner.transformer.kernels = named_ops(self._runner.transformer)
            tracer.start()
            measured.__enter__()
            self._open = tracer, measured
        elif self._launched == self._last:
            self.finish()
        self._launched += 1
        if self._open is None:
            return self._launch(plan)
        with record_function(RANGE + STEP):
            return _WatchedStep(self._launch(plan))

    def finish(self) -> None:
        """Stop recording, if it is going on."""
        if self._open is not None:
            self.tracer, measured = self._open
            self._open = None
            measured.__exit__(None, None, None)
            self.tracer.stop()
            self._runner.transformer.kernels = self._unnamed


class _WatchedStep:
    """A running step; waiting for it can be seen in the trace."""

    def __init__(self, step: RunningStep) -> None:
        self._step = step

    def is_done(self) -> bool:
        """As `RunningStep.is_done`."""
        return self._step.is_done()

    def result(self) -> StepOutput:
        """As `RunningStep.result`."""
        with record_function(RANGE + WAIT):
            return self._step.result()
