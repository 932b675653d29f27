"""The suite of a folder: which loads exactly, at which rates, of which engine.

Rates are shares of a capacity that the first profile predicted. `suite.json` keeps it, so that a
later and better profile is judged on the very loads that were measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.bounded_file import read_bounded
from simulator.profile import Identity, Profile
from workbench.fidelity.errors import DamagedError, FidelityError
from workbench.fidelity.loads import AT_ONCE, TRACE, Load
from workbench.fidelity.trace_window import TraceWindow, find_window
from workbench.record.atomic_file import write_atomic
from workbench.record.provenance import input_file
from workbench.record.result_folder import make_folder
from workbench.running.simulate import prepare
from workbench.scenario.source import LoadedScenario, load_scenario

SCHEMA: Final = "fidelity-suite/v1"
FILE: Final = "suite.json"
DEFAULT_REPEATS: Final = 3
_IDENTITY: Final = (
    "gpu", "model_digest", "dtype", "kv_dtype", "page_size", "tensor_parallel_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Basis:
    """What all loads change: a scenario with settings, and the loads there are."""

    scenario: str
    settings: tuple[str, ...]
    loads: Sequence[Load]


@dataclass(frozen=True, slots=True)
class Suite:
    """The loads of a folder.

    Attributes:
        folder: where cells are.
        basis: what is varied.
        engine: what decides whether two engines are the same.
        repeats: runs of each load.
        capacities: workload -> requests a second when all come at once, as once predicted.
        window: of a trace, or None.
    """

    folder: Path
    basis: Basis
    engine: dict[str, Any]
    repeats: int
    capacities: dict[str, float]
    window: TraceWindow | None

    def settings(self, load: Load) -> tuple[str, ...]:
        """All settings of a load, with its rate, wherever the folder is."""
        rate = load.share * self.capacities.get(load.workload, 0.0)
        arrivals = load.arrivals.replace("{rate}", f"{rate:.6g}")
        if self.window is not None and rate:
            arrivals = arrivals.replace("{scale}", f"{self.window.request_rate / rate:.6g}")
        warm = "load.warmup_requests=0"
        return (*self.basis.settings, load.workload, arrivals, warm, *load.more)

    def loaded(self, load: Load, profile: str | None = None) -> LoadedScenario:
        """The scenario of a load, to be predicted with the profile of a file, or "analytic"."""
        settings = self.settings(load)
        if self.window is not None:
            path = json.dumps(str(self.window.path))
            settings = tuple(text.replace(TRACE, path) for text in settings)
        if profile is not None:
            settings += (f"hardware.profile={profile}",)
        return load_scenario(self.basis.scenario, settings)


def identity_facts(identity: Identity) -> dict[str, Any]:
    """What decides whether two engines are the same; versions do not."""
    return {name: getattr(identity, name) for name in _IDENTITY}


def open_suite(
    folder: Path,
    basis: Basis,
    profile: Profile,
    profile_path: Path,
    *,
    repeats: int | None = None,
    trace: Path | None = None,
    make: bool = True,
) -> Suite:
    """The suite of a folder, which is made if it is not there.

    Args:
        folder: of cells.
        basis: what is varied.
        profile: predicts capacities that nobody has predicted yet; is of the same engine.
        profile_path: its file.
        repeats: runs of each load; None: as before, or `DEFAULT_REPEATS`.
        trace: whose beginning becomes a load; None: that of the folder, if it has one.
        make: whether a folder that is none of a suite becomes one, and keeps `repeats`.

    Raises:
        FidelityError: the folder holds measurements of something else, or none and `make` is false.
        TraceError: the trace cannot be read.
    """
    path, engine = folder / FILE, identity_facts(profile.identity)
    about = {"schema": SCHEMA, "scenario": basis.scenario, "settings": list(basis.settings),
             "engine": engine}  # fmt: skip
    kept = read_json(path) if path.exists() else {}
    if kept:
        _refuse_other(path, kept, about)
    elif not make:
        raise FidelityError(f"{path} is not there: nothing has been measured in {folder}")
    make_folder(folder)
    window = find_window(folder, trace)
    capacities = dict(kept.get("requests_per_s", {}))
    wanted = repeats or kept.get("repeats", DEFAULT_REPEATS)
    suite = Suite(folder, basis, engine, wanted, capacities, window)
    known = len(capacities)
    for load in basis.loads:
        possible = not load.is_of_trace or window is not None
        if load.share and possible and load.workload not in capacities:
            capacities[load.workload] = _capacity(suite, load, profile_path)
    if not kept or len(capacities) > known or (make and wanted != kept.get("repeats")):
        predicted_by = {"profile": profile.name, "sha256": input_file(profile_path).sha256}
        data = {**about, "repeats": wanted if make else kept["repeats"],
                "requests_per_s": capacities,
                "predicted_by": kept.get("predicted_by", predicted_by)}  # fmt: skip
        write_atomic(path, json.dumps(data, indent=1).encode() + b"\n")
    return suite


def read_json(path: Path) -> dict[str, Any]:
    """A file of the folder.

    Raises:
        DamagedError: it is no JSON object, or cannot be read.
    """
    try:
        data = json.loads(read_bounded(path), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(data, dict):
        raise _damaged(path, "no JSON object")
    return data


def _refuse_constant(name: str) -> None:
    """NaN and infinities, which Python reads, are no JSON."""
    raise ValueError(f"{name} is no number")


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path} is damaged ({why}): delete it, and without --judge-only it is made again"
    )


def _refuse_other(path: Path, kept: dict[str, Any], about: dict[str, Any]) -> None:
    engine = kept.get("engine")
    if not isinstance(engine, dict) or not isinstance(kept.get("repeats"), int):
        raise _damaged(path, "it lacks facts")
    other = [
        f"{key} {kept.get(key)}, not {value}" for key, value in about.items()
        if kept.get(key) != value and key != "engine"
    ]  # fmt: skip
    other += [
        f"an engine with {key} {engine.get(key)}, not {value}"
        for key, value in about["engine"].items()
        if engine.get(key) != value
    ]
    if other:
        raise FidelityError(
            f"{path} is of {'; of '.join(other)}: name another --output-dir, or the profile of it"
        )


def _capacity(suite: Suite, load: Load, profile_path: Path) -> float:
    """Requests a second of a workload when all come at once, as predicted."""
    offline = Load(load.name, load.workload, AT_ONCE, more=load.more)
    loaded = suite.loaded(offline, str(profile_path))
    summary = prepare(loaded, "none").run().summary
    if summary is None:
        raise AssertionError("a simulation that nobody stops has a summary")
    return float(summary["request_throughput"])
