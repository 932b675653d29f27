"""`workbench calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from engine.runtime.runner_config import RunnerConfig
    from workbench.calibration.calibrate import Calibration
    from workbench.calibration.kernels import KernelCalibration

EPILOG = """\b
Examples:
  workbench calibrate --model Llama-3.1-8B --load-format dummy
  workbench calibrate --model ~/models/Qwen3-30B-A3B --minutes 8
  workbench calibrate --cpu
  workbench calibrate --model demo-dense --device cpu
  workbench calibrate --kernels
  workbench calibrate --kernels --all-reduce
  workbench calibrate --refit profiles/nvidia-h200-llama-3.1-8b-bf16-tp1.json"""

_CPU_MINUTES, _GPU_MINUTES, _KERNEL_MINUTES = 0.5, 5.0, 4.0
_LEAST_MINUTES, _MOST_MINUTES = 0.1, 600.0  # in less, even a CPU has too few steps for a fit
_FOLDER = Path("profiles")
_EXCHANGE = "workbench.calibration.exchange"


def run(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CARD|FOLDER|ORG/NAME",
            help="What to serve: a checkpoint, or with --load-format dummy a model card.",
        ),
    ] = None,
    load_format: Annotated[
        Literal["auto", "dummy"],
        typer.Option(
            help="dummy makes random weights, which do for dense models; a mixture's tokens go to "
            "its experts nearly evenly then, real ones less so."
        ),
    ] = "auto",
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="Default: the model's own.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cuda or cuda:1; default: the first GPU.")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Calibrate a tiny model on this machine's CPU.")
    ] = False,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tp", "--tensor-parallel-size", min=1, help="GPUs of the engine.")
    ] = 1,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Measure single kernels instead of a model: tables from which models that never "
            "ran are composed. --model adds its sizes to those of the cards.",
        ),
    ] = False,
    all_reduce: Annotated[
        bool,
        typer.Option(
            "--all-reduce",
            help="With --kernels: measure only what the GPUs of this machine take to exchange sums "
            "and logits. Otherwise that is measured, too, where there are several.",
        ),
    ] = False,
    missing: Annotated[
        bool,
        typer.Option(
            "--missing",
            help="With --kernels: measure only what the tables of this GPU in --output-dir, or "
            "those that ship, lack.",
        ),
    ] = False,
    expert_skew: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=4.0,
            help="With --kernels, or --refit of tables: mixtures are composed as if the n-th "
            "expert were liked as 1 / n ** SKEW; 0: all alike. Default: 0.25, or what the tables "
            "say.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=_LEAST_MINUTES,
            max=_MOST_MINUTES,
            help="For measuring, once the engine has started. Default: 5, with --kernels 4, on a "
            "CPU half a minute.",
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Where the profile goes.")
    ] = _FOLDER,
    refit: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="PROFILE",
            help="Measure nothing: fit this profile anew to its samples, as a newer version does; "
            "or kernel tables, to the profiles beside them and those that ship.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Measure what the engine's steps take here, and write a profile.

    With --kernels: what its kernels take, for all models of this GPU; see docs/calibration.md.

    Steps of all shapes run through the engine as they do when it serves: with its CUDA Graphs, its
    sampling and its host work. The profile holds every sample, a fit, and how far that was from
    samples that it had not seen. An interrupted calibration goes on where it stopped.
    """
    from workbench.cli.failures import UsageError
    from workbench.cli.interrupt import kept_on_interrupt
    from workbench.cli.progress import ProgressLine

    if refit is not None:
        given = (
            cpu,
            kernels,
            all_reduce,
            missing,
            model,
            device,
            dtype,
            minutes,
            load_format != "auto",
            tensor_parallel_size > 1,
        )
        if any(given) or output_dir != _FOLDER:
            raise UsageError("--refit measures nothing, and writes where the profile is: no more")
        _refit(refit, expert_skew)
        return
    _refuse_contradictions(
        kernels=kernels,
        all_reduce=all_reduce,
        of_tables=missing or expert_skew is not None,
        of_checkpoint=dtype is not None or load_format != "auto",
        of_more=model is not None or minutes is not None,
    )
    if tensor_parallel_size > 1:
        raise UsageError(f"the engine runs on one GPU, --tp is {tensor_parallel_size}")
    if cpu and (model or device):
        raise UsageError("--cpu calibrates a tiny model: give it, or --model and --device")
    if cpu and dtype not in (None, "fp32"):
        raise UsageError(f"--cpu calibrates in fp32, --dtype is {dtype}: leave it out")
    if kernels:
        where = "cpu" if cpu else device or "cuda"
        alone = missing or where != "cuda"
        if all_reduce or (not alone and _module(_EXCHANGE).several_gpus()):
            _calibrate_exchange(where, output_dir, quiet)
        if not all_reduce:
            options = {"expert_skew": expert_skew, "only_missing": missing}
            _calibrate_kernels(model, where, output_dir, minutes, quiet, options)
        return
    if not cpu and model is None:
        raise UsageError("which model? --model, or --cpu for a tiny one")
    # Without a GPU a large model would be measured on the CPU for hours: that must be asked for.
    config = _cpu_config() if cpu else _config(model or "", load_format, device or "cuda", dtype)
    calibrate = _module().calibrate
    limit = minutes or (_CPU_MINUTES if config.device == "cpu" else _GPU_MINUTES)
    with kept_on_interrupt(), ProgressLine(enabled=not quiet) as line:
        done = calibrate(config, output_dir, limit, say=line.say)
    _tell(done)
    if done.complete:
        taught = _module("workbench.calibration.kernels").teach(done.profile, output_dir)
        if taught is not None:
            _tell_of_kernels(taught)


