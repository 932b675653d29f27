"""`workbench kernels`: the kernel lab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.native.gil import GilMeasurement

EPILOG = """\b
Examples:
  workbench kernels explain softmax      what each rung changes, and what it gained
  workbench kernels bench softmax        measure the ladder on this machine's GPU
  workbench kernels gil                  what the interpreter's lock costs native code"""

_BENCH_EPILOG = """\b
Examples:
  workbench kernels bench softmax
  workbench kernels bench all --output lab.json
  workbench kernels bench rms_norm --device cpu     the rungs that run without a GPU"""
_EXPLAIN_EPILOG = """\b
Examples:
  workbench kernels explain attention_decode
  workbench kernels explain softmax --results lab.json     your own measurement"""
_GIL_EPILOG = """\b
Example:
  workbench kernels gil"""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, add_help_option=False
)
Op = Annotated[str, typer.Argument(metavar="OP", help="Of which op; see `workbench kernels`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _show_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


@app.callback(epilog=EPILOG)
def run(
    _help: Annotated[
        bool,
        typer.Option(
            "--help", "-h", is_eager=True, callback=_show_help, help="Show this message and exit."
        ),
    ] = False,
) -> None:
    """Classic kernels, from naive to best, measured.

    The ops: softmax, rms_norm, layer_norm, attention_prefill, attention_decode.
    """


@app.command(epilog=_BENCH_EPILOG, short_help="Measure every rung of an op's ladder.")
def bench(
    op: Annotated[str, typer.Argument(metavar="OP", help="One of the ops, or `all`.")],
    device: Annotated[
        str,
        typer.Option(
            metavar="cuda|cpu", help="Where to measure; cpu runs few rungs, on one thread."
        ),
    ] = "cuda",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the results here, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time every rung of an op's ladder and check its result against float64.

    Ends with exit code 1 if a rung computes something else.
    """
    from engine.kernels.lab.rungs import LADDERS, ladder_of
    from workbench.cli.failures import UsageError, refuse_stdout

    refuse_stdout("--output", output)
    if device not in ("cuda", "cpu"):
        raise UsageError(f"--device {device}: cuda or cpu")
    try:
        ops = list(LADDERS) if op == "all" else [ladder_of(op).op]
    except ValueError as error:
        raise UsageError(str(error)) from None
    from engine.kernels.lab.results import to_json
    from workbench.kernel_lab import measure_ladders
    from workbench.kernel_lab_text import ladder_table, provenance
    from workbench.record.atomic_file import write_atomic
    from workbench.record.result_folder import make_folder

    if output is not None:
        make_folder(output.parent)
    results = measure_ladders(ops, device, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(to_json(results), nl=False)
    else:
        tables = [ladder_table(ladder_of(name), results) for name in ops]
        typer.echo("\n".join([provenance(results) + "\n", *tables]), nl=False)
    if output is not None:
        write_atomic(output, to_json(results).encode())
    rungs = [r for sizes in results.ladders.values() for size in sizes for r in size.rungs]
    if any(rung.median_us is not None and not rung.is_right for rung in rungs):
        raise typer.Exit(1)


@app.command(epilog=_EXPLAIN_EPILOG, short_help="Say what each rung changes, and what it gained.")
def explain(
    op: Op,
    results: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Of `bench --output`. [those that ship]")
    ] = None,
) -> None:
    """Say what each rung of a ladder changes, and what that gained as measured.

    Without `--results` the figures are those that ship with the workbench, if any do.
    """
    from engine.kernels.lab.results import read_results, shipped_results
    from engine.kernels.lab.rungs import ladder_of
    from workbench.cli.failures import UsageError
    from workbench.kernel_lab_text import explanation

    try:
        ladder = ladder_of(op)
        measured = shipped_results() if results is None else read_results(results)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--results {results}: cannot be read: {error.strerror}") from None
    typer.echo(explanation(ladder, measured), nl=False)


@app.command(
    epilog=_GIL_EPILOG, short_help="Measure what the interpreter's lock costs native code."
)
def gil(as_json: AsJson = False) -> None:
    """Measure how native code scales over threads with the interpreter's lock kept, and released.

    Takes some seconds, and the first time a compilation.
    """
    from engine.native.build import PREFIX_CACHE, existing
    from engine.native.gil import measure_gil
    from engine.native.repair import repair

    for line in repair(PREFIX_CACHE):
        typer.echo(line, err=True)
    if existing(PREFIX_CACHE) is None:
        typer.echo("compiling what is measured, once: up to half a minute", err=True)
    measured = measure_gil()
    if as_json:
        from workbench.cli.json_text import to_json

        typer.echo(to_json(measured), nl=False)
    else:
        typer.echo(_gil_table(measured), nl=False)


def _gil_table(measured: GilMeasurement) -> str:
    heads = (
        f"{'lock':<10}{'threads':>8}{'calls/s':>10}{'speed-up':>10}"
        f"{'late, median ms':>17}{'most ms':>10}"
    )
    lines = [
        f"hashing pages in C++, {measured.call_ms:.1f} ms a call, on {measured.cores} cores;",
        "a thread beside it wants to wake up every millisecond",
        "",
        heads,
    ]
    lines += [
        f"{'released' if row.released else 'kept':<10}{row.threads:>8}{row.calls_per_s:>10.1f}"
        f"{row.speedup:>10.2f}{row.late_median_ms:>17.2f}{row.late_most_ms:>10.2f}"
        for row in measured.scaling
    ]
    return "\n".join(lines) + "\n"
