"""The composed cost model: steps of models that never ran, from what single kernels take.

Tables of kernels (`kernel_file`) are summed up layer by layer (`kernel_parts`), corrected by how
the steps of measured models differ from such sums, and brought into the form of a profile's fit
(`composing`), which `simulator.calibrated` reads. The terms of gpu_ns are its terms.

The name says how far steps of models that were measured whole were from what the tables and the
*other* models say of them: medians and 90th percentiles of the regions of steps, averaged by how
many steps they have, of the model that was missed most. No error is known of a mixture as long as
none was measured whole, of several GPUs, and of a model much smaller or larger than those. Of a
mixture the name says how unevenly experts are assumed to be chosen, of several GPUs whose exchange
was measured, which may be another GPU's.

A step counts as extrapolated beyond what was measured, and always if the model's sizes are not
among those that were, or if several GPUs exchange sums and these were not measured on as many of
this GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from engine.core.graph_sizes import default_graph_tokens
from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.calibrated import FittedCostModel
from simulator.composition.composing import compose_fit, flops_per_token
from simulator.composition.exchange_curves import knows, most_below
from simulator.composition.kernel_file import ComposedError, KernelFile
from simulator.composition.kernel_parts import KernelParts
from simulator.composition.kernel_tables import KernelTables
from simulator.profile import LaunchFit

_MARGIN: Final = 1.5  # times the largest model measured whole, and as much below the smallest


class ComposedCostModel(FittedCostModel):
    """Step costs of a model, from kernels; implements `CostModel`.

    Args:
        kernels: what was measured.
        model: what runs.
        gpu: on what; the one that was measured.
        tensor_parallel_size: on how many of them.
        graph_tokens: to which the engine pads steps with prompts; None: as it does now.

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
        graph_tokens: Sequence[int] | None = None,
    ) -> None:
        composition = kernels.composition
        skew = composition.expert_skew
        parts = KernelParts(KernelTables(kernels), model, gpu, tensor_parallel_size, skew)
        sizes = graph_tokens
        if sizes is None:
            sizes = () if kernels.identity.gpu == "cpu" else default_graph_tokens(model)
        flops = flops_per_token(model, tensor_parallel_size)
        fit = compose_fit(parts, composition.correction, composition.lenders, sizes, flops)
        name = composed_name(kernels, model, tensor_parallel_size)
        super().__init__(name, fit, sizes, _known_kinds())


def composed_name(kernels: KernelFile, model: ModelSpec, tensor_parallel_size: int) -> str:
    """Who speaks, what is assumed, and how far off it is expected to be."""
    said = [f"composed from kernel tables of {kernels.identity.gpu}"]
    if model.moe is not None:
        said.append(f"expert skew {kernels.composition.expert_skew:g} assumed")
    if tensor_parallel_size > 1:
        said.append(f"exchange {_whose_exchange(kernels, tensor_parallel_size)}")
    expected = _expected_of(kernels, model) if tensor_parallel_size == 1 else None
    said.append("error not known" if expected is None
                else f"expected error {expected[0]:.1f} %, p90 {expected[1]:.1f} %")  # fmt: skip
    return ", ".join(said)


def _whose_exchange(kernels: KernelFile, gpus: int) -> str:
    """Whose exchange a model on so many GPUs is composed of, as `KernelParts` does."""
    if kernels.exchange is None:
        return "analytic"
    if knows(kernels.exchange, gpus):
        return f"of {kernels.exchange.gpu}"
    fewer = most_below(kernels.exchange, gpus)
    if fewer is None:
        return "analytic"
    return f"analytic but no faster than of {fewer} {kernels.exchange.gpu}"


def _expected_of(kernels: KernelFile, model: ModelSpec) -> tuple[float, float] | None:
    """The error of models of this kind, if it is about as large as those measured whole."""
    mixture, flops = model.moe is not None, flops_per_token(model, 1)
    alike = [each for each in kernels.composition.lenders if each.mixture == mixture]
    sizes = [lender.flops_per_token for lender in alike]
    if not sizes or min(sizes) > _MARGIN * flops or flops > _MARGIN * max(sizes):
        return None
    names = {lender.model for lender in alike}
    return expected_error(tuple(e for e in kernels.composition.errors if e.model in names))


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