def _refuse_contradictions(
    *, kernels: bool, all_reduce: bool, of_tables: bool, of_checkpoint: bool, of_more: bool
) -> None:
    """Refuse what only goes with --kernels, or does not go with it or with --all-reduce.

    Args:
        kernels: whether it is given.
        all_reduce: whether that is.
        of_tables: --missing or --expert-skew is.
        of_checkpoint: --dtype or --load-format is.
        of_more: --model or --minutes is.

    Raises:
        UsageError: with what to leave out, or to give.
    """
    from workbench.cli.failures import UsageError

    if not kernels and (all_reduce or of_tables):
        raise UsageError(
            "--all-reduce, --missing and --expert-skew are of kernel tables: give --kernels, too"
        )
    if kernels and of_checkpoint:
        raise UsageError("--kernels measures in the engine's own number format, no checkpoint")
    if all_reduce and (of_tables or of_more):
        raise UsageError(
            "--all-reduce measures all that GPUs exchange, and nothing else: give no --missing, "
            "--expert-skew, --model or --minutes"
        )


def _refit(path: Path, expert_skew: float | None) -> None:
    from simulator.composition.kernel_file import is_kernel_file
    from workbench.cli.failures import UsageError

    if is_kernel_file(path):
        module = _module("workbench.calibration.kernels")
        _tell_of_kernels(module.refit_kernels(path, expert_skew=expert_skew))
    elif expert_skew is not None:
        raise UsageError(f"--expert-skew is of kernel tables, and {path} is a profile")
    else:
        _tell(_module().refit(path))


def _calibrate_exchange(device: str, output_dir: Path, quiet: bool) -> None:
    from workbench.cli.progress import ProgressLine

    with ProgressLine(enabled=not quiet) as line:
        path = _module(_EXCHANGE).calibrate_exchange(device, output_dir, say=line.say)
    typer.echo(f"exchange between GPUs: {path}; kernel tables beside it take it when they are")
    typer.echo("measured or refitted")


def _calibrate_kernels(
    model: str | None,
    device: str,
    output_dir: Path,
    minutes: float | None,
    quiet: bool,
    options: dict[str, Any],
) -> None:
    from workbench.cli.interrupt import kept_on_interrupt
    from workbench.cli.progress import ProgressLine

    module = _module("workbench.calibration.kernels")
    cpu = device == "cpu"
    models = [str(_tiny_model())] if cpu else list(module.measured_cards())
    limit = minutes or (_CPU_MINUTES if cpu else _KERNEL_MINUTES)
    with kept_on_interrupt(), ProgressLine(enabled=not quiet) as line:
        done = module.calibrate_kernels(
            device, output_dir, limit, models=[*models, model] if model else models,
            say=line.say, **options,
        )  # fmt: skip
    _tell_of_kernels(done)


