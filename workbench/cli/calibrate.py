"""`workbench calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from engine.runtime.runner_config import RunnerConfig
    from workbench.calibrate import Calibration

EPILOG = """\b
Examples:
  workbench calibrate --model Llama-3.1-8B --load-format dummy
  workbench calibrate --model ~/models/Qwen3-30B-A3B --minutes 8
  workbench calibrate --cpu
  workbench calibrate --refit profiles/nvidia-h200-llama-3.1-8b-bf16-tp1.json"""

_CPU_MINUTES, _GPU_MINUTES = 0.5, 5.0
_FOLDER = Path("profiles")


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
            help="dummy makes random weights, which do for dense models; a mixture of experts "
            "routes random weights evenly, real ones not."
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
    minutes: Annotated[
        float | None,
        typer.Option(min=0.02, help="For measuring; default: 5, or half a minute with --cpu."),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Where the profile goes.")
    ] = _FOLDER,
    refit: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="PROFILE",
            help="Measure nothing: fit this profile anew to its samples, as a newer version does.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Measure what the engine's steps take here, and write a profile.

    Steps of all shapes run through the engine as they do when it serves: with its CUDA Graphs, its
    sampling and its host work. The profile holds every sample, a fit, and how far that was from
    samples that it had not seen. An interrupted calibration goes on where it stopped.
    """
    from workbench.cli.failures import UsageError
    from workbench.cli.progress import ProgressLine

    if refit is not None:
        given = (
            cpu,
            model,
            device,
            dtype,
            minutes,
            load_format != "auto",
            tensor_parallel_size > 1,
        )
        if any(given) or output_dir != _FOLDER:
            raise UsageError("--refit measures nothing, and writes where the profile is: no more")
        _tell(_module().refit(refit))
        return
    if tensor_parallel_size > 1:
        raise UsageError(f"the engine runs on one GPU, --tp is {tensor_parallel_size}")
    if cpu and (model or device):
        raise UsageError("--cpu calibrates a tiny model: give it, or --model and --device")
    if not cpu and model is None:
        raise UsageError("which model? --model, or --cpu for a tiny one")
    # Without a GPU a large model would be measured on the CPU for hours: that must be asked for.
    config = _cpu_config() if cpu else _config(model or "", load_format, device or "cuda", dtype)
    calibrate = _module().calibrate
    limit = minutes or (_CPU_MINUTES if cpu else _GPU_MINUTES)
    with ProgressLine(enabled=not quiet) as line:
        done = calibrate(config, output_dir, limit, say=line.say)
    _tell(done)


def _module() -> ModuleType:
    """What measures and fits: `workbench.calibrate`.

    Raises:
        EngineError: a package that only the engine's users have is missing.
    """
    from engine.runtime.executor import EngineError

    try:
        from workbench import calibrate
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "scipy":
            raise
        raise EngineError(
            "calibrating needs scipy, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None
    return calibrate


def _cpu_config() -> RunnerConfig:
    from importlib.resources import files

    from engine.runtime.runner_config import RunnerConfig

    # Small enough that every step takes milliseconds.
    return RunnerConfig(
        model=str(files("scenarios") / "tiny_model.json"),
        load_format="dummy",
        device="cpu",
        num_pages=512,
        max_num_batched_tokens=256,
        max_running_requests=16,
        max_model_len=1024,
    )


def _config(
    model: str, load_format: Literal["auto", "dummy"], device: str, dtype: str | None
) -> RunnerConfig:
    from engine.core.graph_sizes import default_graph_batch_sizes
    from engine.runtime.runner_config import RunnerConfig

    config = RunnerConfig(model=model, load_format=load_format, device=device, dtype=dtype)
    sizes = default_graph_batch_sizes(config.max_running_requests)
    return replace(config, cuda_graph_batch_sizes=sizes)


def _tell(done: Calibration) -> None:
    """Where the profile is, and how good."""
    fit, samples = done.profile.fit, done.profile.samples
    typer.echo(f"{len(samples):,} steps, {sum(samples.repeats):,} times: {done.path}")
    if not done.complete:
        typer.echo("time ran out before all passes: the same command goes on where this stopped,")
        typer.echo("and a profile that was there before stays until then")
    if fit.residuals:
        typer.echo("error of the fit on steps that it had not seen, in %:")
        typer.echo(f"  {'':22}{'steps':>7}{'median':>8}{'p90':>8}{'p99':>8}{'bias':>8}")
    for r in fit.residuals:
        numbers = (r.median_percent, r.p90_percent, r.p99_percent)
        columns = "".join(f"{number:>8.2f}" for number in numbers)
        typer.echo(f"  {r.region:22}{r.count:>7,}{columns}{r.bias_percent:>+8.2f}")
