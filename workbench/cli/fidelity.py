"""`workbench fidelity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from engine.runtime.runner_config import LoadFormat
    from simulator.profile import Profile
    from workbench.fidelity.suite import Basis
    from workbench.running.engine_setup import EngineOptions

EPILOG = """\b
Examples:
  workbench fidelity profiles/nvidia-h200-llama-3.1-8b-bf16-tp1.json --load-format dummy
  workbench fidelity profiles/cpu-tiny-model-fp32-tp1.json --cpu
  workbench fidelity PROFILE --judge-only --output-dir measured --picture fidelity.png"""


def run(
    profile: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, metavar="PROFILE", help="What `workbench calibrate` wrote."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CARD|FOLDER|ORG/NAME", help="To serve; default: the card of the profile."
        ),
    ] = None,
    load_format: Annotated[
        Literal["auto", "dummy"], typer.Option(help="dummy makes random weights.")
    ] = "auto",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="The tiny model on this machine's CPU, four short loads.")
    ] = False,
    loads: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Only these loads; default: all.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A trace whose beginning is a load, too, as `workload.path`."
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of the engine for each load; default: as before, or 3."),
    ] = None,
    judge_only: Annotated[
        bool, typer.Option("--judge-only", help="Start no engine: judge what has been measured.")
    ] = False,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Where measurements are kept and judgements go.")
    ] = Path("fidelity"),
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the judgement, as .png or .svg."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Compare simulations with the engine, load by load.

    Loads that calibration never saw run on the engine, several times. These measurements stay in
    the output folder; an interrupted suite goes on where it stopped. Then the simulator predicts
    the same loads, with the profile, with shipped kernel tables of the GPU, and with the analytic
    model: errors of latencies and throughput beside the engine's own spread, errors of single
    steps, whether all decisions are the same, and which goals are reached. Where everything has
    been measured, any machine judges any profile.
    """
    from simulator.profile import CPU
    from simulator.profile_file import read_profile
    from workbench.cli.failures import UsageError
    from workbench.cli.interrupt import kept_on_interrupt
    from workbench.cli.model_names import check_model_name
    from workbench.cli.progress import ProgressLine
    from workbench.fidelity.errors import FidelityError
    from workbench.fidelity.loads import chosen
    from workbench.fidelity.run import run_suite
    from workbench.fidelity.suite import open_suite
    from workbench.fidelity.table import table_lines

    check_model_name(model, load_format)
    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise UsageError(f"--picture {picture}: give it the ending .png or .svg")
    if cpu and trace is not None:
        raise UsageError("--cpu has no load of a trace: leave --trace out")
    known = read_profile(profile)
    if cpu != (known.identity.gpu == CPU):
        what = "a CPU: add --cpu" if not cpu else f"{known.identity.gpu}: leave --cpu out"
        raise UsageError(f"{profile} is a profile of {what}")
    basis, options = _set_up(known, model, load_format, cpu)
    try:
        wanted = chosen(basis.loads, loads)
    except FidelityError as error:
        raise UsageError(str(error)) from None
    with kept_on_interrupt(), ProgressLine(enabled=not quiet) as line:
        suite = open_suite(
            output_dir, basis, known, profile,
            repeats=repeats, trace=trace, make=not judge_only,
        )  # fmt: skip
        judgement = run_suite(
            suite, wanted, known, profile, None if judge_only else options, say=line.say
        )
    typer.echo("\n".join(table_lines(judgement)))
    if picture is not None:
        from workbench.fidelity.picture import draw

        draw(judgement, picture)
        typer.echo(picture)


def _set_up(
    profile: Profile, model: str | None, load_format: LoadFormat, cpu: bool
) -> tuple[Basis, EngineOptions]:
    """What is varied, and which engine does it."""
    from workbench.fidelity.loads import CPU_LOADS, GPU_LOADS
    from workbench.fidelity.suite import Basis
    from workbench.running.engine_setup import EngineOptions
    from workbench.running.profile_match import gpu_called

    if cpu:
        options = EngineOptions(load_format="dummy", device="cpu")
        return Basis("engine_on_cpu", (), CPU_LOADS), options
    options = EngineOptions(model=model, load_format=load_format, device="cuda")
    gpu = gpu_called(profile.identity.gpu)
    settings = (f"model.name={profile.identity.model}", f"hardware.gpu={gpu}")
    return Basis("quickstart", settings, GPU_LOADS), options
