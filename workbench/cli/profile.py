"""`workbench profile`: timeline, gaps, roofline, doctor and import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import NumPromptsOption, QuietOption, ScenarioArgument, SetOption
from workbench.cli.profile_options import (
    FOLDER,
    AsJson,
    DeviceOption,
    DtypeOption,
    EagerOption,
    KernelsOption,
    LayersOption,
    LoadOption,
    ModelOption,
    OnlyOption,
    OutputOption,
    StepModelOption,
    StepOption,
    StepsOption,
    check_class,
    step_request,
)

EPILOG = """\b
Examples:
  workbench profile doctor
  workbench profile timeline --step decode:32x1024 --model Llama-3.1-8B --load-format dummy
  workbench profile roofline --step prefill:1x2048 --model Qwen3-0.6B --load-format dummy
  workbench profile gaps --before eager --after graph"""
_TIMELINE_EPILOG = """\b
Examples:
  workbench profile timeline --step decode:4x64               a tiny model, on any machine
  workbench profile timeline --step prefill:1x2048 --model ~/models/Llama-3.1-8B
  workbench profile timeline quickstart --model demo-dense    of a load that is served
  workbench profile timeline --step decode:32x1024 --model Llama-3.1-8B --load-format dummy --ncu"""
_ROOFLINE_EPILOG = """\b
Examples:
  workbench profile roofline --step decode:32x1024 --model Llama-3.1-8B --gpu h200     predicted
  workbench profile roofline --step decode:32x1024 --model Llama-3.1-8B --load-format dummy"""
_GAPS_EPILOG = """\b
Examples:
  workbench profile gaps
  workbench profile gaps --workload decode --model Llama-3.1-8B --batch 32
  workbench profile gaps --from benchmarks/results/profile/h200_gaps.json   of an H200"""
_DOCTOR_EPILOG = """\b
Example:
  workbench profile doctor"""
_IMPORT_EPILOG = """\b
Examples:
  workbench profile import profile/timeline.json.gz
  workbench profile import profile/step.sqlite --model Llama-3.1-8B --step decode:32x1024
  workbench profile import profile/ncu.csv --model Llama-3.1-8B --step decode:32x1024"""

app = typer.Typer(
    help="Show where the time of steps goes, and what bounds it.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog=_TIMELINE_EPILOG, short_help="Record steps of the engine, and analyse them.")
def timeline(
    scenario: ScenarioArgument = None,
    step: StepOption = None,
    model: ModelOption = None,
    load_format: LoadOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    steps: StepsOption = None,
    first: Annotated[int, typer.Option(min=0, help="Steps of a scenario that go by before.")] = 50,
    eager: EagerOption = False,
    layers: LayersOption = None,
    overrides: SetOption = None,
    num_prompts: NumPromptsOption = None,
    kernels: KernelsOption = 12,
    nsys: Annotated[
        bool, typer.Option("--nsys", help="By Nsight Systems; without it, the commands to type.")
    ] = False,
    ncu: Annotated[
        bool, typer.Option("--ncu", help="Counters of each kernel, by Nsight Compute, likewise.")
    ] = False,
    only: OnlyOption = None,
    output: OutputOption = FOLDER,
    as_json: AsJson = False,
    quiet: QuietOption = False,
) -> None:
    """Record steps of the engine as a trace for Perfetto, and analyse it.

    The analysis says how busy the GPU is, which gaps there are and what caused them, where the time
    goes by range, class and kernel, and how near to the measured ceilings it comes.
    """
    from workbench.cli.failures import UsageError
    from workbench.cli.model_names import check_model_name
    from workbench.cli.profile_tools import run_ncu, run_nsys
    from workbench.cli.profile_work import time_run, time_step

    check_class(only, with_ncu=ncu)
    if scenario is not None and (step is not None or nsys or ncu or layers):
        raise UsageError("a scenario, or --step with --nsys, --ncu and --layers: not both")
    if scenario is not None:
        check_model_name(model, load_format)
        time_run(
            scenario, overrides or [], num_prompts, model, load_format, device, dtype,
            first, steps or 30, output, kernels, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    request = step_request(
        step, model, load_format, device, dtype, steps,
        eager=eager, layers=layers, or_else=", or the name of a scenario",
    )  # fmt: skip
    if nsys:
        run_nsys(request, output, as_json=as_json)
        return
    if ncu:
        run_ncu(request, output, only, as_json=as_json)
        return
    time_step(request, output, kernels, as_json=as_json, quiet=quiet)


@app.command(epilog=_ROOFLINE_EPILOG, short_help="Say what bounds each class of kernels of a step.")
def roofline(
    step: StepOption = None,
    model: StepModelOption = None,
    load_format: LoadOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    steps: StepsOption = None,
    eager: EagerOption = False,
    layers: LayersOption = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Measure nothing: predict the step on this GPU, by the cost model."),
    ] = None,
    ncu: Annotated[
        bool,
        typer.Option("--ncu", help="Bytes, warps and tensor cores by the device's counters."),
    ] = False,
    output: OutputOption = FOLDER,
    as_json: AsJson = False,
    quiet: QuietOption = False,
) -> None:
    """Place every kernel class of a step on the roofline, and say what bounds it.

    Bytes and FLOPs are counted from the shape of the model, ceilings are measured beside the
    engine. Writes roofline.json, .svg and .png.
    """
    from workbench.cli.profile_work import measure_roofline, predict_roofline

    request = step_request(
        step, model, load_format, device, dtype, steps,
        eager=eager, layers=layers, needs_weights=gpu is None,
    )  # fmt: skip
    if gpu is not None:
        predict_roofline(request, gpu, output, as_json=as_json)
    else:
        measure_roofline(request, output, with_ncu=ncu, as_json=as_json, quiet=quiet)


@app.command(epilog=_GAPS_EPILOG, short_help="Tell what warming up and CUDA Graphs change.")
def gaps(
    before: Annotated[Literal["eager"], typer.Option(help="What comes first.")] = "eager",
    after: Annotated[Literal["graph"], typer.Option(help="What it is held against.")] = "graph",
    workload: Annotated[
        Literal["decode", "denoise", "all"],
        typer.Option(help="Decode steps of an LLM, a diffusion transformer's steps, or both."),
    ] = "all",
    model: Annotated[
        str | None, typer.Option(help="A model card, or dit-s or dit-xl; default: two of each.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests, or images.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="KV tokens of each request.")] = 1024,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", dir_okay=False, help="Show what was measured before."),
    ] = None,
    output: OutputOption = FOLDER,
    as_json: AsJson = False,
    quiet: QuietOption = False,
) -> None:
    """Tell what warming up and CUDA Graphs do to the gaps between kernels.

    Each workload runs in a process of its own: its first call by cause, then warm and eager, then
    as a CUDA Graph. Writes gaps.json, .svg and .png; `workbench tui` shows them, too.
    """
    from workbench.cli.profile_work import show_gaps

    del before, after  # there is nothing else to choose from yet: they say what the picture shows
    show_gaps(workload, model, batch, context, from_file, output, as_json=as_json, quiet=quiet)


@app.command(epilog=_DOCTOR_EPILOG, short_help="Say what of this works on this machine.")
def doctor(
    counters: Annotated[
        bool, typer.Option("--counters/--no-counters", help="Start ncu to try whether it can read.")
    ] = True,
    ceilings: Annotated[
        bool, typer.Option("--ceilings/--no-ceilings", help="Measure the ceilings.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Say what of profiling works on this machine: tools, counters, kernels, ceilings."""
    import json

    from workbench.profile.doctor import examine, finding_text, findings_json

    findings = []
    for finding in examine(counters=counters, ceilings=ceilings):
        findings.append(finding)
        if not as_json:
            typer.echo(finding_text(finding))
    if as_json:
        typer.echo(json.dumps(findings_json(findings), indent=1))


