"""How to read the screen of requests."""

from __future__ import annotations

from typing import Final

from workbench.tui.requests.filter_language import EXAMPLES
from workbench.tui.screen_help import ScreenHelp

_LIFE = (
    "what the request did when, all aligned at their arrival, on logarithmic time: each power of "
    "ten is as wide as the next, so that 10 ms of prefill show beside 10 s of decode"
)
_BAR = (
    "where the time to first token went; the parts sum to 100 %. Own prefill and decode of others "
    "are work of the steps that carried this request, prefill of others is work that shared them"
)

REQUESTS_GUIDE: Final = ScreenHelp(
    title="requests",
    how_to_read=(
        ("list", "one line a request; / filters, o sorts by the next column, a click too"),
        ("lines of life", _LIFE),
        ("bar", _BAR),
        ("parts", "the largest first, with who is to blame; enter goes to the step"),
        ("ITL", "gaps between its tokens over its life, the largest of each stretch"),
        ("state", "a * behind it: the request was retracted at least once"),
        ("filter", EXAMPLES),
    ),
    words=("request", "TTFT", "TPOT", "ITL", "E2E", "prefill", "decode", "prefix hit", "retract"),
)
