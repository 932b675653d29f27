"""The cost models of a recorded run, made again from its header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.core.events import Columns
from workbench.analysis.predicted_steps import predicted_ns
from workbench.analysis.source import RunTables
from workbench.provenance import input_file, place_now
from workbench.run_header import RunHeader

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

_CHECKED_STEPS: Final = 4096


def rebuild_cost_models(run: RunTables) -> dict[int, CostModel]:
    """Replica -> its cost model, where the header names one that this workbench can make.

    A simulated run's model must give the recorded durations again; one that does not (it has
    changed since, or its model's config is another one now) is left out, as is one whose model, GPU
    or config file cannot be found any more.
    """
    found: dict[int, CostModel] = {}
    calibrated = _calibrated(run.header)
    for replica, facts in enumerate(run.header.replicas):
        model = calibrated or _analytic(run.header, facts.tensor_parallel_size)
        if model is not None and _agrees(model, run.table("steps"), replica, run.header):
            found[replica] = model
    return found


def _calibrated(header: RunHeader) -> CostModel | None:
    """The cost model of the profile that the run was made with, if the file is still that one."""
    from simulator.calibrated import CalibratedCostModel
    from simulator.profile import ProfileError, read_profile

    file = header.inputs.get("hardware.profile")
    if file is None:
        return None
    try:
        path = place_now(file)
        if input_file(path).sha256 != file.sha256:
            return None
        return CalibratedCostModel(read_profile(path))
    except (ProfileError, OSError):
        return None


def _analytic(header: RunHeader, tensor_parallel_size: int) -> CostModel | None:
    from engine.core.hardware_spec import load_hardware_spec
    from engine.core.model_spec import load_model_spec
    from simulator.roofline import NAME, RooflineCostModel

    model, hardware = (_section(header, name) for name in ("model", "hardware"))
    wanted = model.get("name") or model.get("path")
    if header.cost_model != NAME or not wanted or "gpu" not in hardware:
        return None
    try:
        return RooflineCostModel(
            load_model_spec(wanted),
            load_hardware_spec(hardware["gpu"]),
            tensor_parallel_size=tensor_parallel_size,
            weight_dtype=model.get("weight_dtype"),
            kv_dtype=model.get("kv_dtype"),
        )
    except (ValueError, OSError):
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
