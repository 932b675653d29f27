"""Runs a step for a profiler that watches from outside: Nsight Systems or Compute. Needs torch."""

from __future__ import annotations

from copy import copy

import torch

from engine.nvtx_ranges import annotate
from engine.profiling.made_plans import PlanMaker
from engine.profiling.op_classes import LABELLED, MEASURED, STEP
from engine.profiling.op_ranges import named_ops
from engine.profiling.step_shapes import StepDesign
from engine.runtime.model_runner import ModelRunner

_WARM_UP = 2


def run_for_profiler(
    runner: ModelRunner, maker: PlanMaker, design: StepDesign, steps: int, *, eager: bool
) -> None:
    """Warm up, and run steps between cudaProfilerStart and cudaProfilerStop.

    The last of them runs kernel by kernel with each op in an NVTX range; with `eager` it is the
    only one.

    Args:
        runner: of the engine; it cannot replay graphs afterwards.
        maker: of its plans.
        design: the step.
        steps: that run as when serving.
        eager: none of those.
    """
    before, plan = maker.make(design)
    if before is not None:
        runner.launch(before).result()
    for _ in range(_WARM_UP):
        runner.launch(plan).result()
    plain = copy(plan)
    plain.graph_batch = 0
    if eager:
        runner.steps.close()
        runner.launch(plain).result()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    if not eager:
        with annotate(MEASURED):
            for _ in range(steps):
                with annotate(STEP):
                    step = runner.launch(plan)
                step.result()
        runner.steps.close()
    runner.transformer.kernels = named_ops(runner.transformer)
    with annotate(LABELLED):
        runner.launch(plain).result()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()
