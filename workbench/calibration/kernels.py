"""From a device to its kernel tables: measure single kernels, and learn what steps make of them.

Models that have a profile of the same GPU teach how steps differ from the sum of their kernels;
profiles are looked for beside the tables and among those that come with the program.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engine.core.hardware_spec import load_hardware_spec
from engine.core.hf_config import ModelConfigError
from engine.core.model_spec import ModelSpec, load_model_spec, model_card_names
from engine.demo import DEMO_MODELS
from engine.profiling.gpu_state import GpuState
from engine.profiling.kernel_cases import SHARDS, KernelCase, design_kernels
from engine.profiling.kernel_tables import PASSES, KernelMeter, KernelTimes, measure_kernels
from engine.runtime.executor import EngineError
from simulator.composition.kernel_exchange import likeliest
from simulator.composition.kernel_file import (
    PREFIX,
    SCHEMA,
    Composition,
    KernelFile,
    KernelIdentity,
    encode_kernel_file,
    read_kernel_file,
)
from simulator.fitting.composition import Measured, fit_composition
from simulator.profile import CPU, Profile, ProfileError
from simulator.profile_file import read_profile
from simulator.shipped_profiles import (
    read_identity,
    read_kernel_identity,
    shipped_kernels,
    shipped_profiles,
)
from workbench.calibration.exchange import exchange_beside
from workbench.calibration.gpu_file_name import gpu_file_name
from workbench.calibration.kernel_measurements import PartialKernels, series_of
from workbench.calibration.merged_kernels import merged, missing, refuse_other_device
from workbench.record.atomic_file import write_atomic
from workbench.record.provenance import source_commit, workbench_version
from workbench.record.result_folder import make_folder
from workbench.running.profile_match import gpu_called, model_digest

Say = Callable[[str], object]
_CPU_SHARDS: Final = (1,)


@dataclass(frozen=True, slots=True)
class KernelCalibration:
    """What measuring kernels brought.

    Attributes:
        kernels: tables, and what makes steps of them.
        path: where they are.
        complete: whether all passes were made in time; if not, the same command adds to them.
    """

    kernels: KernelFile
    path: Path
    complete: bool


def calibrate_kernels(
    device_name: str,
    folder: Path,
    minutes: float,
    *,
    models: Sequence[str] = (),
    expert_skew: float | None = None,
    only_missing: bool = False,
    open_meter: Callable[[str], KernelMeter] | None = None,
    say: Say = lambda _: None,
    now: Callable[[], float] = time.time,
) -> KernelCalibration:
    """Measure the kernels of a device and write its tables.

    Args:
        device_name: as torch writes it.
        folder: of the tables; made if it is not there.
        minutes: that measuring may take, after kernels are compiled.
        models: cards or config files whose sizes are measured; none: `measured_cards`.
        expert_skew: assumed of mixtures; None: as usual.
        only_missing: add to the tables of this device that are in the folder, or ship, what they
            lack.
        open_meter: opens the device; None: torch's.
        say: told what is going on.
        now: s since 1970, for the record.

    Raises:
        EngineError: there is no such device.
        ModelConfigError: a model that cannot be read.
        ProfileError: there was no time to measure enough, or what is in the folder is of another
            device or version.
        RunRecordError: nothing can be written to the folder.
    """
    make_folder(folder)  # before anything takes time
    meter = (open_meter or _open_meter)(device_name)
    identity = KernelIdentity(
        gpu=meter.name, dtype=meter.number_format, page_size=meter.page_size,
        engine_version=workbench_version(), commit=source_commit(), versions=dict(meter.versions),
        implementations=dict(meter.implementations),
    )  # fmt: skip
    name = file_name(meter.name)
    partial = PartialKernels(folder / f"{name}.partial.jsonl", identity)
    specs = [load_model_spec(model) for model in models or measured_cards()]
    before = _tables_of(identity, folder / f"{name}.json") if only_missing else None
    begin = now()
    with GpuState(meter.bus_id) as state:
        done, complete = _measure(meter, specs, partial, 60 * minutes, before, say)
    conditions = {
        "began_unix_s": round(begin), "seconds": round(now() - begin), "complete": complete,
        "models": [spec.name for spec in specs], "gpu_state": state.summary(),
    }  # fmt: skip
    kernels = KernelFile(
        schema=SCHEMA, name=name, identity=identity, series=series_of(done),
        composition=_assuming(Composition(attention=()), expert_skew), conditions=conditions,
    )  # fmt: skip
    kernels = kernels if before is None else merged(before, kernels)
    path = folder / f"{name}.json"
    try:
        kernels = _write(kernels, path)
    except ProfileError as error:
        if complete:
            raise
        raise ProfileError(
            f"{error}; the same command goes on where this one stopped ({partial.path})"
        ) from None
    if complete:
        partial.path.unlink(missing_ok=True)
    return KernelCalibration(kernels, path, complete)


def measured_cards() -> tuple[str, ...]:
    """Cards whose sizes are measured: all but the demo models, which no GPU is bought for."""
    return tuple(name for name in model_card_names() if name not in DEMO_MODELS)


def refit_kernels(path: Path, *, expert_skew: float | None = None) -> KernelCalibration:
    """Learn anew what steps make of the kernels in a file, by the profiles there are now.

    Args:
        path: of the tables, which are written again.
        expert_skew: assumed of mixtures; None: as before.

    Raises:
        ProfileError: they cannot be read, or lack kernels.
    """
    before = read_kernel_file(path)
    composition = _assuming(before.composition, expert_skew)
    kernels = _write(msgspec.structs.replace(before, composition=composition), path)
    return KernelCalibration(kernels, path, bool(kernels.conditions.get("complete", True)))


def teach(profile: Profile, folder: Path) -> KernelCalibration | None:
    """Let the kernel tables of a profile's GPU learn from it, if there are any beside it.

    Raises:
        ProfileError: they cannot be read, or lack kernels.
    """
    path = folder / f"{file_name(profile.identity.gpu)}.json"
    return refit_kernels(path) if path.exists() else None


def file_name(gpu: str) -> str:
    """`kernels-<gpu>`, of letters that every file system takes."""
    return gpu_file_name(PREFIX, gpu)


def _tables_of(identity: KernelIdentity, path: Path) -> KernelFile:
    """Tables to which something is to be added.

    Raises:
        ProfileError: there are none of this device, or other software measured them.
    """
    for each in (path, *shipped_kernels()):
        if each.exists() and read_kernel_identity(each).gpu == identity.gpu:
            tables = read_kernel_file(each)
            refuse_other_device(tables, identity)
            return tables
    raise ProfileError(f"there are no kernel tables of {identity.gpu} to add to: measure all")


def _assuming(composition: Composition, expert_skew: float | None) -> Composition:
    if expert_skew is None:
        return composition
    return msgspec.structs.replace(composition, expert_skew=expert_skew)


def _open_meter(device_name: str) -> KernelMeter:
    """The device. Raises EngineError if there is none, or a package that it needs is missing."""
    try:
        module = importlib.import_module("engine.profiling.kernel_device")
    except ModuleNotFoundError as error:
        raise EngineError(
            f"measuring kernels needs {error.name}, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None
    meter: KernelMeter = module.kernel_device(device_name)
    return meter


def _measure(
    meter: KernelMeter,
    specs: Sequence[ModelSpec],
    partial: PartialKernels,
    seconds: float,
    before: KernelFile | None,
    say: Say,
) -> tuple[KernelTimes, bool]:
    done = partial.read()
    cases = design_kernels(specs, meter.limits, _CPU_SHARDS if meter.name == CPU else SHARDS)
    if before is not None:
        cases = missing(cases, before)
    say(f"kernels of {meter.name}: compiling for {len(cases):,} cases")
    meter.compile(cases)

    def measured(case: KernelCase, times: list[float], share: float) -> None:
        partial.append(case, times)
        say(f"kernels of {meter.name}: {share:.0%} of {len(cases):,} cases, {PASSES} passes each")

    complete = measure_kernels(
        meter, cases, done, deadline_s=time.monotonic() + seconds, measured=measured
    )
    return done, complete


def _write(kernels: KernelFile, path: Path) -> KernelFile:
    """Tables with what makes steps of them, in a file; with the exchange that lies beside it."""
    exchange = likeliest(exchange_beside(path.parent), kernels.identity.gpu)
    if exchange is not None:
        kernels = msgspec.structs.replace(kernels, exchange=exchange)
    names = [*model_card_names(), *kernels.conditions.get("models", ())]
    measured = _measured_models(kernels.identity, path.parent, _shapes(names))
    kernels = fit_composition(
        kernels, measured, load_hardware_spec(gpu_called(kernels.identity.gpu))
    )
    write_atomic(path, encode_kernel_file(kernels))
    return kernels


def _measured_models(
    identity: KernelIdentity, folder: Path, shapes: dict[str, ModelSpec]
) -> list[Measured]:
    """Models that were measured whole on the same GPU in the same number format, by name."""
    found: dict[str, Measured] = {}
    beside = [path for path in sorted(folder.glob("*.json")) if not path.stem.startswith(PREFIX)]
    for path in [*shipped_profiles(), *beside]:  # those beside the tables win
        try:
            own = read_identity(path)
        except ProfileError:
            continue  # a folder may hold other files
        same = own.gpu == identity.gpu and own.dtype == identity.dtype
        if same and own.tensor_parallel_size == 1 and own.page_size == identity.page_size:
            shape = shapes.get(own.model_digest)
            if shape is not None and (profile := _readable(path)) is not None:
                found[own.model] = Measured(profile, shape)
    return [found[name] for name in sorted(found)]


def _readable(path: Path) -> Profile | None:
    """A profile, or None and a word about it: one of an older version must not stand in the way."""
    try:
        return read_profile(path)
    except ProfileError as error:
        warnings.warn(f"left out: {error}", stacklevel=1)
        return None


def _shapes(names: Iterable[str]) -> dict[str, ModelSpec]:
    """Digest -> shape, of the models that can be read."""
    found = {}
    for name in names:
        with suppress(ModelConfigError):  # a file that was there when kernels were measured
            spec = load_model_spec(name)
            found[model_digest(spec)] = spec
    return found
