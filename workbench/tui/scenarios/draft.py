"""A scenario that is being changed, and what is known of it: problems, memory, an estimate.

`assess` takes 15 ms for most scenarios and seconds for a large trace, so the screen calls it in a
thread at each key. What is slow to import is imported there, too: the interface opens first.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from engine.demo import demo_model_folder
from workbench.tui.child_run import RunCommand
from workbench.tui.scenarios.settings import settings_between

if TYPE_CHECKING:
    from workbench.record.header import RunHeader
    from workbench.running.deployment import Deployment
    from workbench.running.estimate import Estimate
    from workbench.running.simulate import Simulation
    from workbench.scenario.errors import ScenarioError
    from workbench.scenario.source import LoadedScenario
    from workbench.tui.scenarios.workload_preview import WorkloadPreview

Executor = Literal["simulate", "run"]
DetailName = Literal["steps", "items", "pages"]
DETAILS: Final[tuple[DetailName, ...]] = ("steps", "items", "pages")
_PATHS: Final = (("model", "path"), ("workload", "path"), ("hardware", "profile"))
RUN_SECTION: Final = "run"  # of the form, for what no scenario says: who runs it, what is recorded
EXECUTORS: Final[tuple[Executor, ...]] = ("simulate", "run")


def detail_named(name: str) -> DetailName:
    """The detail of that name, or else the most."""
    return next((detail for detail in DETAILS if detail == name), "pages")


def executor_named(name: str) -> Executor:
    """The executor of that name, or else the simulator."""
    return next((executor for executor in EXECUTORS if executor == name), "simulate")


@dataclass(frozen=True, slots=True)
class Draft:
    """A scenario and the changes that were made to it, none of which is in its file.

    Attributes:
        name: of the scenario on the command line: a shipped name or a path.
        path: its file; None for a shipped one.
        original: its text.
        text: the text as edited.
        settings: dotted key -> value as YAML, from the form; they count over the text.
        executor: what runs it.
        detail: how much of the run is recorded.
        dummy_weights: whether the engine makes random weights; None: unless the model ships.
    """

    name: str
    path: Path | None
    original: str
    text: str
    settings: dict[str, str] = field(default_factory=dict)
    executor: Executor = "simulate"
    detail: DetailName = "pages"
    dummy_weights: bool | None = None

    @classmethod
    def of(cls, name: str, executor: Executor, detail: DetailName) -> Draft:
        """An unchanged scenario. Raises ScenarioErrors if it cannot be read."""
        from workbench.scenario.source import scenario_text

        path, text = scenario_text(name)
        return cls(name, path, text, text, {}, executor, detail)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of the form as `--set` takes them."""
        return tuple(f"{key}={value}" for key, value in self.settings.items())

    def makes_weights(self, model: str | None) -> bool:
        """Whether the engine makes random weights for the model of that name."""
        if self.dummy_weights is not None:
            return self.dummy_weights
        return model is None or demo_model_folder(model) is None

    @property
    def changed(self) -> bool:
        """Whether anything differs from the file."""
        return bool(self.settings) or self.text != self.original

    def with_setting(self, key: str, value: str | None) -> Draft:
        """With a key set by the form, or (None) as the text has it."""
        settings = {name: old for name, old in self.settings.items() if name != key}
        if value is not None:
            settings[key] = value
        return replace(self, settings=settings)

    def with_text(self, text: str) -> Draft:
        """With another text."""
        return replace(self, text=text)

    def unchanged(self) -> Draft:
        """As the file is."""
        return replace(self, text=self.original, settings={})


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known of a draft.

    Attributes:
        draft: that was assessed.
        errors: what is wrong with it, in order.
        trouble: what else stands against running it, such as an unreadable trace; None: nothing.
        loaded: the scenario, if its text is one.
        deployment: its replicas, if they can exist.
        preview: its requests, if they can be made.
        estimate: what a run will roughly do, if it can run.
        command: that runs it; None unless it can be run.
        notes: remarks of the run's header.
    """

    draft: Draft
    errors: tuple[ScenarioError, ...] = ()
    trouble: str | None = None
    loaded: LoadedScenario | None = None
    deployment: Deployment | None = None
    preview: WorkloadPreview | None = None
    estimate: Estimate | None = None
    command: RunCommand | None = None
    notes: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it can be run."""
        return self.command is not None


