"""From an engine to a hardware profile: design the experiment, run it, fit it, write it down.

Every pass over a step is appended to a file beside the profile as soon as it is measured, so that a
calibration that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.core.config import SchedulerConfig
from engine.profiling.coarse_order import coarse_first
from engine.profiling.gpu_state import GpuState
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import (
    FEATURES,
    Features,
    Measurements,
    measure_steps,
)
from engine.profiling.step_shapes import EngineLimits, design_steps
from engine.profiling.warming import (
    HotTimes,
    SideSteps,
    WarmingTimes,
    measure_hot,
    measure_warming,
)
from engine.runtime.runner_config import RunnerConfig
from simulator.cost_model import UNKNOWN
from simulator.fitting.profile_fit import fit_profile
from simulator.profile import (
    CPU,
    SCHEMA,
    EngineFacts,
    Identity,
    Profile,
    ProfileError,
)
from simulator.profile_file import encode_profile, read_profile
from simulator.samples import (
    Count,
    HostSamples,
    HotSamples,
    Positive,
    PowerSamples,
    Samples,
    WakeSamples,
)
from workbench.calibration.partial_file import PartialFile
from workbench.calibration.served_times import Service
from workbench.record.atomic_file import write_atomic
from workbench.record.result_folder import make_folder
from workbench.running.engine_driver import HostClock
from workbench.running.engine_run import Build, Runner, Say, build_runner
from workbench.running.profile_match import identity_of

_SERVED = 1 / 8  # of a CPU's minutes, for steps with what hosts do, and as much for idle times


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration brought.

    Attributes:
        profile: of what has been measured.
        path: where it is, if it is kept.
        complete: whether all passes were made in time; if not, the same command adds to it.
        kept: whether it was written: one that saw less never replaces a profile that is there.
    """

    profile: Profile
    path: Path
    complete: bool
    kept: bool = True