@app.command(
    "import", epilog=_IMPORT_EPILOG, short_help="Read a trace, or a report of nsys or ncu."
)
def import_report(
    report: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT",
            dir_okay=False,
            help="A trace (.json, .json.gz), `nsys export --type sqlite`, or a CSV of ncu.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="What ran, to count bytes and FLOPs; default: as it says.")
    ] = None,
    step: StepOption = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="With --model: how many of its layers ran.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Of a CSV of ncu: the class whose kernels it has."),
    ] = None,
    kernels: KernelsOption = 12,
    as_json: AsJson = False,
) -> None:
    """Read a report back into the same tables: of torch's profiler, nsys or ncu."""
    from workbench.cli.profile_options import check_what_ran
    from workbench.cli.profile_tools import read_report, what_ran

    check_what_ran(model, layers)
    ran = what_ran(model, layers)
    read_report(report, ran, step, kernels, as_json=as_json, only=only)


@app.command("step", hidden=True)
def run_step(
    step: StepOption = None,
    model: StepModelOption = None,
    load_format: LoadOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    steps: StepsOption = None,
    eager: EagerOption = False,
    layers: LayersOption = None,
) -> None:
    """Run a step between cudaProfilerStart and -Stop, for a profiler that watches."""
    from workbench.profile.recording import run_watched

    run_watched(
        step_request(step, model, load_format, device, dtype, steps, eager=eager, layers=layers)
    )
