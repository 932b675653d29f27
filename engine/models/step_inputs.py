"""What a step feeds the transformer: flat tokens, and where each one's KV lives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """The prefill chunks of a step, which come first among its tokens.

    Attributes:
        starts: int32[P + 1], where each chunk starts among the tokens, and where the last ends.
        rows: int32[P], row of the page table of each.
        contexts: int32[P], tokens cached before each chunk.
        decode_rows, decode_positions: int32[T - starts[P]], those of the tokens behind the chunks
            once more, at addresses of their own: a kernel is compiled anew for addresses that are
            not multiples of 16, and that takes a second while everybody waits.
        lengths: the same chunks' lengths, known to the host.
    """

    starts: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor
    decode_rows: torch.Tensor
    decode_positions: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tokens of a step: prefill chunks first, then one token per decoding request.

    Attributes:
        token_ids: int32[T]; `-1 - row` stands for the token sampled last for that row.
        positions: int32[T], of each token in its text.
        rows: int32[T], row of the page table of each token.
        page_table: int32[R + 1, max_pages]; the last row is all dummy page.
        last_tokens: int32[R + 1], the token sampled last for each row.
        counters: int32 zeros for the decode attention, which leaves zeros.
        prefill: the chunks, or None in a decode step.
        logit_rows: int32[S], the tokens whose logits are wanted; None: all of them.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    page_table: torch.Tensor
    last_tokens: torch.Tensor
    counters: torch.Tensor
    prefill: PrefillInputs | None = None
    logit_rows: torch.Tensor | None = None
