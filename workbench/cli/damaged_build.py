"""A compiled core that was cut off is left out before a command loads it."""

from __future__ import annotations

import typer


def leave_out_damaged_build() -> None:
    """Let a command, and what it starts, run as Python where the compiled core is not whole."""
    from engine.compiled import active_build

    core = active_build()
    if core is None:
        return
    from engine.native.whole import MENDS, damage_of, leave_out

    if why := damage_of(core):
        leave_out(core)
        typer.echo(
            f"warning: {core} is damaged ({why}), so this runs as with WORKBENCH_NATIVE=0; {MENDS}",
            err=True,
        )
