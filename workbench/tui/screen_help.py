"""What `?` says about a screen: how to read its charts, and the words that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GLOSSARY: Final[dict[str, str]] = {
    "request": "a prompt and the answer that a client waits for",
    "prefill": "computing the KV of the prompt's tokens; many tokens a step, bound by arithmetic",
    "chunk": "the part of a prompt that one step computes",
    "decode": "one new token for each running request a step, bound by memory bandwidth",
    "TTFT": "time to first token: from sending a request to its first token",
    "TPOT": "time per output token: (E2E - TTFT) / (output tokens - 1), one figure a request",
    "ITL": "inter-token latency: every gap between two tokens of a request, pooled",
    "E2E": "end-to-end latency: from sending a request to its last token",
    "SLO": "the limits that a scenario sets on TTFT, TPOT or E2E",
    "goodput": "requests a second that keep all limits of the SLO",
    "page": "the unit in which KV memory is handed out, page_size tokens",
    "prefix hit": "prompt tokens whose KV was found in the prefix cache, so nothing is computed",
    "retract": "to send a running request back to the queue, because pages ran out",
    "evict": "to give up cached pages that nobody uses, for new ones",
    "admit": "to take a request out of the queue into the running batch",
    "budget": "max_num_batched_tokens: the tokens that one step may compute",
    "step": "one planning of the scheduler and one pass of the model",
}


@dataclass(frozen=True, slots=True)
class ScreenHelp:
    """The help of one screen; its keys are taken from the screen's own bindings.

    Attributes:
        title: of the screen.
        how_to_read: (what is drawn, how to read it), in reading order.
        words: keys of `GLOSSARY` that the screen uses.
    """

    title: str
    how_to_read: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()
