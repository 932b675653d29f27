"""`workbench version`."""

from __future__ import annotations

import typer

EPILOG = "\b\nExample:\n  workbench version"


def run() -> None:
    """Print the versions that a result depends on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from engine.compiled import active_build
    from engine.native.cache_choice import described_choices
    from workbench.record.provenance import workbench_version

    typer.echo(f"workbench {workbench_version()}")
    typer.echo(f"python    {platform.python_version()} ({platform.system()} {platform.machine()})")
    typer.echo(f"numpy     {version('numpy')}")
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed (only the engine needs it)"
    typer.echo(f"torch     {torch}")
    typer.echo(f"core      {active_build() or 'Python (workbench native compiles it)'}")
    for line in described_choices():
        typer.echo(f"cache     {line}")
