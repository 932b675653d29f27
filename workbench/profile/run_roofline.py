"""The roofline of any step of a recorded run, and of what it would be with another setting.

A record holds how long a step took, not how long its kernels did: the time is divided among the
classes, launches and gaps as the analytic cost model divides its own. So all of a step is as far
below its prediction as the whole step is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.core.hardware_spec import (
    HardwareSpec,
    UnsupportedGpuDtypeError,
    gpu_names,
    load_hardware_spec,
)
from engine.core.model_spec import ModelSpec, TensorParallelError
from simulator.cost_model import UNKNOWN, StepShape
from simulator.profile import CPU
from workbench.profile.ceilings import Ceilings, assumed_ceilings
from workbench.profile.predicted import PredictedStep, StepPredictor, plain_dtype
from workbench.profile.roofline import Roofline, place
from workbench.record.header import RunHeader
from workbench.record.recorded_model import recorded_model
from workbench.running.profile_match import is_gpu

_NO_CPU = (
    "this run is one of a CPU, and nothing is known of a CPU's ceilings: rooflines are of GPUs. "
    "`workbench profile timeline` shows where a CPU's time goes."
)
_NO_MODEL = "the shape of its model is not to be found: {}"


class NoRooflineError(ValueError):
    """A run whose steps have no roofline; says what is missing."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A step with one thing changed, as predicted beside the prediction of the step as it is.

    Attributes:
        name: of the change.
        step: its time over that of the step as it is.
        tokens_per_s: likewise.
        crossed: classes that would be bound by something else.
    """

    name: str
    step: float
    tokens_per_s: float
    crossed: tuple[str, ...]


class RunRoofline:
    """Places steps of a run.

    Args:
        header: of the run.
        replica: whose steps.

    Attributes:
        gpu, ceilings: of its GPUs.

    Raises:
        NoRooflineError: its model or its GPU is not known.
    """

    def __init__(self, header: RunHeader, replica: int = 0) -> None:
        if header.gpu.casefold() == CPU:
            raise NoRooflineError(_NO_CPU)
        self._model, self.gpu = _model_of(header), _gpu_of(header)
        self._tp = header.replicas[replica].tensor_parallel_size
        section = header.scenario.get("model")
        facts: Mapping[str, Any] = section if isinstance(section, dict) else {}
        self._weights = facts.get("weight_dtype") or self._model.weight_dtype
        self._kv = facts.get("kv_dtype") or self._model.dtype
        self._name = header.model
        self.ceilings = self._ceilings(self._weights)
        self._predictors: dict[tuple[str, int], StepPredictor] = {}
        try:
            self._predictor(self._weights, self._tp)
        except ValueError as error:
            raise NoRooflineError(str(error)) from error

    def _ceilings(self, weights: str) -> Ceilings:
        try:
            return assumed_ceilings(self.gpu, weights, plain_dtype(self._model, weights))
        except UnsupportedGpuDtypeError as error:
            raise NoRooflineError(str(error)) from error

    def at(self, row: Mapping[str, int]) -> Roofline:
        """The roofline of a step.

        Args:
            row: its columns in the table `steps`.
        """
        found, step_us = self._predicted(shape_of_row(row)), row["gpu_ns"] / 1e3
        scale = step_us / found.gpu_us if found.gpu_us else 0.0
        scaled = {kind: us * scale for kind, us in found.times_us.items()}
        return place(self._name, scaled, step_us, found.work, self.ceilings)

    def predicted_us(self, row: Mapping[str, int]) -> float:
        """What a step takes by the analytic model, with launches and gaps."""
        return self._predicted(shape_of_row(row)).gpu_us

    def what_ifs(self, row: Mapping[str, int]) -> list[WhatIf]:
        """Twice the requests, fp8 weights, twice the GPUs: those that the hardware can do."""
        shape = shape_of_row(row)
        found = [
            self._what_if(f"batch {_items(shape):,} → {2 * _items(shape):,}", shape,
                          _doubled(shape), self._weights, self._tp),
        ]  # fmt: skip
        if self._weights != "fp8" and "fp8" in self.gpu.peak_flops:
            found.append(self._what_if("fp8 weights", shape, shape, "fp8", self._tp))
        try:
            self._model.check_tensor_parallel(2 * self._tp)
        except TensorParallelError:
            return found
        name = f"TP {self._tp} → {2 * self._tp}"
        return [*found, self._what_if(name, shape, shape, self._weights, 2 * self._tp)]

    def _what_if(
        self, name: str, before: StepShape, after: StepShape, weights: str, tp: int
    ) -> WhatIf:
        is_now, would_be = self._predicted(before), self._predicted(after, weights, tp)
        now, then = is_now.work, would_be.work
        tokens = _tokens(after) / max(_tokens(before), 1)
        under, over = self.ceilings, self._ceilings(weights)
        crossed = tuple(
            kind
            for kind, work in then.items()
            if kind in now
            and (work.intensity > over.of(kind).ridge)
            != (now[kind].intensity > under.of(kind).ridge)
        )
        step = would_be.gpu_us / is_now.gpu_us if is_now.gpu_us else 1.0
        return WhatIf(name, step, tokens / step if step else 0.0, crossed)

    def _predicted(
        self, shape: StepShape, weights: str | None = None, tp: int | None = None
    ) -> PredictedStep:
        return self._predictor(weights or self._weights, tp or self._tp).predict(shape)

    def _predictor(self, weights: str, tp: int) -> StepPredictor:
        if (weights, tp) not in self._predictors:
            self._predictors[weights, tp] = StepPredictor(
                self._model, self.gpu, tensor_parallel_size=tp, weight_dtype=weights,
                kv_dtype=self._kv,
            )  # fmt: skip
        return self._predictors[weights, tp]


def shape_of_row(row: Mapping[str, int]) -> StepShape:
    """The features of a step of a record."""
    known = {name: int(row[name]) for name in StepShape._fields if name in row}
    return StepShape(**{"active_experts": UNKNOWN, **known})


def _doubled(shape: StepShape) -> StepShape:
    """The same step with twice of everything that it batches."""
    same = ("prefill_max_context", "decode_max_context", "active_experts")
    return StepShape(**{
        name: value if name in same else 2 * value for name, value in shape._asdict().items()
    })  # fmt: skip


def _items(shape: StepShape) -> int:
    return shape.prefill_requests + shape.decode_requests


def _tokens(shape: StepShape) -> int:
    return shape.prefill_tokens + shape.decode_tokens


def _model_of(header: RunHeader) -> ModelSpec:
    try:
        return recorded_model(header)
    except (ValueError, OSError) as error:
        raise NoRooflineError(_NO_MODEL.format(str(error).splitlines()[0])) from error


def _gpu_of(header: RunHeader) -> HardwareSpec:
    for name in gpu_names():
        if is_gpu(name, header.gpu):
            return load_hardware_spec(name)
    known = ", ".join(gpu_names())
    raise NoRooflineError(f"nothing is known of the ceilings of {header.gpu}; known: {known}")