class Partial:
    """The file of what has been measured so far.

    Args:
        path: beside the profile to be.
        identity: of the engine; measurements of another one are not taken over.

    Attributes:
        sittings: when and under which conditions it was added to, as far as it was read.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        others = "measurements of another engine, model or version"
        self._file = PartialFile(path, SCHEMA, identity, others)
        self.path = path
        self.sittings: list[dict[str, Any]] = []

    def read(self) -> Measurements:
        """What is there of this engine. Raises ProfileError as `PartialFile.read`."""
        found = Measurements()

        def take(line: str) -> None:
            entry = _entry(line)
            if isinstance(entry, dict):
                self.sittings.append(entry)
            else:
                found.add(*entry)

        self._file.read(take)
        return found

    def append(self, shape: Features, times: list[int]) -> None:
        """Keep one pass over a step."""
        self._file.append([shape, times])

    def end_sitting(self, conditions: dict[str, Any]) -> None:
        """Keep when and under which conditions the last steps were measured."""
        self.sittings.append(conditions)
        self._file.append(conditions)


def _entry(line: str) -> dict[str, Any] | tuple[Features, list[int]]:
    """A line of a partial file: the conditions of a sitting, or a shape and its times.

    Raises:
        ValueError or msgspec.ValidationError: it is neither, or no profile could hold it.
    """
    data = json.loads(line)
    if isinstance(data, dict):
        return data
    shape, times = msgspec.convert(data, tuple[tuple[Count, ...], list[Positive]])
    if len(shape) != len(FEATURES) or not times:
        raise ValueError(
            f"{len(shape)} features and {len(times)} times, not {len(FEATURES)} and at least one"
        )
    return shape, times


def calibrate(
    config: RunnerConfig,
    folder: Path,
    minutes: float,
    *,
    build: Build = build_runner,
    say: Say = lambda _: None,
    now: Callable[[], float] = time.time,
) -> Calibration:
    """Measure an engine and write its profile.

    Args:
        config: of the engine.
        folder: of the profile; made if it is not there.
        minutes: that measuring may take, after the engine has started; passes over all steps have
            half of it at least.
        build: makes the runner.
        say: told what is going on.
        now: s since 1970, for the record.

    Raises:
        ProfileError: there was no time to measure enough, or what is in the folder is of another
            engine.
        RunRecordError: nothing can be written to the folder.

    More as `build`.
    """
    make_folder(folder)  # before anything takes time
    clock = HostClock()
    runner = build(config, clock, lambda text: say(f"{config.model}: {text}"))
    begin = now()
    try:
        with GpuState(runner.facts().get("pci_bus_id")) as state:
            measured = _measure(runner, clock, folder, 60 * minutes, say)
        ceilings = runner.ceilings()
    finally:
        runner.close()
    measured.partial.end_sitting({
        "began_unix_s": round(begin), "seconds": round(now() - begin),
        "ceilings": ceilings, "gpu_state": state.summary(),
    })  # fmt: skip
    profile = _profile(measured)
    path = folder / f"{profile.name}.json"
    kept = measured.complete or _saw_less(path, profile)
    if kept:
        write_atomic(path, encode_profile(profile))
    if measured.complete:
        measured.partial.path.unlink(missing_ok=True)
    return Calibration(profile, path, measured.complete, kept)


def _saw_less(path: Path, profile: Profile) -> bool:
    """Whether a file is no more than an earlier and shorter part of what a profile holds."""
    if not path.exists():
        return True
    try:
        before = read_profile(path)
    except ProfileError:
        return False
    partial = before.conditions.get("complete") is False
    return partial and sum(before.samples.repeats) <= sum(profile.samples.repeats)


def refit(path: Path) -> Calibration:
    """Fit a profile anew to the samples that it holds, as this version of the program does.

    Args:
        path: of the profile, which is written again.

    Raises:
        ProfileError: it cannot be read, or its samples carry no fit.
    """
    profile = read_profile(path, to_refit=True)
    fit = fit_profile(
        profile.samples,
        profile.host_samples,
        profile.engine,
        profile.power_samples,
        profile.wake_samples,
        profile.hot_samples,
    )
    profile = msgspec.structs.replace(profile, schema=SCHEMA, fit=fit)
    write_atomic(path, encode_profile(profile))
    return Calibration(profile, path, bool(profile.conditions.get("complete", True)))


@dataclass(frozen=True, slots=True)
class _Measured:
    """What an engine said of itself, and what was measured of it."""

    identity: Identity
    engine: EngineFacts
    kernels: dict[str, str]
    partial: Partial
    steps: Measurements
    host: HostSamples
    warming: WarmingTimes
    hot: HotTimes
    wake: WakeSamples
    designed: int
    complete: bool


def _measure(runner: Runner, clock: HostClock, folder: Path, seconds: float, say: Say) -> _Measured:
    begin_s = time.monotonic()
    facts, spec = runner.facts(), runner.spec
    identity = identity_of(facts, spec)
    name = profile_name(identity)
    partial = Partial(folder / f"{name}.partial.jsonl", identity)
    steps = partial.read()
    limits = _limits(runner.config, runner.num_pages, runner.max_model_len, facts)
    runner.fill_cache_with_noise()
    say(f"{name}: host time")
    service = Service(runner, _scheduler(limits), clock, spec.vocab_size)
    on_cpu = identity.gpu == CPU  # a step takes long there, and how long no one can say before
    within_s = _SERVED * seconds if on_cpu else None
    host, wake = service.host_samples(within_s), service.wake_samples(within_s)
    side = SideSteps(runner, limits, spec.vocab_size)
    maker, designs = PlanMaker(side.limits, spec.vocab_size), design_steps(side.limits)
    if on_cpu:
        designs = coarse_first(designs)

    def measured(shape: Features, times: list[int], share: float) -> None:
        partial.append(shape, times)
        say(f"{name}: {share:.0%} of the passes over {len(designs):,} steps")

    complete = measure_steps(
        runner,
        maker,
        designs,
        steps,
        deadline_s=_deadline_s(begin_s, seconds, side.seconds),
        measured=measured,
        rest=side.rest,
        paced=on_cpu,
    )
    say(f"{name}: clocks")
    # At last, when the GPU is as hot as in service.
    warming, hot = measure_warming(runner, side), measure_hot(runner, side, maker)
    engine = _engine_facts(limits, runner.config, facts)
    return _Measured(
        identity,
        engine,
        facts["kernels"],
        partial,
        steps,
        host,
        warming,
        hot,
        wake,
        len(designs),
        complete,
    )


def _deadline_s(begin_s: float, seconds: float, clocks_s: float) -> float:
    """Until when steps are measured, on `time.monotonic`; clocks come after them.

    There is always some time for them, so that the same command again and again comes to an end.
    """
    return max(begin_s + seconds - clocks_s, time.monotonic() + seconds / 2)


def _profile(measured: _Measured) -> Profile:
    """Measurements, fitted."""
    samples, host = _samples(measured.steps), measured.host
    power = PowerSamples(
        tokens=tuple(measured.warming.tokens), gpu_ns=tuple(measured.warming.gpu_ns)
    )
    hot = HotSamples(
        shapes=tuple((*shape, UNKNOWN) for shape in measured.hot.shapes),
        cool_ns=tuple(measured.hot.cool_ns),
        hot_ns=tuple(measured.hot.hot_ns),
        heat_ns=tuple(measured.hot.heat_ns),
    )
    try:
        fit = fit_profile(samples, host, measured.engine, power, measured.wake, hot)
    except ProfileError as error:
        raise ProfileError(
            f"{error}: give more --minutes; the same command goes on where this one stopped "
            f"({measured.partial.path})"
        ) from None
    return Profile(
        schema=SCHEMA,
        name=profile_name(measured.identity),
        identity=measured.identity,
        engine=measured.engine,
        samples=samples,
        host_samples=host,
        fit=fit,
        power_samples=power,
        hot_samples=hot,
        wake_samples=measured.wake,
        conditions={
            "sittings": measured.partial.sittings,
            "complete": measured.complete,
            "designed_steps": measured.designed,
            "kernels": measured.kernels,
        },
    )


def profile_name(identity: Identity) -> str:
    """`<gpu>-<model>-<config>`, of letters that every file system takes."""
    config = f"{identity.dtype}-tp{identity.tensor_parallel_size}"
    text = f"{identity.gpu}-{identity.model}-{config}".casefold()
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def _limits(
    config: RunnerConfig, num_pages: int, max_model_len: int, facts: dict[str, Any]
) -> EngineLimits:
    return EngineLimits(
        num_pages=num_pages,
        page_size=facts["page_size"],
        max_model_len=max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_running_requests=config.max_running_requests,
        graph_batch_sizes=tuple(facts["cuda_graph_batch_sizes"]),
    )


def _scheduler(limits: EngineLimits) -> SchedulerConfig:
    return SchedulerConfig(
        num_pages=limits.num_pages,
        max_model_len=limits.max_model_len,
        page_size=limits.page_size,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_running_requests=limits.max_running_requests,
        cuda_graph_batch_sizes=limits.graph_batch_sizes,
    )


def _engine_facts(limits: EngineLimits, config: RunnerConfig, facts: dict[str, Any]) -> EngineFacts:
    return EngineFacts(
        num_pages=limits.num_pages,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_running_requests=limits.max_running_requests,
        memory_fraction=config.memory_fraction,
        graph_batch_sizes=limits.graph_batch_sizes,
        graph_tokens=tuple(facts["cuda_graph_tokens"]),
    )


def _samples(done: Measurements) -> Samples:
    """Medians and their spread; the shapes get the one feature that is not measured."""
    shapes = sorted(done.times)
    medians = [statistics.median(done.times[shape]) for shape in shapes]
    spreads = [
        statistics.median(abs(time - median) for time in done.times[shape])
        for shape, median in zip(shapes, medians, strict=True)
    ]
    return Samples(
        shapes=tuple((*shape, UNKNOWN) for shape in shapes),
        gpu_ns=tuple(map(round, medians)),
        spread_ns=tuple(map(round, spreads)),
        repeats=tuple(len(done.times[shape]) for shape in shapes),
    )
