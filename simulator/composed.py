"""The composed cost model: steps of models that never ran, from what single kernels take.

Tables of kernels (`simulator.kernel_file`) are summed up layer by layer (`simulator.kernel_parts`),
corrected by how the steps of measured models differ from such sums, and brought into the form of a
profile's fit (`simulator.composing`), which `simulator.calibrated` reads. The terms of gpu_ns are
its terms.

The name says how far steps of models that were measured whole were from what the tables and the
*other* models say of them: medians and 90th percentiles of the regions of steps, averaged by how
many steps they have, of the model that was missed most. Of a mixture, of several GPUs and of a
model much smaller or larger than those, no error is known.

A step counts as extrapolated beyond what was measured, and always if the model's sizes are not
among those that were, or if several GPUs exchange sums, which no table tells of: that part is the
analytic model's.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.core.graph_sizes import default_graph_tokens
from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.calibrated import FittedCostModel
from simulator.composing import compose_fit, flops_per_token
from simulator.kernel_file import ComposedError, KernelFile
from simulator.kernel_parts import KernelParts, KernelTables
from simulator.profile import LaunchFit

_MARGIN: Final = 1.5  # times the largest model measured whole, and as much below the smallest


class ComposedCostModel(FittedCostModel):
    """Step costs of a model, from kernels; implements `CostModel`.

    Args:
        kernels: what was measured.
        model: what runs.
        gpu: on what; the one that was measured.
        tensor_parallel_size: on how many of them.

    Raises:
        ProfileError: the tables have no such kernels.
        TensorParallelError: the model does not divide over that many GPUs.
    """

    def __init__(
        self,
        kernels: KernelFile,
        model: ModelSpec,
        gpu: HardwareSpec,
        *,
        tensor_parallel_size: int = 1,
    ) -> None:
        parts = KernelParts(KernelTables(kernels), model, gpu, tensor_parallel_size)
        composition = kernels.composition
        sizes = () if kernels.identity.gpu == "cpu" else default_graph_tokens(model)
        flops = flops_per_token(model, tensor_parallel_size)
        fit = compose_fit(parts, composition.correction, composition.lenders, sizes, flops)
        alike = model.moe is None and tensor_parallel_size == 1 and _is_between(kernels, flops)
        super().__init__(composed_name(kernels, alike), fit, sizes, _known_kinds())


def composed_name(kernels: KernelFile, alike: bool) -> str:
    """Who speaks, and how far off it is expected to be, of a model like those that were measured.

    Args:
        kernels: what was measured.
        alike: whether the model is.
    """
    expected = expected_error(kernels.composition.errors) if alike else None
    error = (
        "error not known"
        if expected is None
        else (f"expected error {expected[0]:.1f} %, p90 {expected[1]:.1f} %")
    )
    return f"composed from kernel tables of {kernels.identity.gpu}, {error}"


def _is_between(kernels: KernelFile, flops: float) -> bool:
    """Whether a model of so many FLOPs a token is about as large as those measured whole."""
    measured = [lender.flops_per_token for lender in kernels.composition.lenders]
    return bool(measured) and min(measured) <= _MARGIN * flops and flops <= _MARGIN * max(measured)


def expected_error(errors: tuple[ComposedError, ...]) -> tuple[float, float] | None:
    """(median, p90) in percent, of the model whose steps were missed most; None: of no model.

    Each region of a model's steps counts by how many were measured.
    """
    by_model: dict[str, list[ComposedError]] = {}
    for error in errors:
        by_model.setdefault(error.model, []).append(error)
    pairs = []
    for of_model in by_model.values():
        counts = np.array([error.composed.count for error in of_model], np.float64)
        medians = np.array([error.composed.median_percent for error in of_model])
        p90s = np.array([error.composed.p90_percent for error in of_model])
        pairs.append((float(np.average(medians, weights=counts)),
                      float(np.average(p90s, weights=counts))))  # fmt: skip
    return max(pairs, default=None)


def _known_kinds() -> np.ndarray:
    """Kernels tell of all steps but those that decode without a graph."""
    return np.array([name != "eager_decode_ns" for name in LaunchFit.__struct_fields__])
