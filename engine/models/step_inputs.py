"""What a step feeds the transformer: flat tokens, and where each one's KV lives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """The prefill chunks of a step, and the decoding requests before them among its tokens.

    There may be room for more of both than there are: chunks without tokens, and decoding requests
    at position -1, to whose queries nothing happens.

    Attributes:
        starts: int32[P + 1], where each chunk starts among the tokens, and where the last ends.
        rows: int32[P], row of the page table of each.
        contexts: int32[P], tokens cached before each chunk.
        decode_rows, decode_positions: int32[D], of the decoding requests once more.
    """

    starts: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor
    decode_rows: torch.Tensor
    decode_positions: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tokens of a step: one per decoding request first, then prefill chunks.

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
