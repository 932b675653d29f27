"""How to read the live screen."""

from __future__ import annotations

from typing import Final

from workbench.tui.screen_help import ScreenHelp

GUIDE: Final = ScreenHelp(
    title="Live",
    how_to_read=(
        (
            "batch strip",
            ("a column is a step, or a few: [ and ] change how many. Upper lane: prefill tokens "
            "the step computed, above them those it found in the cache; a tick is the most of any "
            "step of the column, the dashed line the token budget. Then the requests that decoded, "
            "and the time from the end of the step before to the end of this one. The newest step, "
            "on the right, is the one under the cursor. A click goes to a column's heaviest step."),
        ),
        (
            "KV map",
            ("all pages of the pool by number, row by row. k colours them by state, owner (a hue "
            "per request), age or references. A pixel shows what most of its pages are; of owners "
            "the youngest, of ages the last change, of references the most. Shared pages are in "
            "the cache and in use; cached ones are in the cache alone and can be evicted."),
        ),
        (
            "latency",
            ("exact percentiles of the requests and steps before the cursor, in ms. SLO is the "
            "share of them within the limit that the scenario sets."),
        ),
        (
            "prefix cache",
            ("a row per level of the tree; a node is as wide as its tokens and all below it. r2 "
            "says that two requests hold it. What nobody holds fades with time."),
        ),
        (
            "one request",
            ("choose one by a click on its pages, on an event or on a node, or with n. Its pages, "
            "its path in the tree and its steps light up until esc."),
        ),
        (
            "back in time",
            ("everything is the exact state after the step under the cursor. Speed counts in time "
            "of the run: at 1x a decode step of 8 ms lasts 8 ms, so 0.1x shows single steps."),
        ),
    ),
    words=(
        "step", "prefill", "chunk", "decode", "page", "prefix hit", "evict", "retract", "admit",
        "budget", "TTFT", "TPOT", "ITL", "E2E", "SLO",
    ),
)  # fmt: skip
