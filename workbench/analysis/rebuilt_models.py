"""The cost models of a recorded run, made again from its header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.core.events import Columns
from workbench.analysis.predicted_steps import predicted_ns
from workbench.analysis.source import RunTables
from workbench.record.header import RunHeader
from workbench.record.provenance import input_file, place_now

if TYPE_CHECKING:
    from engine.core.hardware_spec import HardwareSpec
    from engine.core.model_spec import ModelSpec
    from simulator.composition.kernel_file import KernelFile
    from simulator.cost_model import CostModel
    from simulator.profile import Profile

_CHECKED_STEPS: Final = 4096


def rebuild_cost_models(run: RunTables) -> dict[int, CostModel]:
    """Replica -> its cost model, where the header names one that this workbench can make.

    A simulated run's model must give the recorded durations again; one that does not (it has
    changed since, or its model's config is another one now) is left out, as is one whose model, GPU
    or config file cannot be found any more.
    """
    found: dict[int, CostModel] = {}
    measured = _measured(run.header)
    for replica, facts in enumerate(run.header.replicas):
        tp = facts.tensor_parallel_size
        model = _of_file(run.header, measured, tp) or _analytic(run.header, tp)
        if model is not None and _agrees(model, run.table("steps"), replica, run.header):
            found[replica] = model
    return found


def _measured(header: RunHeader) -> Profile | KernelFile | None:
    """What the run was made with, if the file is still that one."""
    from simulator.profile import ProfileError
    from workbench.running.step_times import read_measured

    file = header.inputs.get("hardware.profile")
    if file is None:
        return None
    try:
        path = place_now(file)
        if input_file(path).sha256 != file.sha256:
            return None
        return read_measured(path)
    except (ProfileError, OSError):
        return None


def _of_file(
    header: RunHeader, measured: Profile | KernelFile | None, tensor_parallel_size: int
) -> CostModel | None:
    """The cost model of what was measured; None if that is not the run's."""
    from simulator.calibrated import CalibratedCostModel
    from simulator.composition.composed import ComposedCostModel
    from simulator.profile import Profile

    found: CostModel | None = None
    if isinstance(measured, Profile):
        found = CalibratedCostModel(measured)
    elif measured is not None and (shape := _shape(header)) is not None:
        try:
            found = ComposedCostModel(measured, *shape, tensor_parallel_size=tensor_parallel_size)
        except ValueError:
            return None
    return found if found is not None and found.name == header.cost_model else None


def _shape(header: RunHeader) -> tuple[ModelSpec, HardwareSpec] | None:
    """The model and the GPU of a run, where they can still be found."""
    from engine.core.hardware_spec import load_hardware_spec
    from workbench.record.recorded_model import recorded_model

    hardware = _section(header, "hardware")
    if "gpu" not in hardware:
        return None
    try:
        return recorded_model(header), load_hardware_spec(hardware["gpu"])
    except (ValueError, OSError):
        return None


def _analytic(header: RunHeader, tensor_parallel_size: int) -> CostModel | None:
    from simulator.roofline import NAME, RooflineCostModel

    shape, wish = _shape(header), _section(header, "model")
    if header.cost_model != NAME or shape is None:
        return None
    try:
        return RooflineCostModel(
            *shape,
            tensor_parallel_size=tensor_parallel_size,
            weight_dtype=wish.get("weight_dtype"),
            kv_dtype=wish.get("kv_dtype"),
        )
    except ValueError:
        return None


def _section(header: RunHeader, name: str) -> Mapping[str, Any]:
    section = header.scenario.get(name)
    return section if isinstance(section, dict) else {}


def _agrees(model: CostModel, steps: Columns, replica: int, header: RunHeader) -> bool:
    rows = np.flatnonzero(steps["replica"] == replica)
    if header.kind != "simulation" or not len(rows):
        return True
    first = rows[:_CHECKED_STEPS]  # of a whole run clocks are cool before the first
    predicted = predicted_ns(model, {name: column[first] for name, column in steps.items()})
    return bool(np.array_equal(predicted, steps["gpu_ns"][first]))
