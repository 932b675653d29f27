"""How to read the roofline screen."""

from __future__ import annotations

from typing import Final

from workbench.tui.screen_help import ScreenHelp

GUIDE: Final = ScreenHelp(
    title="Roofline",
    how_to_read=(
        (
            "roof",
            ("no kernel can be above it: left of the ridge memory gives out, right of it "
            "arithmetic. The rates are those that programs reach, not the data sheet's."),
        ),
        (
            "letters",
            ("kernel classes of the step under the cursor, as in the table. Across: FLOPs per "
            "byte, both counted from the shape of the model. Up: FLOPs over the time that the "
            "class took. Dots show the steps before, as many as the zoom has in its columns."),
        ),
        (
            "time",
            ("a record says how long a step took, not its kernels: the time of the step is "
            "divided as the analytic cost model divides its own. `workbench profile roofline` "
            "measures each class."),
        ),
        (
            "eff and bound",
            ("the least time for the bytes and FLOPs over the time taken. mem: bytes are the "
            "limit; cmp: arithmetic; lat: neither explains the time; lnk: GPUs exchange data. "
            "Above 100%: the step was faster than the analytic model has it, by as much as is "
            "said below the table, and its classes share in that."),
        ),
        (
            "what if",
            ("the same step with twice the requests, fp8 weights or twice the GPUs, by the "
            "analytic model: what changes, and which classes cross the ridge."),
        ),
    ),
    words=("step", "prefill", "decode"),
)  # fmt: skip
