"""`workbench simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from workbench.running.simulate import Simulation

EPILOG = """\b
Examples:
  workbench simulate quickstart
  workbench simulate my.yaml --set load.request_rate=20 --seed 3
  workbench simulate quickstart --set hardware.profile=analytic
  workbench simulate my.yaml --goodput "ttft:200 tpot:50" --json > result.json
  workbench simulate --fork runs/my-1@500 --set scheduler.policy=lpm"""


def run(
    scenario: ScenarioArgument = None,
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
    fork: Annotated[
        str | None,
        typer.Option(
            metavar="RUN@[REPLICA:]STEP",
            help="Repeat a recorded run; from this step on, decide with what --set changes.",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Simulate a scenario and print its serving metrics.

    Labels and formulas are those of `vllm bench serve`. The run is recorded for `explain`,
    `compare` and `report`. Step times are those of the profile that `hardware.profile` names; if it
    names none, of the shipped one that fits, or else of shipped kernels of the GPU, or else, as
    with `analytic`, of the analytic model.
    """
    from workbench.cli.failures import UsageError
    from workbench.cli.forks import fork_of, fork_sentence

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
    if fork is not None:
        given = (scenario, seed, num_prompts, goodput, metric_percentiles)
        if any(value is not None for value in given):
            raise UsageError("--fork repeats a recorded run; only --set can change it on the way")
        simulation: Simulation = fork_of(fork, runs_dir, overrides or [], detail)
    elif scenario is None:
        raise UsageError(WHICH_SCENARIO)
    else:
        from workbench.cli.overrides import load_with_flags
        from workbench.running.simulate import prepare

        loaded = load_with_flags(
            scenario, overrides or [], seed, num_prompts, goodput or [], metric_percentiles
        )
        simulation = prepare(loaded, detail)
    flags.check_objective(simulation.header.slo.given())
    flags.deliver(simulation, fork_sentence(simulation.header))
