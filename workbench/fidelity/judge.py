"""Judges predictions by what was measured: pure, needs the cells and a profile, and no engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from simulator.profile import Profile
from simulator.shipped_profiles import read_kernel_identity, shipped_kernels
from workbench.fidelity.cells import (
    OTHER_SOURCES,
    Cell,
    Key,
    cell_files,
    engine_digest,
    read_cell,
    requests_digest,
    what_differs,
)
from workbench.fidelity.errors import DamagedError
from workbench.fidelity.goals import GOALS, JUDGED_STEPS, STEP_GOALS, score
from workbench.fidelity.loads import Load
from workbench.fidelity.predict import Predictor
from workbench.fidelity.step_errors import (
    REGIONS,
    Errors,
    Numbers,
    errors_of_repeats,
    host_times,
    quantiles,
    spread,
    step_errors,
)
from workbench.fidelity.suite import Suite
from workbench.record.atomic_file import write_atomic
from workbench.record.provenance import input_file, source_commit
from workbench.running.profile_remarks import remarks
from workbench.scenario.serving import ANALYTIC

SCHEMA: Final = "fidelity-judgement/v4"
CALIBRATED: Final = "calibrated"
COMPOSED: Final = "composed"  # of kernel tables
COUNTS: Final = ("completed", "retractions", "prefix_hit_rate_percent")
AMPLIFIED: Final = ("mean_ttft_ms", "mean_e2el_ms")
_LONGER: Final = 1.01
_OTHER_FORM: Final = "kept as another version of workbench keeps it"
Judgement = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder has of a load.

    Attributes:
        load: of the suite.
        key: that its cell has to have.
        cell: complete, or with fewer runs than the suite asks for; None if there is none.
        lacks: what has to be measured, in words; empty: nothing.
        other_sources: the cell was measured with other sources of the engine than those here.
    """

    load: Load
    key: Key
    cell: Cell | None
    lacks: str
    other_sources: bool = False


def find_cell(
    suite: Suite,
    load: Load,
    profile_path: Path,
    digest: str | None = None,
    *,
    any_sources: bool = False,
) -> Found:
    """The cell of a load, if it is one of this suite's engine with the sources that are here.

    Args:
        suite: of the load.
        load: to look for.
        profile_path: that prepares its requests.
        digest: of the sources that are here, if it is known already.
        any_sources: nothing can be measured: a cell of other sources, and equal in all else, is
            found, too, and marked; one that is damaged is missing.

    Raises:
        DamagedError: it cannot be read, and could be measured.
    """
    workload = Predictor(suite, str(profile_path)).ready(load).workload
    key = Key(
        suite.basis.scenario, suite.settings(load), requests_digest(workload), suite.engine,
        digest or engine_digest(),
    )  # fmt: skip
    try:
        cell = read_cell(suite.folder, load)
    except DamagedError as error:
        if not any_sources:
            raise
        return Found(load, key, None, str(error))
    if cell is None:
        older = cell_files(suite.folder, load)[0].exists()
        return Found(load, key, None, _OTHER_FORM if older else "not measured")
    other = what_differs(cell, key)
    if other and not (any_sources and other == OTHER_SOURCES):
        return Found(load, key, None, f"measured with {other}")
    runs = len(cell.runs)
    lacks = "" if runs >= suite.repeats else f"{runs} of {suite.repeats} runs measured"
    return Found(load, key, cell, lacks, other_sources=bool(other))


def judge(
    suite: Suite,
    found: Sequence[Found],
    profile: Profile,
    profile_path: Path,
    left_out: dict[str, str],
) -> Judgement:
    """Judge a profile and what does without one by all cells that there are.

    Args:
        suite: of the cells.
        found: of each load; those without a cell are named and not judged.
        profile: to judge.
        profile_path: its file.
        left_out: loads that are not even found -> why.

    Returns:
        JSON data; `table_lines` and `draw` show it.

    Raises:
        ScenarioErrors: the profile is not of this scenario.
    """
    predictors = {CALIBRATED: Predictor(suite, str(profile_path))}
    predictors |= _without_profile(suite, profile)
    judged: list[dict[str, Any]] = []
    pooled: dict[str, dict[str, list[Errors]]] = {
        whose: {region: [] for region in REGIONS} for whose in predictors
    }
    for each in found:
        if each.cell is None:
            continue
        result, errors = _judge_load(each.load, each.cell, predictors)
        judged.append({"load": each.load.name, "other_sources": each.other_sources} | result)
        for whose, regions in errors.items():
            for region, values in regions.items():
                pooled[whose][region].append(values)
    missing = {each.load.name: each.lacks for each in found if each.lacks} | left_out
    marks = [mark for load in judged for mark in _marks(load)]
    return {
        "schema": SCHEMA,
        "profile": profile.name,
        "profile_sha256": input_file(profile_path).sha256,
        "profile_notes": list(remarks(profile)),
        "commit": source_commit(),
        "engine": suite.engine,
        "other_sources": {
            each.load.name: each.cell.about.get("commit")
            for each in found if each.cell is not None and each.other_sources
        },
        "loads": judged,
        "missing": missing,
        "step_quantiles": {
            whose: {region: quantiles(np.concatenate(parts)) if parts else []
                    for region, parts in regions.items()}
            for whose, regions in pooled.items()
        },
        "reached": sum(marks),
        "goals": len(marks),
    }  # fmt: skip


