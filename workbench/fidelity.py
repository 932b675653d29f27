"""How far a simulation is from the engine: the same loads on both, and the errors.

Each load runs several times on the engine and once in the simulator, with the profile and with the
analytic model. The engine's own spread stands beside every error, and the error of single steps
beside those of whole runs. A load that is done is a file, so that a suite goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.core.events import Columns, Segment, concatenate
from engine.core.journal import Journal
from simulator.calibrated import CalibratedCostModel
from simulator.profile import Profile
from workbench.analysis.decode_share import features_of
from workbench.atomic_file import write_atomic
from workbench.engine_driver import HostClock
from workbench.engine_run import Build, Runner, Say, build_runner
from workbench.engine_run import prepare as prepare_engine
from workbench.engine_setup import EngineOptions
from workbench.parity import ParityError, follow
from workbench.profile_match import identity_of, refuse_other_engine
from workbench.provenance import input_file, source_commit
from workbench.scenario_source import LoadedScenario, load_scenario
from workbench.simulate import prepare as prepare_simulation

METRICS: Final = (
    "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "mean_e2el_ms",
    "p99_e2el_ms", "output_throughput", "prefix_hit_rate_percent", "retractions",
)  # fmt: skip
SCHEMA: Final = "fidelity/v1"
Numbers = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Load:
    """One load of the suite.

    Attributes:
        name: of its file and row.
        settings: as `--set`; `{rate}` stands for `share` of the capacity.
        share: of the requests a second that the engine does when all come at once.
    """

    name: str
    settings: tuple[str, ...]
    share: float = 0.0


def _poisson(name: str, share: float, requests: int) -> Load:
    settings = (f"workload.num_requests={requests}", "load={kind: poisson, request_rate: {rate}}")
    return Load(name, settings, share)


_AT_ONCE: Final = "load={kind: all_at_once}"
_BURSTS: Final = "load={kind: gamma, request_rate: {rate}, burstiness: 0.25}"
_CONVERSATIONS: Final = """workload={kind: conversation, num_conversations: 150,
    turns: {kind: uniform, min: 2, max: 6}, system_prompt_len: 1000,
    user_len: {kind: lognormal, mean: 120, std_dev: 120, max: 1024},
    output_len: {kind: lognormal, mean: 150, std_dev: 100, max: 512},
    think_time_s: {kind: uniform, min: 0, max: 2}}"""
_LONG_PROMPTS: Final = """workload={kind: synthetic, num_requests: 60,
    prompt_len: {kind: uniform, min: 4000, max: 24000},
    output_len: {kind: uniform, min: 20, max: 200}}"""
_LONG_ANSWERS: Final = """workload={kind: synthetic, num_requests: 200,
    prompt_len: {kind: uniform, min: 100, max: 500},
    output_len: {kind: uniform, min: 300, max: 900}}"""
_FEW_PAGES: Final = (
    "deployment.pools.0.num_pages=2500",
    "scheduler.schedule_conservativeness=0.3",
)

GPU_LOADS: Final = (
    Load("offline", ("workload.num_requests=600", _AT_ONCE)),
    _poisson("poisson 30 %", 0.3, 600),
    _poisson("poisson 60 %", 0.6, 1000),
    _poisson("poisson 90 %", 0.9, 1500),
    Load("bursts", ("workload.num_requests=1000", _BURSTS), 0.6),
    Load("conversations", (_CONVERSATIONS, _AT_ONCE)),
    Load("long prompts", (_LONG_PROMPTS, "load={kind: closed_loop, max_concurrency: 4}")),
    Load(
        "few pages",
        (_LONG_ANSWERS, "load={kind: closed_loop, max_concurrency: 100}", *_FEW_PAGES),
    ),
)
CPU_LOADS: Final = (
    Load("offline", ("workload.num_requests=24", _AT_ONCE)),
    _poisson("poisson 50 %", 0.5, 24),
    Load(
        "two at a time",
        ("workload.num_requests=16", "load={kind: closed_loop, max_concurrency: 2}"),
    ),
)


@dataclass(frozen=True, slots=True)
class Suite:
    """What is compared.

    Attributes:
        scenario: that loads change: model, GPU, deployment.
        settings: for all loads.
        loads: of the suite.
        profile: to predict with, and its file.
        profile_path: its file.
        options: of the engine.
        repeats: runs of the engine for each load.
    """

    scenario: str
    settings: tuple[str, ...]
    loads: Sequence[Load]
    profile: Profile
    profile_path: Path
    options: EngineOptions
    repeats: int = 3


class _Kept:
    """A runner that several runs use one after the other, with as many pages as each asks for."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.num_pages = runner, runner.num_pages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def with_pages(self, wanted: int | None) -> _Kept:
        """The same with fewer pages."""
        self.num_pages = min(wanted or self._runner.num_pages, self._runner.num_pages)
        return self

    def close(self) -> None:
        """The next run needs it."""

    def end(self) -> None:
        """Let go of the device's memory."""
        self._runner.close()


