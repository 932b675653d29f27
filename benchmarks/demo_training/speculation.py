"""How often the target accepts what the draft proposes, by position: k tokens a round.

Greedy: a proposal is accepted while it is the target's own choice. Drawn at temperature 1: by
rejection sampling (Leviathan et al., arXiv:2211.17192, algorithm 1), which keeps the target's
distribution: x from q is accepted with probability min(1, p(x) / q(x)), else one is drawn from
max(0, p - q). There is no KV cache here: texts are short and the models small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from demo_training.bpe_constants import END_OF_TEXT_ID
from demo_training.model import Decoder, mixed_precision

PROPOSED: Final = 4


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of the proposals.

    Attributes:
        rounds: of all texts together.
        accepted_at: rounds in which the proposal at each position, and all before it, were taken.
        lengths: rounds by the number of tokens they gave, 1 to k + 1, at index length - 1.
    """

    rounds: int
    accepted_at: tuple[int, ...]
    lengths: tuple[int, ...]

    def as_json(self) -> dict[str, object]:
        """Counts, and the rates that follow from them."""
        before = (self.rounds, *self.accepted_at[:-1])
        return {
            "proposed": PROPOSED,
            "rounds": self.rounds,
            "accepted_at": list(self.accepted_at),
            "share_at": [count / self.rounds for count in self.accepted_at],
            "share_given_before": [
                count / max(was, 1) for count, was in zip(self.accepted_at, before, strict=True)
            ],
            "tokens_per_round": 1 + sum(self.accepted_at) / self.rounds,
            "rounds_by_tokens": list(self.lengths),
        }


@torch.no_grad()
def measure_acceptance(
    target: Decoder, draft: Decoder, prompts: Tensor, new_tokens: int, *, greedy: bool, seed: int
) -> Acceptance:
    """Continue all prompts by at least `new_tokens` tokens or to the end of the text.

    Args:
        target: the model to be sped up.
        draft: of the same vocabulary, on the same device.
        prompts: int64[B, P], all of one length.
        new_tokens: per text.
        greedy: temperature 0 instead of 1.
        seed: of the draws.
    """
    count, prompt_tokens = prompts.shape
    device = prompts.device
    random = torch.Generator(device).manual_seed(seed)
    room = prompt_tokens + new_tokens + 2 * PROPOSED + 1  # texts that have ended wait here
    texts = torch.zeros(count, room, dtype=torch.long, device=device)
    texts[:, :prompt_tokens] = prompts
    lengths = torch.full((count,), prompt_tokens, device=device)
    alive = torch.ones(count, dtype=torch.bool, device=device)
    rounds, accepted_at = 0, torch.zeros(PROPOSED, dtype=torch.long, device=device)
    by_length = torch.zeros(PROPOSED + 1, dtype=torch.long, device=device)
    while bool(alive.any()):
        taken = _round(target, draft, texts, lengths, greedy, random)
        rounds += int(alive.sum())
        positions = torch.arange(PROPOSED, device=device)
        accepted_at += ((taken[:, None] > positions) & alive[:, None]).sum(0)
        by_length += torch.bincount(taken[alive], minlength=PROPOSED + 1)
        new = torch.arange(room, device=device)[None]
        fresh = (new >= lengths[:, None]) & (new <= (lengths + taken)[:, None])
        ended = ((texts == END_OF_TEXT_ID) & fresh).any(1)
        lengths = torch.where(alive, lengths + taken + 1, lengths)
        alive &= ~ended & (lengths < prompt_tokens + new_tokens)
    return Acceptance(rounds, tuple(accepted_at.tolist()), tuple(by_length.tolist()))


def _round(
    target: Decoder, draft: Decoder, texts: Tensor, lengths: Tensor, greedy: bool,
    random: torch.Generator,
) -> Tensor:  # fmt: skip
    """Write proposals and the target's own token into `texts`; how many were accepted, int64[B]."""
    rows = torch.arange(len(texts), device=texts.device)
    guesses = []
    upto = int(lengths.max()) + PROPOSED
    for i in range(PROPOSED):
        logits = _logits(draft, texts[:, :upto])[rows, lengths + i - 1]
        q = _distribution(logits, greedy)
        texts[rows, lengths + i] = _draw(q, random)
        guesses.append(q)
    places = lengths[:, None] - 1 + torch.arange(PROPOSED + 1, device=texts.device)
    p = _distribution(_logits(target, texts[:, :upto])[rows[:, None], places], greedy)
    q = torch.stack(guesses, dim=1)
    proposed = texts[rows[:, None], places[:, 1:]]
    chance_p = p[:, :-1].gather(2, proposed[:, :, None])[:, :, 0]
    chance_q = q.gather(2, proposed[:, :, None])[:, :, 0]
    dice = torch.rand(chance_p.shape, generator=random, device=texts.device)
    accepted = (dice * chance_q < chance_p).long().cumprod(1).sum(1)
    padded_q = torch.cat((q, torch.zeros_like(q[:, :1])), dim=1)
    own = p[rows, accepted]
    rest = (own - padded_q[rows, accepted]).clamp_min(0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, own)  # equal but for rounding
    texts[rows, lengths + accepted] = _draw(rest / rest.sum(-1, keepdim=True), random)
    return accepted


def _logits(model: Decoder, tokens: Tensor) -> Tensor:
    with mixed_precision(tokens.device):
        return model(tokens).float()


def _distribution(logits: Tensor, greedy: bool) -> Tensor:
    if not greedy:
        return logits.softmax(-1)
    best = logits.argmax(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, best, 1.0)


def _draw(distribution: Tensor, random: torch.Generator) -> Tensor:
    return torch.multinomial(distribution, 1, generator=random)[:, 0]
