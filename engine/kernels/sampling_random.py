"""The sampler's random numbers: a function of (seed, step, token id) and of nothing else.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
with the 64-bit seed as key and the counter (c, step, 0, 0) gives four 32-bit words. Token id t uses
word (t mod 4096) // 1024 of counter c = (t // 4096) * 1024 + t mod 1024: a kernel that reads four
runs of 1024 logits computes each counter once and needs no shuffle.

A word r becomes u = (r + 1/2) / 2^32 in (0, 1), u the exponential variate e = -log(1 - u), and e
the Gumbel variate g = -log(e). The token with the largest `logit / temperature + g` is a draw from
the softmax (Gumbel-max). Small e decide, so u is taken where fp32 is finest, near 0: words as rare
as one in 2^32 stay apart, which -log(u) with u near 1 could not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

RUN = 1024  # consecutive token ids that share one word of their Philox counters
WORDS = 4  # words of one Philox call
TILE = RUN * WORDS  # token ids served by one block of counters

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox_reference(
    key: tuple[torch.Tensor, torch.Tensor], counter: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 on 32-bit words held in int64 tensors that broadcast against each other."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # the bits are right modulo 2^64
        c0, c2 = ((second >> 32) & _LOW) ^ c1 ^ k0, ((first >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def gumbel_reference(seeds: torch.Tensor, steps: torch.Tensor, vocab: int) -> torch.Tensor:
    """Gumbel noise of every token.

    Args:
        seeds: int64[B].
        steps: int32[B], tokens that the request has sampled before.
        vocab: number of token ids.

    Returns:
        float32[B, vocab].
    """
    tiles, run = -(-vocab // TILE), min(RUN, vocab)
    counters = torch.arange(tiles * run, device=seeds.device)[None]
    zero = torch.zeros_like(counters)
    seeds, steps = seeds.long()[:, None], steps.long()[:, None]
    key = (seeds & _LOW, (seeds >> 32) & _LOW)
    words = philox_reference(key, (counters, steps & _LOW, zero, zero))
    by_tile = [word.view(len(seeds), tiles, run) for word in words]
    flat = torch.stack(by_tile, dim=2).view(len(seeds), tiles * WORDS * run)
    return _gumbel_of_words(flat[:, :vocab])


def _gumbel_of_words(words: torch.Tensor) -> torch.Tensor:
    u = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5)))))
    return -torch.where(u < 1 / 32, series, -torch.log(1 - u)).log()


@triton.jit
def gumbel_of_words(words) -> tl.tensor:
    """Gumbel variates of uint32 words, as `_gumbel_of_words`."""
    u = tl.minimum(words.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10,
                   0.999999940395355)  # fmt: skip
    series = u * (1 + u * (0.5 + u * (0.3333333333333333 + u * (0.25 + u * 0.2))))
    return -tl.log(tl.where(u < 0.03125, series, -tl.log(1 - u)))


@triton.jit
def random_words(seed, step, counters) -> tuple[tl.tensor, ...]:
    """The four Philox words of each counter: uint32 tensors shaped as `counters` (int32)."""
    zero = counters * 0
    return tl.philox(seed, counters, zero + step, zero, zero)


@triton.jit
def gumbel_of_tokens(seed, step, tokens) -> tl.tensor:
    """Gumbel variates of scattered token ids (int32): one Philox call for each."""
    a, b, c, d = random_words(seed, step, (tokens // 4096) * 1024 + tokens % 1024)
    word = (tokens % 4096) // 1024
    return gumbel_of_words(tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d)))
