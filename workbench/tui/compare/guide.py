"""How to read the compare screen."""

from __future__ import annotations

from typing import Final

from workbench.tui.screen_help import ScreenHelp

GUIDE: Final = ScreenHelp(
    title="Compare",
    how_to_read=(
        (
            "lock",
            (
                "which step of B stands beside a step of A. arrival: the same requests have "
                "arrived, however late B is; time: the same instant; step: the same number."
            ),
        ),
        (
            "strips",
            (
                "prefill tokens, those found in the cache above them, and decoding requests below, "
                "on one scale for both runs. A leads; s swaps the two."
            ),
        ),
        (
            "divergence strip",
            (
                "B - A in every column. D: some step batches something else, so the schedulers "
                "decided otherwise. c: the batches agree, but a step takes another time."
            ),
        ),
        (
            "metrics",
            (
                "Δ is green or red where it is more than chance. A latency's difference is split: "
                "durations is what B's steps take longer than the same batches would in A, "
                "decisions is the rest: other batches, other order, other waiting."
            ),
        ),
        (
            "TTFT of each request",
            "a point per request, A across and B up, both logarithmic. Above the line B is later.",
        ),
    ),
    words=(
        "step",
        "prefill",
        "decode",
        "admit",
        "retract",
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "goodput",
    ),
)
