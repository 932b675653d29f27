"""Options that `workbench simulate` and `workbench run` share, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from workbench.running.execution import Runnable

ScenarioArgument = Annotated[
    str | None,
    typer.Argument(help="Scenario file, or the name of a shipped one (workbench scenarios)."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the scenario. Repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(help="Same as --set seed=N.")]
NumPromptsOption = Annotated[int | None, typer.Option(min=1, help="Send this many requests.")]
GoodputOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIMITS",
        help='Limits that a good request keeps, in ms, as "ttft:200 tpot:50 e2el:9000".',
    ),
]
PercentilesOption = Annotated[
    str | None, typer.Option(metavar="P,P,...", help="Percentiles to print, as 50,90,99,99.9.")
]
FailUnderOption = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT",
        help="Exit with 3 unless this share of the requests keeps the SLO, as 99%.",
    ),
]
FormatOption = Annotated[
    Literal["table", "json", "md"], typer.Option("--format", help="How to print the result.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Same as --format json.")]
DetailOption = Annotated[
    Literal["none", "steps", "items", "pages"],
    typer.Option(help="How much of the run is recorded."),
]
RunsDirOption = Annotated[
    Path, typer.Option("--runs-dir", "--out", help="Where runs are recorded.")
]
NameOption = Annotated[str | None, typer.Option(help="Name of the run; default: the scenario's.")]
RecordOption = Annotated[
    bool, typer.Option("--record/--no-record", help="Keep the run under the runs directory.")
]
EmitOption = Annotated[
    Literal["-"] | None,
    typer.Option(
        metavar="-", help="With -, stream events as msgpack frames on stdout, not the result."
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a trace for ui.perfetto.dev to FILE."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr.")]

WHICH_SCENARIO = (
    "which scenario? A file, or a name that `workbench scenarios` lists, such as quickstart"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFlags:
    """Where a run's result goes, in which form, and what it has to reach.

    Raises:
        UsageError: the flags contradict each other.
    """

    fail_under: str | None
    output_format: Literal["table", "json", "md"]
    as_json: bool
    detail: Literal["none", "steps", "items", "pages"]
    runs_dir: Path
    name: str | None
    record: bool
    emit: Literal["-"] | None
    trace: Path | None
    quiet: bool

    def __post_init__(self) -> None:
        from workbench.cli.failures import UsageError, refuse_stdout

        if self.emit is not None and (self.as_json or self.output_format != "table"):
            raise UsageError(
                "--emit streams events instead of the result: leave --json or --format out"
            )
        refuse_stdout("--trace", self.trace)
        if self.name is not None:
            from workbench.cli.overrides import check_run_name

            check_run_name(self.name)
        if self.trace is not None and not self.record:
            raise UsageError("--trace is made from the recorded run: leave --no-record out")
        if self.trace is not None and not self.trace.parent.is_dir():
            raise UsageError(f"--trace: there is no directory {self.trace.parent}: create it first")
        if self.trace is not None and self.detail == "none":
            raise UsageError("--trace needs steps: leave --detail none out")
        _ = self.limit_percent

    @property
    def limit_percent(self) -> float | None:
        """The share of the requests that must keep the SLO, in percent."""
        from workbench.cli.percent import parse_percent

        if self.fail_under is None:
            return None
        return parse_percent("--fail-under", self.fail_under, most=100)

    def check_objective(self, given: bool) -> None:
        """Refuse --fail-under for a scenario that has no objective.

        Raises:
            UsageError: it has none.
        """
        from workbench.cli.failures import UsageError

        if self.fail_under is not None and not given:
            raise UsageError(
                '--fail-under needs an SLO: `slo` in the scenario, or --goodput "ttft:200"'
            )

    def deliver(self, ready: Runnable, closing: str = "") -> None:
        """Run what was prepared and print its result, with `closing` after it.

        Raises:
            typer.Exit: the run did not end as it should, or missed its objective.
        """
        from workbench.cli.failures import REGRESSION_EXIT_CODE
        from workbench.cli.simulation import Outputs, carry_out
        from workbench.metrics.summary_text import render

        outputs = Outputs(
            runs_directory=self.runs_dir if self.record else None,
            run_name=ready.header.name if self.name is None else self.name,
            stream=self.emit is not None,
            trace=self.trace,
            talk=not self.quiet,
        )
        summary, exit_code = carry_out(ready, outputs)
        if self.emit is None:
            style = "json" if self.as_json else self.output_format
            text = render(summary, style) + ("" if style == "json" else closing)
            typer.echo(text, nl=False)
        if exit_code:
            raise typer.Exit(exit_code)
        limit, reached = self.limit_percent, summary["slo_attainment_percent"] or 0
        if limit is not None and not reached >= limit:
            raise typer.Exit(REGRESSION_EXIT_CODE)
