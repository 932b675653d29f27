"""`workbench simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """\b
Examples:
  workbench simulate quickstart
  workbench simulate my.yaml --set load.request_rate=20 --seed 3
  workbench simulate my.yaml --goodput "ttft:200 tpot:50" --json > result.json
  workbench simulate --fork runs/my-1@500 --set scheduler.policy=lpm"""


def run(
    scenario: Annotated[
        str | None,
        typer.Argument(help="Scenario file, or the name of a shipped one (workbench scenarios)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the scenario. Repeatable."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same as --set seed=N.")] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Send this many requests.")] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMITS",
            help='Limits that a good request keeps, in ms, as "ttft:200 tpot:50 e2el:9000".',
        ),
    ] = None,
    metric_percentiles: Annotated[
        str | None, typer.Option(metavar="P,P,...", help="Percentiles to print, as 50,90,99,99.9.")
    ] = None,
    fail_under: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 3 unless this share of the requests keeps the SLO, as 99%.",
        ),
    ] = None,
    output_format: Annotated[
        Literal["table", "json", "md"], typer.Option("--format", help="How to print the result.")
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
    detail: Annotated[
        Literal["none", "steps", "items", "pages"],
        typer.Option(help="How much of the run is recorded."),
    ] = "items",
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", "--out", help="Where runs are recorded.")
    ] = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="Name of the run; default: the scenario's.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Keep the run under the runs directory.")
    ] = True,
    emit: Annotated[
        Literal["-"] | None,
        typer.Option(
            metavar="-", help="With -, stream events as msgpack frames on stdout, not the result."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a trace for ui.perfetto.dev to FILE."),
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            metavar="RUN@[REPLICA:]STEP",
            help="Repeat a recorded run; from this step on, decide with what --set changes.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr.")] = False,
) -> None:
    """Simulate a scenario and print its serving metrics.

    Labels and formulas are those of `vllm bench serve`. The run is recorded for `explain`,
    `compare` and `report`.
    """
    from workbench.cli.failures import REGRESSION_EXIT_CODE, UsageError, refuse_stdout
    from workbench.cli.forks import fork_sentence
    from workbench.cli.percent import parse_percent
    from workbench.cli.simulation import Outputs, carry_out
    from workbench.summary import render

    if emit is not None and (as_json or output_format != "table"):
        raise UsageError(
            "--emit streams events instead of the result: leave --json or --format out"
        )
    refuse_stdout("--trace", trace)
    if name is not None:
        from workbench.cli.overrides import check_run_name

        check_run_name(name)
    if trace is not None and not record:
        raise UsageError("--trace is made from the recorded run: leave --no-record out")
    if trace is not None and detail == "none":
        raise UsageError("--trace needs steps: leave --detail none out")
    limit_percent = None
    if fail_under is not None:
        limit_percent = parse_percent("--fail-under", fail_under, most=100)
    if fork is not None:
        from workbench.cli.forks import fork_of

        given = (scenario, seed, num_prompts, goodput, metric_percentiles)
        if any(value is not None for value in given):
            raise UsageError("--fork repeats a recorded run; only --set can change it on the way")
        simulation = fork_of(fork, runs_dir, overrides or [], detail)
    elif scenario is None:
        raise UsageError(
            "which scenario? A file, or a name that `workbench scenarios` lists, such as quickstart"
        )
    else:
        from workbench.cli.overrides import load_with_flags
        from workbench.simulate import prepare

        loaded = load_with_flags(
            scenario, overrides or [], seed, num_prompts, goodput or [], metric_percentiles
        )
        simulation = prepare(loaded, detail)
    if limit_percent is not None and not simulation.header.slo.given():
        raise UsageError(
            '--fail-under needs an SLO: `slo` in the scenario, or --goodput "ttft:200"'
        )
    outputs = Outputs(
        runs_directory=runs_dir if record else None,
        run_name=simulation.header.name if name is None else name,
        stream=emit is not None,
        trace=trace,
        talk=not quiet,
    )
    summary, exit_code = carry_out(simulation, outputs)
    if emit is None:
        style = "json" if as_json else output_format
        closing = "" if style == "json" else fork_sentence(simulation.header)
        typer.echo(render(summary, style) + closing, nl=False)
    if exit_code:
        raise typer.Exit(exit_code)
    if limit_percent is not None and not (summary["slo_attainment_percent"] or 0) >= limit_percent:
        raise typer.Exit(REGRESSION_EXIT_CODE)
