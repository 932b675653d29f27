"""What of a scenario the engine can carry out, and with which model, device and number format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.model_spec import ModelSpec, load_model_spec
from engine.demo import demo_model_folder
from engine.models.model_folder import find_model, here_or_shipped
from engine.runtime.runner_config import LoadFormat, RunnerConfig
from workbench.record.header import InputFacts
from workbench.record.provenance import input_file
from workbench.running.profile_match import is_gpu
from workbench.scenario.errors import ScenarioError, ScenarioErrors
from workbench.scenario.schema import Model, Scenario
from workbench.scenario.source import LoadedScenario

DTYPES: Final = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the command line says besides the scenario.

    Attributes:
        model: a folder, org/name in the Hugging Face cache, or the name of a demo model; None: the
            scenario's model.
        load_format: "auto" reads a checkpoint, "dummy" makes random weights.
        device: "cuda", "cuda:1", "cpu"; None: a GPU if there is one.
        dtype: one of `DTYPES`; None: the scenario's, or else the model's own.
    """

    model: str | None = None
    load_format: LoadFormat = "auto"
    device: str | None = None
    dtype: str | None = None


def runner_config(loaded: LoadedScenario, options: EngineOptions) -> RunnerConfig:
    """The runner that a scenario asks for.

    Raises:
        ScenarioErrors: everything in the scenario that this engine cannot do.
    """
    scenario = loaded.scenario
    errors = [*_replica_errors(loaded), *_model_errors(loaded, options)]
    errors += _dtype_errors(loaded, options)
    if errors:
        raise ScenarioErrors(errors)
    (pool,) = scenario.deployment.pools
    return RunnerConfig(
        model=checkpoint_of(asked_model(scenario, options), options.load_format),
        load_format=options.load_format,
        device=options.device,
        dtype=options.dtype or scenario.model.weight_dtype,
        seed=scenario.seed,
        page_size=pool.page_size,
        num_pages=pool.num_pages,
        memory_fraction=scenario.hardware.memory_fraction,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        max_running_requests=pool.max_running_requests,
        cuda_graph_batch_sizes=pool.cuda_graph_batch_sizes,
    )


def asked_model(scenario: Scenario, options: EngineOptions) -> str:
    """The model to serve, as a person named it."""
    return options.model or _named_model(scenario.model)


def is_demo(scenario: Scenario, options: EngineOptions) -> bool:
    """Whether a demo model will be served with its own weights."""
    is_auto = options.load_format == "auto"
    return is_auto and _demo_folder(asked_model(scenario, options)) is not None


def _demo_folder(name: str) -> Path | None:
    """The folder of a demo model, unless there is a folder of that name right here."""
    folder = here_or_shipped(name)
    return folder if folder is not None and folder == demo_model_folder(name) else None


def checkpoint_of(name: str, load_format: LoadFormat = "auto") -> str:
    """The name of a model for records that are read elsewhere: demo models are folders."""
    folder = _demo_folder(name) if load_format == "auto" else None
    return name if folder is None else str(folder)


def model_spec(config: RunnerConfig) -> ModelSpec:
    """The shape of a runner's model, read without its weights.

    Raises:
        ModelConfigError, ModelNotFoundError: it is not there, or not supported.
    """
    return load_model_spec(find_model(config.model, config.load_format).shape)


def config_file(config: RunnerConfig) -> InputFacts | None:
    """The file that says the shape of a runner's model; None: a model card does."""
    path = Path(find_model(config.model, config.load_format).shape)
    if path.is_dir():
        path /= "config.json"
    return input_file(path) if path.is_file() else None


def substitutions(scenario: Scenario, options: EngineOptions, facts: dict[str, Any]) -> list[str]:
    """Sentences about what ran instead of what the scenario names; `facts` are the runner's."""
    notes = []
    asked, device = scenario.hardware.gpu, str(facts["device"])
    if not is_gpu(asked, device):
        notes.append(f"the scenario names GPU {asked}; this ran on {device}")
    named = _named_model(scenario.model)
    if options.model is not None and options.model != named:
        notes.append(f"the scenario names model {named}; this ran {options.model}")
    if is_demo(scenario, options):
        notes.append("prompts are text that the demo models were not trained on")
    if options.load_format == "dummy":
        notes.append("the weights are random (--load-format dummy)")
    written = scenario.model.weight_dtype
    if options.dtype is not None and written not in (None, options.dtype):
        notes.append(f"the scenario asks for {written} weights; this ran in {options.dtype}")
    return notes


def _named_model(model: Model) -> str:
    """The card, or the folder of the config file, that a scenario names."""
    if model.name is not None:
        return model.name
    path = Path(model.path or "")
    return str(path.parent if path.name == "config.json" else path)


def _replica_errors(loaded: LoadedScenario) -> list[ScenarioError]:
    errors = []
    pools = loaded.scenario.deployment.pools
    if len(pools) > 1:
        message = f"the engine serves one replica, the scenario has {len(pools)} pools"
        help_ = "keep one pool, or `workbench simulate` the scenario"
        errors.append(loaded.error(("deployment", "pools"), "S208", message, help_))
    for index, pool in enumerate(pools):
        for name in ("replicas", "tensor_parallel_size"):
            count = getattr(pool, name)
            if count > 1:
                what = "serves one replica" if name == "replicas" else "runs on one GPU"
                message = f"the engine {what}, `{name}` is {count}"
                help_ = f"--set deployment.pools.{index}.{name}=1, or `workbench simulate` it"
                path = ("deployment", "pools", index, name)
                errors.append(loaded.error(path, "S208", message, help_))
    return errors


def _model_errors(loaded: LoadedScenario, options: EngineOptions) -> list[ScenarioError]:
    model = loaded.scenario.model
    if options.model is not None or options.load_format == "dummy":
        return []
    if is_demo(loaded.scenario, options):
        return []
    if model.name is not None:
        key, what, shape = "name", f"`{model.name}` is a model card", "card"
    elif not Path(_named_model(model)).is_dir():
        key, what, shape = "path", f"`{model.path}` is the shape of a model", "shape"
    else:
        return []
    help_ = (
        "--model demo-dense runs a small model that ships with the program\n"
        "--model FOLDER, or --model org/name from the local Hugging Face cache, runs a checkpoint\n"
        f"--load-format dummy runs the {shape} with random weights"
    )
    return [loaded.error(("model", key), "S209", f"{what}, which has no weights to run", help_)]


def _dtype_errors(loaded: LoadedScenario, options: EngineOptions) -> list[ScenarioError]:
    errors, model = [], loaded.scenario.model
    if options.dtype is None and model.weight_dtype not in (None, *DTYPES):
        message = f"the engine has no {model.weight_dtype} weights"
        help_ = f"--dtype {'|'.join(DTYPES)}, or --set model.weight_dtype=null for the model's own"
        errors.append(loaded.error(("model", "weight_dtype"), "S210", message, help_))
    if model.kv_dtype not in (None, options.dtype or model.weight_dtype):
        message = f"the engine keeps KV in the number format of the model, not in {model.kv_dtype}"
        help_ = "--set model.kv_dtype=null"
        errors.append(loaded.error(("model", "kv_dtype"), "S210", message, help_))
    return errors