def assess(draft: Draft) -> Assessment:
    """Everything that can be said of a draft without running it."""
    from workbench.running.simulate import prepare
    from workbench.scenario.errors import ScenarioErrors
    from workbench.scenario.source import load_text
    from workbench.workload.trace_errors import WorkloadError

    label = str(draft.path) if draft.path else f"{draft.name}.yaml"
    try:
        loaded = load_text(draft.text, label, draft.path, draft.overrides)
    except ScenarioErrors as errors:
        return Assessment(draft, errors.errors)
    try:
        simulation = prepare(loaded, "none")
    except ScenarioErrors as errors:
        return Assessment(draft, errors.errors, loaded=loaded, deployment=_deployment(loaded))
    except WorkloadError as error:
        return Assessment(draft, trouble=str(error), loaded=loaded, deployment=_deployment(loaded))
    found = _assessment(draft, loaded, simulation)
    try:
        return replace(found, command=_command(draft, loaded))
    except ScenarioErrors:
        return replace(found, trouble="the file itself has errors: save these changes, then run")


def assess_run(header: RunHeader) -> Assessment:
    """What is known of the scenario that a run was made from.

    Of a run on a CPU only what it was asked: memory and pace of the scenario's GPU are not its own.
    """
    from workbench.record.provenance import place_now
    from workbench.running.simulate import prepare
    from workbench.scenario.errors import ScenarioErrors
    from workbench.scenario.source import load_resolved
    from workbench.workload.trace_errors import WorkloadError

    draft = Draft(header.name, None, "", "")
    try:
        files = {key: str(place_now(facts)) for key, facts in header.inputs.items()}
        loaded = load_resolved(header.scenario, header.name, (), files)
        simulation = prepare(loaded, "none")
    except ScenarioErrors as errors:
        return Assessment(draft, errors.errors, trouble=errors.errors[0].message)
    except (WorkloadError, OSError) as error:
        return Assessment(draft, trouble=str(error))
    found = _assessment(draft, loaded, simulation)
    own = header.kind != "engine" or header.gpu != "cpu"
    return found if own else replace(found, deployment=None, estimate=None)


def _assessment(draft: Draft, loaded: LoadedScenario, simulation: Simulation) -> Assessment:
    from workbench.running.estimate import estimate
    from workbench.tui.scenarios.workload_preview import preview

    return Assessment(
        draft,
        loaded=loaded,
        deployment=simulation.deployment,
        preview=preview(simulation.workload),
        estimate=estimate(loaded.scenario, simulation.deployment, simulation.workload),
        notes=(*simulation.header.notes, *simulation.header.cost_model_notes),
    )


def _deployment(loaded: LoadedScenario) -> Deployment | None:
    """The deployment alone, where only the requests are at fault."""
    from workbench.running.deployment import resolve_deployment
    from workbench.scenario.errors import ScenarioErrors

    try:
        return resolve_deployment(loaded)
    except ScenarioErrors:
        return None


def _command(draft: Draft, loaded: LoadedScenario) -> RunCommand:
    """The command that runs a draft: its file, and a `--set` for each key that differs from it."""
    arguments = [draft.executor, draft.name]
    for setting in _settings(draft, loaded):
        arguments += ["--set", setting]
    if draft.executor == "run" and draft.makes_weights(loaded.scenario.model.name):
        arguments += ["--load-format", "dummy"]
    return RunCommand((*arguments, "--detail", draft.detail))


def _settings(draft: Draft, loaded: LoadedScenario) -> Sequence[str]:
    """What the form set, as it was set; what was changed in the text, key by key."""
    if draft.text == draft.original:
        return draft.overrides
    return settings_between(*_before_and_after(draft, loaded))


def _before_and_after(
    draft: Draft, loaded: LoadedScenario
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file and the draft, resolved; paths that changed as the current folder sees them."""
    from workbench.scenario.source import load_scenario

    before = load_scenario(draft.name).resolved
    after = copy.deepcopy(loaded.resolved)
    for part, key in _PATHS:
        if after[part].get(key) != before[part].get(key):
            after[part][key] = getattr(getattr(loaded.scenario, part), key)
    return before, after


def command_by(found: Assessment, executor: Executor) -> RunCommand | None:
    """The command that runs what was assessed, on the simulator or the engine; None if none can."""
    if found.command is None or found.loaded is None:
        return None
    return _command(replace(found.draft, executor=executor), found.loaded)


def shown_command(draft: Draft) -> str:
    """What to show as the command line of a draft that cannot be run yet."""
    return shlex.join(("workbench", draft.executor, draft.name))