def _module(name: str = "workbench.calibration.calibrate") -> ModuleType:
    """What measures and fits.

    Raises:
        EngineError: a package that only the engine's users have is missing.
    """
    from importlib import import_module

    from engine.runtime.executor import EngineError

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "scipy":
            raise
        raise EngineError(
            "calibrating needs scipy, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None


def _tiny_model() -> Path:
    from importlib.resources import files

    return Path(str(files("scenarios") / "tiny_model.json"))


def _cpu_config() -> RunnerConfig:
    from engine.runtime.runner_config import RunnerConfig

    config = RunnerConfig(
        model=str(_tiny_model()), load_format="dummy", device="cpu", max_model_len=1024
    )
    return _as_served(config, "engine_on_cpu")


def _config(
    model: str, load_format: Literal["auto", "dummy"], device: str, dtype: str | None
) -> RunnerConfig:
    from engine.core.graph_sizes import default_graph_batch_sizes
    from engine.runtime.runner_config import RunnerConfig
    from workbench.cli.model_names import check_model_name
    from workbench.running.engine_setup import checkpoint_of

    check_model_name(model, load_format)
    model = checkpoint_of(model, load_format)
    config = RunnerConfig(model=model, load_format=load_format, device=device, dtype=dtype)
    if device == "cpu":
        return _as_served(config, "demo_model")
    sizes = default_graph_batch_sizes(config.max_running_requests)
    return replace(config, cuda_graph_batch_sizes=sizes)


def _as_served(config: RunnerConfig, scenario: str) -> RunnerConfig:
    """With the limits of a shipped scenario for CPUs, which is simulated with the profile.

    With those of a GPU the host's time alone would take minutes to measure.
    """
    from workbench.scenario.source import load_scenario

    (pool,) = load_scenario(scenario).scenario.deployment.pools
    return replace(
        config,
        num_pages=pool.num_pages,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        max_running_requests=pool.max_running_requests,
    )


def _tell(done: Calibration) -> None:
    """Where the profile is, and how good."""
    fit, samples = done.profile.fit, done.profile.samples
    typer.echo(f"{len(samples):,} steps, {sum(samples.repeats):,} times: {done.path}")
    limits = fit.limits
    typer.echo(
        f"range: steps of up to {limits.get('prefill_tokens', 0):,} tokens of prompts and "
        f"{limits.get('decode_requests', 0):,} decoding requests of {_longest(limits):,} tokens"
    )
    if not done.complete:
        designed = done.profile.conditions["designed_steps"]
        typer.echo(
            f"time ran out: {len(samples):,} of {designed:,} steps were measured, not all of"
        )
        typer.echo("them three times; the same command goes on where this stopped")
    if not done.kept:
        typer.echo(
            "the profile that was there before saw more, or is none of this version: it stays"
        )
    if fit.residuals:
        typer.echo("error of the fit on steps that it had not seen, in %:")
        typer.echo(f"  {'':22}{'steps':>7}{'median':>8}{'p90':>8}{'p99':>8}{'bias':>8}")
    for r in fit.residuals:
        numbers = (r.median_percent, r.p90_percent, r.p99_percent)
        columns = "".join(f"{number:>8.2f}" for number in numbers)
        typer.echo(f"  {r.region:22}{r.count:>7,}{columns}{r.bias_percent:>+8.2f}")


def _longest(limits: dict[str, int]) -> int:
    """Tokens of the longest request that was in a step."""
    return max(limits.get("prefill_max_context", 0), limits.get("decode_max_context", 0))


def _tell_of_kernels(done: KernelCalibration) -> None:
    """Where the tables are, and how good steps are that are composed of them."""
    kernels, errors = done.kernels, done.kernels.composition.errors
    points = sum(len(series.points) for series in kernels.series)
    typer.echo(f"{points:,} kernels in {len(kernels.series):,} series: {done.path}")
    if not done.complete:
        typer.echo("time ran out before all passes: the same command goes on where this stopped")
    if not errors:
        typer.echo("no model was measured whole on this GPU: the error of composed steps is not")
        typer.echo("known; calibrate one or two, and --refit these tables")
        return
    typer.echo("error of steps composed without any step of their model, in % (analytic model's):")
    typer.echo(f"  {'':16}{'':22}{'steps':>7}{'median':>16}{'p90':>16}{'bias':>8}")
    for error in errors:
        ours, other = error.composed, error.analytic
        median = f"{ours.median_percent:.1f} ({other.median_percent:.1f})"
        p90 = f"{ours.p90_percent:.1f} ({other.p90_percent:.1f})"
        typer.echo(
            f"  {error.model:16}{ours.region:22}{ours.count:>7,}{median:>16}{p90:>16}"
            f"{ours.bias_percent:>+8.1f}"
        )
