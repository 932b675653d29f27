"""`workbench run`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from workbench.running.engine_prompts import ShownText
    from workbench.scenario.source import LoadedScenario

EPILOG = """\b
Examples:
  workbench run quickstart --model ~/models/Llama-3.1-8B
  workbench run quickstart --model demo-dense
  workbench run quickstart --load-format dummy --num-prompts 500
  workbench run my.yaml --model Qwen/Qwen3-0.6B --set load.request_rate=20 --json > result.json"""


def run(
    scenario: ScenarioArgument = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER|ORG/NAME",
            help="What to serve: a demo model (demo-dense, demo-draft, demo-moe), the folder of a "
            "checkpoint, or one in the local Hugging Face cache; default: the scenario's.",
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
    show_texts: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Of a demo model, show the first texts; default: 1."),
    ] = 1,
    quiet: QuietOption = False,
) -> None:
    """Serve a scenario on the real engine and print its metrics.

    The result and the record are those of `workbench simulate`, with measured step times. Texts end
    where the scenario says: a token that would end them is ignored. On a CPU a demo model serves
    the first 16 requests, unless their number is given.
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
    from workbench.cli.demo_load import load_for_demo
    from workbench.cli.model_names import check_model_name
    from workbench.cli.overrides import load_with_flags
    from workbench.cli.progress import ProgressLine
    from workbench.running.engine_run import prepare
    from workbench.running.engine_setup import EngineOptions
    from workbench.running.execution import slo_facts

    check_model_name(model, load_format)

    def load(added: Sequence[str]) -> LoadedScenario:
        changes = [*added, *(overrides or [])]
        return load_with_flags(
            scenario, changes, seed, num_prompts, goodput or [], metric_percentiles
        )

    options = EngineOptions(model=model, load_format=load_format, device=device, dtype=dtype)
    given = [*(overrides or []), *([] if num_prompts is None else ["workload="])]
    loaded, changes = load_for_demo(load, options, given)
    flags.check_objective(slo_facts(loaded.scenario).given())
    if changes and not quiet:
        typer.echo(f"note: so that a demo model can serve it: {' '.join(changes)}", err=True)
    with ProgressLine(enabled=not quiet) as line:
        ready = prepare(loaded, detail, options, say=line.say)
    with closing(ready):
        try:
            flags.deliver(ready)
        finally:
            if not (quiet or as_json or emit):
                _show(ready.shown_texts(show_texts))


def _show(texts: Sequence[ShownText]) -> None:
    """Write texts to stderr, the prompts dimmed."""
    for text in texts:
        typer.secho(f"\nrequest {text.request_id}: …", err=True, bold=True)
        typer.secho(text.prompt, err=True, dim=True, nl=False)
        typer.echo(text.answer, err=True)