def run_suite(
    suite: Suite, folder: Path, *, build: Build = build_runner, say: Say = lambda _: None
) -> list[dict[str, Any]]:
    """Run every load that has no file in `folder` yet; returns all results in order.

    A file of another profile, engine version or number of runs is replaced.

    Raises:
        ScenarioErrors: the profile is not of this scenario, or the engine cannot run it.
        OtherProfileError: the engine is not the one that was calibrated.

    More as `build`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock, kept = HostClock(), None
    capacity = _capacity(suite)
    results = []
    try:
        for load in suite.loads:
            path = folder / f"{load.name.replace(' ', '_').replace('%', 'percent')}.json"
            loaded = _loaded(suite, load, capacity, profile=False)
            found = _read(path, suite, loaded)
            if found is None:
                if kept is None:
                    kept = _start(suite, clock, build, say)
                found = _measure(suite, load, loaded, capacity, kept, clock, say)
                write_atomic(path, json.dumps(found, indent=1).encode() + b"\n")
            results.append(found)
    finally:
        if kept is not None:
            kept.end()
    return results


def _read(path: Path, suite: Suite, loaded: LoadedScenario) -> dict[str, Any] | None:
    """A result that is there already, if it is of this very profile, of this load and complete."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_bytes())
    wanted = _facts(suite, loaded)
    return found if {name: found.get(name) for name in wanted} == wanted else None


def _facts(suite: Suite, loaded: LoadedScenario) -> dict[str, Any]:
    """What makes two results of a load comparable."""
    return {
        "schema": SCHEMA,
        "profile": suite.profile.name,
        "profile_sha256": input_file(suite.profile_path).sha256,
        "scenario": suite.scenario,
        "settings": list(loaded.overrides),
        "repeats": suite.repeats,
        "commit": source_commit(),
    }


def _loaded(suite: Suite, load: Load, capacity: float, *, profile: bool) -> LoadedScenario:
    rate = f"{load.share * capacity:.6g}"
    settings = [*suite.settings, *(s.replace("{rate}", rate) for s in load.settings)]
    settings.append("load.warmup_requests=0")
    if profile:
        settings.append(f"hardware.profile={suite.profile_path}")
    return load_scenario(suite.scenario, settings)


def _capacity(suite: Suite) -> float:
    """Requests a second when all come at once, as predicted."""
    summary = _simulated(_loaded(suite, suite.loads[0], 0.0, profile=True))
    return float(summary["request_throughput"])


def _simulated(loaded: LoadedScenario) -> dict[str, Any]:
    summary = prepare_simulation(loaded, "none").run().summary
    if summary is None:
        raise AssertionError("a simulation that nobody stops has a summary")
    return dict(summary)


def _start(suite: Suite, clock: HostClock, build: Build, say: Say) -> _Kept:
    """The engine, with all the pages that there are."""
    runners: list[Runner] = []

    def built(config: Any, clock: Callable[[], int], say: Say) -> Runner:
        runners.append(build(config, clock, say))
        return runners[0]

    loaded = _loaded(suite, suite.loads[0], 0.0, profile=False)
    prepare_engine(loaded, "none", suite.options, build=built, clock=clock, say=say)
    kept = _Kept(runners[0])
    try:
        engine = identity_of(kept.facts(), kept.spec)
        refuse_other_engine(suite.profile, engine)
    except BaseException:
        kept.end()
        raise
    return kept


def _measure(
    suite: Suite,
    load: Load,
    loaded: LoadedScenario,
    capacity: float,
    kept: _Kept,
    clock: HostClock,
    say: Say,
) -> dict[str, Any]:
    (pool,) = loaded.scenario.deployment.pools
    runs, steps, parity = [], [], ""
    for number in range(suite.repeats):
        say(f"{load.name}: run {number + 1} of {suite.repeats}")
        ready = prepare_engine(
            loaded, "steps", suite.options, clock=clock,
            build=lambda *_: kept.with_pages(pool.num_pages),
        )  # fmt: skip
        segments: list[Segment] = []
        ended = ready.run([segments.append], journal=True)
        if ended.summary is None:
            raise AssertionError("a run that nobody stops has a summary")
        runs.append(_pick(ended.summary))
        steps.append(concatenate(segments, ("steps",))["steps"])
        if number == 0:
            (journal,) = ended.journals
            parity = _parity(ready.header, journal)
    say(f"{load.name}: simulating")
    simulated, analytic = (
        _pick(
            prepare_simulation(_loaded(suite, load, capacity, profile=with_), "none").run().summary
        )
        for with_ in (True, False)
    )
    return {
        **_facts(suite, loaded), "load": load.name, "engine": runs, "simulated": simulated,
        "analytic": analytic, "parity": parity,
        "steps": step_errors(CalibratedCostModel(suite.profile), steps),
    }  # fmt: skip


