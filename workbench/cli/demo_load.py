"""What of a scenario is changed so that a demo model can serve it: little, and said aloud.

A demo model sees 2,048 tokens, and a CPU takes some 4 ms for each of its tokens. So prompts that do
not fit are cut, and on a CPU only the first requests are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from workbench.cli.overrides import NUM_PROMPTS_KEYS
from workbench.running.engine_packages import import_engine
from workbench.running.engine_run import refuse_too_long_prompts
from workbench.running.engine_setup import EngineOptions, is_demo
from workbench.scenario.errors import ScenarioErrors

if TYPE_CHECKING:
    from workbench.scenario.schema import Scenario
    from workbench.scenario.source import LoadedScenario

CPU_REQUESTS: Final = 16
_CPU_WARM_UP_REQUESTS: Final = 4
_WARM_UP: Final = "load.warmup_requests"


def load_for_demo(
    load: Callable[[Sequence[str]], LoadedScenario],
    options: EngineOptions,
    given: Sequence[str],
) -> tuple[LoadedScenario, list[str]]:
    """A scenario as the engine is to serve it, and the settings that were added for a demo model.

    Args:
        load: gives the scenario with settings added before those of the command line.
        options: of the engine.
        given: overrides of the command line.

    Raises:
        ScenarioErrors, EngineError: as `overrides_for_demo`, or the scenario is wrong.
    """
    changes: list[str] = []
    try:
        loaded = load(())
    except ScenarioErrors as errors:
        loaded, changes = _with_less_warm_up(load, options, errors)
    changes += overrides_for_demo(loaded, options, given)
    return (load(changes) if changes else loaded), changes


def _with_less_warm_up(
    load: Callable[[Sequence[str]], LoadedScenario], options: EngineOptions, errors: ScenarioErrors
) -> tuple[LoadedScenario, list[str]]:
    """A scenario whose warm-up takes all of its requests, with less of it.

    Raises:
        ScenarioErrors: that is not what is wrong with it, or it is not for a demo model.
    """
    try:
        scenario = load([f"{_WARM_UP}=0"]).scenario
    except ScenarioErrors:
        raise errors from None
    if not is_demo(scenario, options):
        raise errors
    requests = _requests(scenario)
    kept = 0 if requests is None else min(_CPU_WARM_UP_REQUESTS, requests // 4)
    changes = [f"{_WARM_UP}={kept}"]
    return load(changes), changes


def overrides_for_demo(
    loaded: LoadedScenario, options: EngineOptions, given: Sequence[str]
) -> list[str]:
    """The settings to add; none for other models, and none for keys that are `given`.

    Args:
        loaded: the scenario.
        options: of the engine.
        given: overrides of the command line.

    Raises:
        ScenarioErrors: the engine cannot do what the scenario asks for, whatever is cut.
        EngineError: a package of the engine is missing, or there is no such device.
    """
    if not is_demo(loaded.scenario, options):
        return []
    changes = []
    if _on_cpu(options):
        changes += _fewer_requests(loaded.scenario)
    if _has_too_long_prompts(loaded, options):
        changes.append("too_long=truncate")
    keys = {setting.partition("=")[0].strip() for setting in given}
    return [c for c in changes if not keys & {c.partition("=")[0], c.partition(".")[0]}]


def _on_cpu(options: EngineOptions) -> bool:
    device = import_engine("engine.runtime.build").find_device(options.device)
    return bool(device.type == "cpu")


def _fewer_requests(scenario: Scenario) -> list[str]:
    key = NUM_PROMPTS_KEYS.get(scenario.workload.kind)
    requests = _requests(scenario)
    if key is None or (requests is not None and requests <= CPU_REQUESTS):
        return []
    changes = [f"{key}={CPU_REQUESTS}"]
    if scenario.load.warmup_requests > _CPU_WARM_UP_REQUESTS:
        changes.append(f"{_WARM_UP}={_CPU_WARM_UP_REQUESTS}")
    return changes


def _requests(scenario: Scenario) -> int | None:
    """How many the scenario says; None: all of a trace, or it follows from other keys."""
    key = NUM_PROMPTS_KEYS.get(scenario.workload.kind)
    return None if key is None else getattr(scenario.workload, key.rpartition(".")[2])


def _has_too_long_prompts(loaded: LoadedScenario, options: EngineOptions) -> bool:
    try:
        refuse_too_long_prompts(loaded, options)
    except ScenarioErrors as errors:
        return all(error.code == _TOO_LONG for error in errors.errors)
    return False


_TOO_LONG: Final = "S205"
