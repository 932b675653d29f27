"""`workbench fidelity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """\b
Examples:
  workbench fidelity profiles/nvidia-h200-llama-3.1-8b-bf16-tp1.json --load-format dummy
  workbench fidelity profiles/cpu-tiny-model-fp32-tp1.json --cpu"""


def run(
    profile: Annotated[Path, typer.Argument(help="What `workbench calibrate` wrote.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CARD|FOLDER|ORG/NAME", help="To serve; default: the card of the profile."
        ),
    ] = None,
    load_format: Annotated[
        Literal["auto", "dummy"], typer.Option(help="dummy makes random weights.")
    ] = "auto",
    gpu: Annotated[str, typer.Option(help="The GPU's name in scenarios.")] = "h200",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="The tiny model on this machine's CPU, three short loads.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of the engine for each load.")] = 3,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="One file a load; those that are there stay.")
    ] = Path("fidelity"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Compare simulations with the engine, load by load.

    Loads that calibration never saw run on the engine, several times, and in the simulator, with
    the profile and with the analytic model: errors of latencies and throughput beside the engine's
    own spread, errors of single steps, and whether all decisions are the same. An interrupted
    suite goes on where it stopped.
    """
    from simulator.profile import read_profile
    from workbench.cli.progress import ProgressLine
    from workbench.engine_setup import EngineOptions
    from workbench.fidelity import CPU_LOADS, GPU_LOADS, Suite, run_suite, table_lines

    known = read_profile(profile)
    if cpu:
        options = EngineOptions(load_format="dummy", device="cpu")
        suite = Suite("engine_on_cpu", (), CPU_LOADS, known, profile, options, repeats)
    else:
        options = EngineOptions(model=model, load_format=load_format, device="cuda")
        settings = (f"model.name={known.identity.model}", f"hardware.gpu={gpu}")
        suite = Suite("quickstart", settings, GPU_LOADS, known, profile, options, repeats)
    with ProgressLine(enabled=not quiet) as line:
        results = run_suite(suite, output_dir, say=line.say)
    typer.echo("\n".join(table_lines(results)))
