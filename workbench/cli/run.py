"""`workbench run`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import (
    WHICH_SCENARIO,
    DetailOption,
    EmitOption,
    FailUnderOption,
    FormatOption,
    GoodputOption,
    JsonOption,
    NameOption,
    NumPromptsOption,
    PercentilesOption,
    QuietOption,
    RecordOption,
    ResultFlags,
    RunsDirOption,
    ScenarioArgument,
    SeedOption,
    SetOption,
    TraceOption,
)

EPILOG = """\b
Examples:
  workbench run quickstart --model ~/models/Llama-3.1-8B
  workbench run quickstart --load-format dummy --num-prompts 500
  workbench run my.yaml --model Qwen/Qwen3-0.6B --set load.request_rate=20 --json > result.json"""


def run(
    scenario: ScenarioArgument = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ORG/NAME",
            help="Checkpoint to serve, by folder or from the local Hugging Face cache; "
            "default: the scenario's.",
        ),
    ] = None,
    load_format: Annotated[
        Literal["auto", "dummy"],
        typer.Option(help="auto reads the checkpoint; dummy makes random weights."),
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cuda, cuda:1 or cpu; default: a GPU if there is one."),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Number format; default: the scenario's, or else the model's own."),
    ] = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    num_prompts: NumPromptsOption = None,
    goodput: GoodputOption = None,
    metric_percentiles: PercentilesOption = None,
    fail_under: FailUnderOption = None,
    output_format: FormatOption = "table",
    as_json: JsonOption = False,
    detail: DetailOption = "items",
    runs_dir: RunsDirOption = Path("runs"),
    name: NameOption = None,
    record: RecordOption = True,
    emit: EmitOption = None,
    trace: TraceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Serve a scenario on the real engine and print its metrics.

    The result and the record are those of `workbench simulate`, with measured step times. Texts end
    where the scenario says: a token that would end them is ignored.
    """
    from workbench.cli.failures import UsageError

    flags = ResultFlags(
        fail_under=fail_under,
        output_format=output_format,
        as_json=as_json,
        detail=detail,
        runs_dir=runs_dir,
        name=name,
        record=record,
        emit=emit,
        trace=trace,
        quiet=quiet,
    )
    if scenario is None:
        raise UsageError(WHICH_SCENARIO)
    from workbench.cli.overrides import load_with_flags
    from workbench.cli.progress import ProgressLine
    from workbench.engine_run import prepare
    from workbench.engine_setup import EngineOptions
    from workbench.execution import slo_facts

    loaded = load_with_flags(
        scenario, overrides or [], seed, num_prompts, goodput or [], metric_percentiles
    )
    flags.check_objective(slo_facts(loaded.scenario).given())
    options = EngineOptions(model=model, load_format=load_format, device=device, dtype=dtype)
    with ProgressLine(enabled=not quiet) as line:
        ready = prepare(loaded, detail, options, say=line.say)
    with closing(ready):
        flags.deliver(ready)