def _parity(header: Any, journal: Journal) -> str:
    files = {key: facts.path for key, facts in header.inputs.items()}
    try:
        same = follow(header, journal.to_array(), files)
    except ParityError as error:
        return str(error)
    return f"all {same.steps:,} steps"


def _pick(summary: Any) -> Numbers:
    return {name: summary[name] for name in METRICS}


def step_errors(model: CalibratedCostModel, runs: Sequence[Columns]) -> dict[str, Numbers]:
    """Signed errors of predicted GPU times of recorded steps, in percent, by region."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for steps in runs:
        rows = np.arange(len(steps["gpu_ns"]))
        predicted = model.step_costs(features_of(steps, rows)).gpu_ns
        measured = np.maximum(steps["gpu_ns"], 1)
        errors = 100.0 * (predicted - measured) / measured
        decodes, prefills = steps["decode_requests"] > 0, steps["prefill_tokens"] > 0
        for name, where in (
            ("decode", decodes & ~prefills), ("prefill", prefills & ~decodes),
            ("mixed", decodes & prefills), ("all", decodes | prefills),
        ):  # fmt: skip
            found.setdefault(name, []).append(errors[where])
    return {name: _spread(np.concatenate(parts)) for name, parts in found.items()}


def _spread(errors: NDArray[np.float64]) -> Numbers:
    if not len(errors):
        return {"count": 0, "median": None, "p90": None, "p99": None, "bias": None}
    median, p90, p99 = np.percentile(np.abs(errors), (50, 90, 99)).tolist()
    bias = float(np.median(errors))
    return {"count": len(errors), "median": median, "p90": p90, "p99": p99, "bias": bias}


def error_of(result: dict[str, Any], metric: str, whose: str = "simulated") -> Numbers:
    """Signed error of a metric in percent of the engine's mean, and the engine's own spread.

    Args:
        result: of a load.
        metric: one of `METRICS`.
        whose: "simulated" or "analytic".

    Returns:
        error: of the prediction; spread: half the range of the engine's runs. None where the
        engine has no such number, or it is 0 and the prediction, too.
    """
    runs = [run[metric] for run in result["engine"] if run[metric] is not None]
    own = result[whose][metric]
    if not runs or own is None:
        return {"error": None, "spread": None}
    mean = sum(runs) / len(runs)
    if mean == 0:
        return {"error": None if own == 0 else float("inf"), "spread": 0.0}
    spread = 50 * (max(runs) - min(runs)) / mean
    return {"error": 100 * (own - mean) / mean, "spread": spread}


_SHOWN: Final = (
    "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms", "p99_e2el_ms",
    "output_throughput",
)  # fmt: skip


def table_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The suite as text: errors in percent, ± half the range of the engine's own runs."""
    titles = [name.removesuffix("_ms").replace("output_", "") for name in _SHOWN]
    lines = [f"{'error, %':18}" + "".join(f"{title:>16}" for title in titles)]
    for result in results:
        for whose, label in (("simulated", result["load"]), ("analytic", "  analytic model")):
            cells = (_cell(error_of(result, metric, whose)) for metric in _SHOWN)
            lines.append(f"{label:18}" + "".join(f"{cell:>16}" for cell in cells))
    names = ("count", "median", "p90", "p99", "bias")
    heads = "".join(f"{name:>9}" for name in names)
    lines += ["", f"{'steps, %':18}{'region':>10}{heads}  decisions"]
    for result in results:
        lines += _step_lines(result)
    return lines


def _step_lines(result: dict[str, Any]) -> list[str]:
    lines, label, parity = [], result["load"], result["parity"]
    for region, numbers in result["steps"].items():
        if not numbers["count"]:
            continue
        errors = "".join(f"{numbers[name]:>9.2f}" for name in ("median", "p90", "p99"))
        line = f"{label:18}{region:>10}{numbers['count']:>9,}{errors}{numbers['bias']:>+9.2f}"
        lines.append(f"{line}  {parity}".rstrip())
        label = parity = ""
    return lines


def _cell(numbers: Numbers) -> str:
    error, spread = numbers["error"], numbers["spread"]
    return "-" if error is None else f"{error:+.1f} ± {spread:.1f}"
