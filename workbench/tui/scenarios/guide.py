"""How to read the screen of scenarios."""

from __future__ import annotations

from typing import Final

from workbench.tui.screen_help import ScreenHelp

_LIST = (
    "shipped scenarios, scenario files of this folder, recorded runs with outcome and age; a file "
    "that is called like a shipped scenario and is not as shipped stands in its place"
)
_FORM = (
    "every key of the scenario; ● differs from the file, ✗ is wrong, – is left to the program; "
    "enter types a value, ← → turn through the few there are"
)
_ESTIMATE = (
    "from means alone, before anything runs: offered load against capacity, mean latencies; it "
    "knows no bursts and no tails, the run does"
)
SCENARIOS_GUIDE: Final = ScreenHelp(
    title="scenarios",
    how_to_read=(
        ("list", _LIST),
        ("form", _FORM),
        ("arrivals", "requests per second over the time of the run"),
        ("prompt, output tokens", "how many requests are how long, on a log scale"),
        ("memory", "of one GPU: weights, pages of the KV cache, what steps need besides"),
        ("estimate", _ESTIMATE),
        ("problems", "what is wrong, at which line, and what would help; enter jumps there"),
        ("$", "the command that gives the same in a shell; Y copies it"),
    ),
    words=("TTFT", "TPOT", "SLO", "page", "prefix hit", "prefill", "decode"),
)