def write_judgement(folder: Path, judgement: Judgement) -> Path:
    """Keep a judgement; returns its file.

    Raises:
        RunRecordError: it cannot be written.
    """
    path = folder / f"judged-{judgement['profile']}.json"
    write_atomic(path, json.dumps(judgement, indent=1, allow_nan=False).encode() + b"\n")
    return path


def _without_profile(suite: Suite, profile: Profile) -> dict[str, Predictor]:
    """What predicts the same GPU without the profile: shipped kernel tables, the analytic model."""
    own = profile.identity
    found = {}
    for path in shipped_kernels():
        kernels = read_kernel_identity(path)
        if (kernels.gpu, kernels.dtype) == (own.gpu, own.dtype):
            found[COMPOSED] = Predictor(suite, str(path))
    return found | {ANALYTIC: Predictor(suite, ANALYTIC)}


def _judge_load(
    load: Load, cell: Cell, predictors: dict[str, Predictor]
) -> tuple[dict[str, Any], dict[str, dict[str, Errors]]]:
    """What is said of a load, and all errors of its steps by whose they are."""
    engine = [run.summary for run in cell.runs]
    steps = [run.steps for run in cell.runs]
    summaries = {whose: each.summary(load) for whose, each in predictors.items()}
    requests = int(min(run["completed"] or 0 for run in engine))
    models = {whose: each.cost_model(load) for whose, each in predictors.items()}
    errors = {whose: step_errors(model, steps) for whose, model in models.items()}
    own = {region: spread(values) for region, values in errors_of_repeats(steps).items()}
    result = {
        "requests": requests,
        "runs": len(engine),
        "wall_s": [run.wall_s for run in cell.runs],
        "about": cell.about,
        "parity": cell.parity,
        "metrics": {
            whose: {metric: asdict(score(metric, [run.get(metric) for run in engine],
                                         summary[metric], requests))
                    for metric in GOALS}
            for whose, summary in summaries.items()
        },
        "counts": {
            name: {"engine": [run.get(name) for run in engine]}
            | {whose: summary[name] for whose, summary in summaries.items()}
            for name in COUNTS
        },
        "steps": {
            whose: {region: _step_numbers(values, own[region])
                    for region, values in regions.items()}
            for whose, regions in errors.items()
        },
        "steps_of_repeats": own,
        "host_ms": host_times(models, steps),
        "amplification": _amplification(load, predictors[CALIBRATED], summaries[CALIBRATED])
        if load.share else None,
    }  # fmt: skip
    return result, errors


def _step_numbers(errors: Errors, own: Numbers) -> dict[str, Any]:
    """The numbers of a region, and which goals they reach.

    Args:
        errors: of a model.
        own: numbers of what the engine's runs say of each other.
    """
    numbers = spread(errors)
    reached = {}
    for name, percent in STEP_GOALS.items():
        value, enough = numbers[name], JUDGED_STEPS[name]
        goal = max(percent, own[name] or 0.0) if (own["count"] or 0) >= enough else percent
        reached[name] = None if value is None or len(errors) < enough else value <= goal
    return {**numbers, "reached": reached}


def _amplification(load: Load, calibrated: Predictor, own: dict[str, Any]) -> dict[str, float]:
    """Percent by which times of requests grow for each percent that all steps are longer."""
    longer = calibrated.summary(load, _LONGER)
    percent = 100 * (_LONGER - 1)
    return {name: 100 * (longer[name] / own[name] - 1) / percent for name in AMPLIFIED if own[name]}


def _marks(load: dict[str, Any]) -> list[bool]:
    """Of everything of the profile that is judged, whether its goal is reached."""
    marks = [each["reached"] for each in load["metrics"][CALIBRATED].values()]
    for numbers in load["steps"][CALIBRATED].values():
        marks += numbers["reached"].values()
    return [mark for mark in marks if mark is not None]
