"""A model without weights: every KV entry is a hash of its prefix, every token a hash of that.

So a wrong, stale or foreign page changes the text, and whoever computes with it can be told which
entry is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.core.request import KVHandoff, Request
from engine.core.token_ids import TokenBuffer

OUTPUT_LETTERS: Final = 3


def first_state(tenant: int) -> int:
    """The state before the first token; texts of different tenants differ from the start."""
    return 7919 * (tenant + 1)


def next_state(state: int, token: int) -> int:
    """The KV entry of a token after a prefix."""
    return ((state ^ (token + 1)) * 0x5851F42D4C957F2D + 0x14057B7EF767814F) % (1 << 61)


def next_token(state: int) -> int:
    """The token that follows a prefix."""
    return (state >> 20) % OUTPUT_LETTERS


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as its client and its model know it.

    Attributes:
        stop_after: outputs after which the model ends the text by itself.
    """

    request_id: int
    prompt: tuple[int, ...]
    max_tokens: int
    stop_after: int
    priority: int = 0
    tenant: int = 0
    handoff: KVHandoff = KVHandoff.NONE

    @property
    def output_length(self) -> int:
        """Tokens of an undisturbed answer."""
        return min(self.stop_after, self.max_tokens)

    def text(self, outputs: int) -> list[int]:
        """Prompt and the first `outputs` tokens of the answer, with nobody else around."""
        story = Story(self)
        story.grow_to(len(self.prompt) + outputs)
        return story.tokens

    def buffer(self) -> TokenBuffer:
        """The ids that come with the request: a received request knows its first output."""
        return TokenBuffer(self.text(1) if self.handoff == KVHandoff.RECEIVE else list(self.prompt))

    def request(self) -> Request:
        """A fresh request for a scheduler."""
        return Request(
            self.request_id,
            len(self.prompt),
            self.max_tokens,
            priority=self.priority,
            tenant=self.tenant,
            tokens=self.buffer(),
            handoff=self.handoff,
        )


class Story:
    """The one text that a request can have, as far as it has been told.

    Attributes:
        tokens: prompt and answer so far.
        states: `states[n]` is the KV entry of token n - 1, `states[0]` what precedes the text.
    """

    __slots__ = ("ask", "prompt_tokens", "states", "tokens")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.prompt_tokens = len(ask.prompt)
        self.tokens = list(ask.prompt)
        state = first_state(ask.tenant)
        self.states = [state]
        for token in ask.prompt:
            state = ((state ^ (token + 1)) * 0x5851F42D4C957F2D + 0x14057B7EF767814F) % (1 << 61)
            self.states.append(state)

    def grow_to(self, tokens: int) -> None:
        """Tell on until there are `tokens` tokens."""
        while len(self.tokens) < tokens:
            state = self.states[-1]
            token = next_token(state)
            self.tokens.append(token)
            self.states.append(next_state(state, token))
