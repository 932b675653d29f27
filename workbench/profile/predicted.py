"""What a step takes by class where nobody measured it, as the analytic cost model divides it.

The whole is the cost model's `gpu_ns`, to the ns. Each of its terms is shared among the classes of
kernels in it by the time that each would take alone; its term `launch` is the gaps between kernels,
and belongs to no class. The host's time runs beside the GPU's and is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.core.dtypes import QUANTIZED_DTYPES
from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.cost_model import StepFeatures, StepShape
from simulator.roofline import RooflineCostModel
from workbench.profile.ceilings import NEVER_QUANTIZED
from workbench.profile.counted_work import ELEMENTWISE, Work, counted_work

COMMUNICATION_CLASS: Final = "communication"
"""All-reduces and the gather of logits between the GPUs of a replica."""
_MOVERS: Final = (ELEMENTWISE, "sampling")
_ATTENTION: Final = ("attention_prefill", "attention_decode")
_NORM_WEIGHTS: Final = "norm weights"
_LINEAR: Final = ("qkv", "output", "gate_up", "down", "router", _NORM_WEIGHTS)
# Term of the cost model -> classes of kernels in it. Weights of norms are in the first, while the
# kernels that read them are elementwise.
_CLASSES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "linear": _LINEAR,
    "experts": ("experts",),
    "attention_prefill": ("attention_prefill",),
    "attention_decode": ("attention_decode",),
    "lm_head": ("lm_head", "sampling"),
    "elementwise": (ELEMENTWISE,),
    "all_reduce": (COMMUNICATION_CLASS,),
}


@dataclass(frozen=True, slots=True)
class PredictedStep:
    """A step by the analytic cost model.

    Attributes:
        work: class -> what it has to do.
        times_us: class -> what it takes.
        gpu_us: of the whole step: all classes and the gaps between kernels.
        host_us: of the CPU around the step, beside the GPU's time.
    """

    work: Mapping[str, Work]
    times_us: Mapping[str, float]
    gpu_us: float
    host_us: float


class StepPredictor:
    """Predicts steps of one replica.

    Args:
        model: what runs.
        gpu: on what.
        tensor_parallel_size: on how many of them.
        weight_dtype: of the projections; None is the checkpoint's own.
        kv_dtype: of the KV cache; None is the model's dtype.

    Raises:
        ValueError: as `RooflineCostModel`.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: HardwareSpec,
        *,
        tensor_parallel_size: int = 1,
        weight_dtype: str | None = None,
        kv_dtype: str | None = None,
    ) -> None:
        self._model, self._gpu, self._tp = model, gpu, tensor_parallel_size
        self._weights = weight_dtype or model.weight_dtype
        self._kv = kv_dtype or model.dtype
        self._costs = RooflineCostModel(
            model, gpu, tensor_parallel_size=self._tp, weight_dtype=self._weights,
            kv_dtype=self._kv,
        )  # fmt: skip

    def predict(self, shape: StepShape) -> PredictedStep:
        """The step of that shape; one without tokens takes no time."""
        if shape.prefill_tokens + shape.decode_tokens < 1:
            return PredictedStep({}, {}, 0.0, 0.0)
        work = counted_work(
            self._model, shape, tensor_parallel_size=self._tp, weight_dtype=self._weights,
            kv_dtype=self._kv, whole_last_layer=True,
        )  # fmt: skip
        plain = plain_dtype(self._model, self._weights)
        alone = predicted_times(work, self._gpu, self._weights, plain)
        norms = self._model.weight_bytes_by_group(self._weights, self._tp).get("norm", 0)
        alone[_NORM_WEIGHTS] = norms / self._gpu.weight_bandwidth * 1e6
        costs = self._costs.step_costs(StepFeatures.from_shapes([shape]))
        terms_us = {name: int(term[0]) / 1e3 for name, term in costs.terms.items()}
        gather_us = self._gather_us(shape)
        terms_us["lm_head"] -= gather_us
        terms_us["all_reduce"] += gather_us
        return PredictedStep(
            work, _shared(terms_us, alone), int(costs.gpu_ns[0]) / 1e3, int(costs.host_ns[0]) / 1e3
        )

    def _gather_us(self, shape: StepShape) -> float:
        """What bringing together the logits of several GPUs takes."""
        if not shape.sampled_tokens:
            return 0.0
        c = self._costs.coefficients
        logits = max(shape.sampled_tokens, shape.graph_batch)
        return (c.gather_ns + c.gather_row_ns * logits) / 1e3


def _shared(terms_us: Mapping[str, float], alone: Mapping[str, float]) -> dict[str, float]:
    """Each term shared among its classes, by what they take alone."""
    found: dict[str, float] = {}
    for term, kinds in _CLASSES_OF.items():
        own = {kind: alone[kind] for kind in kinds if alone.get(kind)}
        if len(kinds) == 1 and terms_us[term] > 0:
            own = {kinds[0]: 1.0}
        whole = sum(own.values())
        found |= {kind: terms_us[term] * us / whole for kind, us in own.items()}
    found[ELEMENTWISE] += found.pop(_NORM_WEIGHTS, 0.0)
    return found


def plain_dtype(model: ModelSpec, weight_dtype: str) -> str:
    """In which the kernels compute whose weights are never quantized, and attention does."""
    return model.dtype if weight_dtype in QUANTIZED_DTYPES else weight_dtype


def predicted_times(
    work: Mapping[str, Work], gpu: HardwareSpec, weight_dtype: str, plain_dtype: str | None = None
) -> dict[str, float]:
    """Class -> us that it takes alone, without launches and gaps.

    Args:
        work: class -> what it has to do.
        gpu: on what.
        weight_dtype: in which products compute.
        plain_dtype: in which those compute that are never quantized; None: the same.
    """
    plain = plain_dtype or weight_dtype
    return {
        kind: _time_us(kind, one, gpu, plain if kind in NEVER_QUANTIZED else weight_dtype)
        for kind, one in work.items()
    }


def _time_us(kind: str, work: Work, gpu: HardwareSpec, dtype: str) -> float:
    if kind in _MOVERS:
        return work.num_bytes / gpu.copy_bandwidth * 1e6
    if kind in _ATTENTION:
        moved_s, done_s = work.num_bytes / gpu.copy_bandwidth, work.flops / gpu.attention_flops
    else:
        moved_s = work.num_bytes / gpu.weight_bandwidth
        done_s = work.flops / gpu.gemm_flops(dtype)
    return max(moved_s, done_s) * 1e6
