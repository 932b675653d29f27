"""Which steps a calibration measures.

The points follow what the engine is: a decode step runs as the graph of one batch size, and there
its time is linear in the KV it reads; the time of a prompt is a sawtooth over its tokens, so that
axis is dense; a prefix, several prompts and decoding requests beside a prompt each add something of
their own. Shapes come in an order that makes any beginning of it a useful, coarser experiment.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from statistics import NormalDist
from typing import NamedTuple


class Chunk(NamedTuple):
    """Tokens of a prompt that one step computes, and those that are cached before them."""

    tokens: int
    context: int = 0


class StepDesign(NamedTuple):
    """One step: chunks of prompts, and the KV length of each decoding request, new token included.

    `samples` says whether the chunks end their prompts, so that each gives a token. The decoding
    requests are dealt out to `groups`, each of which shares its first `shared` tokens.
    """

    chunks: tuple[Chunk, ...] = ()
    decodes: tuple[int, ...] = ()
    samples: bool = True
    shared: int = 0
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine can do at most.

    Attributes:
        num_pages, page_size: of its KV cache.
        max_model_len: tokens of a request.
        max_num_batched_tokens: of a step.
        max_running_requests: of a step.
        graph_batch_sizes: decode batches that run as one CUDA Graph, ascending.
    """

    num_pages: int
    page_size: int
    max_model_len: int
    max_num_batched_tokens: int
    max_running_requests: int
    graph_batch_sizes: tuple[int, ...] = ()

    def allows(self, design: StepDesign) -> bool:
        """Whether the engine could run such a step."""
        lengths = [chunk.tokens + chunk.context for chunk in design.chunks] + [*design.decodes]
        tokens = sum(chunk.tokens for chunk in design.chunks) + len(design.decodes)
        pages = sum(-(-length // self.page_size) for length in lengths)
        return (
            0 < tokens <= self.max_num_batched_tokens
            and len(lengths) <= self.max_running_requests
            and 0 < min(lengths) <= max(lengths) <= self.max_model_len
            and pages <= self.num_pages
            and (not design.shared or design.shared < min(design.decodes))
            and design.shared % self.page_size == 0
        )


CONTEXTS = (32, 128, 256, 512, 1024, 2048)  # mean KV of decoding requests; beyond, time is linear
_SPREAD = 0.4  # of the logarithm of their KV: prompts differ more, what is generated adds to them
PREFIXES = (256, 1024, 4096, 16384)
_SHARED_BY_GROUPS = (2048, 8192)  # tokens; of few it hardly matters how many texts there are
_HOT_PROMPTS = (16, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 1024, 2048, 8192)
_TILE = 64  # tokens; a step of a few more than a multiple takes about as long as one of the next
_PAST = (8, 37)  # whole multiples themselves are no typical steps: libraries treat them otherwise


def design_steps(limits: EngineLimits) -> list[StepDesign]:
    """All steps worth measuring that the engine can run, the most telling first, none twice."""
    budget = limits.max_num_batched_tokens
    passes: Sequence[Iterable[StepDesign]] = (
        _prompts(budget, -(-budget // 16)),
        _decodes(limits, CONTEXTS[::2]),
        _prefixes(limits),
        _several_prompts(limits),
        _mixed(limits),
        _shared(limits),
        _many_chunks(limits),
        _tiles(budget),
        _decodes(limits, CONTEXTS),
        _uneven(limits),
        _prompts(budget // 2, -(-budget // 64)),
    )
    found = dict.fromkeys(design for designs in passes for design in designs)
    return [design for design in found if limits.allows(design)]


def _prompts(most: int, step: int) -> Iterator[StepDesign]:
    """One prompt of each length; the shortest densely, where launches and weights are the limit."""
    for tokens in sorted({1, 2, 4, 8, 16, 24, 32, 48, *range(step, most + 1, step), most}):
        yield StepDesign((Chunk(tokens),))


def _tiles(budget: int) -> Iterable[StepDesign]:
    """One prompt that just does not fit so many tiles, and one that is well into the next."""
    for tiles in range(1, budget // 4 // _TILE + 1):
        for past in _PAST:
            yield StepDesign((Chunk(tiles * _TILE + past),))


def _decodes(limits: EngineLimits, contexts: Sequence[int]) -> Iterator[StepDesign]:
    """Every graph, and the steps that are too large for one, at several KV lengths.

    In turn full and as full as it is on average; all of the KV cache by requests of one length.
    """
    sizes = limits.graph_batch_sizes or _powers(limits.max_running_requests)
    for before, batch in pairwise((0, *sorted({*sizes, limits.max_running_requests}))):
        share = limits.num_pages // batch * limits.page_size
        most = min(limits.max_model_len, share)
        for context in contexts:
            if context < most:
                full = CONTEXTS.index(context) % 2 == 0
                requests = batch if full else (before + batch + 1) // 2
                yield StepDesign(decodes=as_served(requests, context, most))
        yield StepDesign(decodes=(most,) * batch)


def as_served(requests: int, mean: int, most: int) -> tuple[int, ...]:
    """KV lengths of requests that decode together: quantiles of a lognormal distribution, mixed up.

    Args:
        requests: how many.
        mean: of their lengths, in tokens; about.
        most: that one may have.
    """
    normal = NormalDist()
    shares = [exp(_SPREAD * normal.inv_cdf((at + 0.5) / requests)) for at in range(requests)]
    scale = mean * requests / sum(shares)
    lengths = [min(most, max(1, round(scale * share))) for share in shares]
    random.Random(requests).shuffle(lengths)  # noqa: S311 - an order, no secret
    return tuple(lengths)


def _uneven(limits: EngineLimits) -> Iterator[StepDesign]:
    """Batches that hardly need their graph, few long requests, and one among many short ones."""
    for batch in (1, 2, 4, 8):
        for context in (4096, 8192):
            yield StepDesign(decodes=as_served(batch, context, limits.max_model_len))
    for before, batch in pairwise(limits.graph_batch_sizes):
        if batch - before > 1:
            yield StepDesign(decodes=as_served(before + 1, 512, limits.max_model_len))
    for batch in (4, 32, 128):
        for longest in (4096, 16384):
            yield StepDesign(decodes=(longest, *(128,) * (batch - 1)))


def hot_steps(limits: EngineLimits) -> list[StepDesign]:
    """Steps of all kinds, few of each, of which to learn what lower clocks do to them."""
    most = limits.max_model_len
    designs = [
        *(StepDesign((Chunk(tokens),)) for tokens in _HOT_PROMPTS),
        *(
            StepDesign((Chunk(tokens, prefix),))
            for tokens in (256, 1024)
            for prefix in PREFIXES[2:]
        ),
        *(StepDesign((Chunk(tokens // 16),) * 16) for tokens in (512, 2048)),
        *(
            StepDesign(decodes=as_served(batch, context, most))
            for batch in (1, 8, 32, 64, 128, 256)
            for context in (256, 1024, 4096)
        ),
        *(StepDesign(decodes=as_served(batch, 16384, most)) for batch in (1, 4)),
        *(
            StepDesign((Chunk(tokens),), as_served(batch, 1024, most))
            for batch in (8, 32, 128)
            for tokens in (120, 400, 1000)
        ),
    ]
    return [design for design in designs if limits.allows(design)]


def _prefixes(limits: EngineLimits) -> Iterator[StepDesign]:
    """Chunks after a cached prefix, whether they end their prompt or not."""
    budget = limits.max_num_batched_tokens
    for tokens in _parts(budget, 512, 64, 16, 8, 4):
        for prefix in PREFIXES:
            yield StepDesign((Chunk(tokens, prefix),))
    for prefix in (0, PREFIXES[1], PREFIXES[-1]):
        yield StepDesign((Chunk(budget, prefix),), samples=False)


def _several_prompts(limits: EngineLimits) -> Iterator[StepDesign]:
    """The same tokens as few long prompts and as many short ones, after a prefix and without."""
    for total in _parts(limits.max_num_batched_tokens, 64, 16, 8, 2, 1):
        for count in (2, 4, 16, 64):
            if total >= 4 * count:
                yield StepDesign((Chunk(total // count),) * count)
                yield StepDesign((Chunk(total // count, 512),) * count)


def _mixed(limits: EngineLimits) -> Iterator[StepDesign]:
    """Prompts beside decoding requests, as chunked prefill makes them."""
    budget, most = limits.max_num_batched_tokens, limits.max_running_requests - 1
    for batch in sorted(size for size in {1, 8, 32, 128, most} if 0 < size <= most):
        for context in (128, 1024, 4096):
            for tokens in _parts(budget, 128, 27, 12, 7, 4):
                decodes = as_served(batch, context, limits.max_model_len)
                yield StepDesign((Chunk(tokens),), decodes)
        decodes = as_served(batch, 1024, limits.max_model_len)
        yield StepDesign((Chunk(budget - batch),), decodes)
        for tokens in _parts(budget, 64, 16):
            yield StepDesign((Chunk(tokens, 1024),) * 3, decodes)


def _shared(limits: EngineLimits) -> Iterator[StepDesign]:
    """Requests that go on after the same text, all of them or a quarter each."""
    batches = (8, 16, 32, 40, 96, 224)  # attention to few is divided up otherwise than to many
    for shared in (512, 1024, 2048, 8192):
        for batch in batches:
            for groups in (1, 4) if shared in _SHARED_BY_GROUPS else (1,):
                own = as_served(batch, 256, limits.max_model_len - shared)
                decodes = tuple(shared + length for length in own)
                yield StepDesign((), decodes, shared=shared, groups=groups)
                if shared == 2048:
                    yield StepDesign((Chunk(200),), decodes, shared=shared, groups=groups)


def _many_chunks(limits: EngineLimits) -> Iterator[StepDesign]:
    """So many prompts of so few tokens that no graph has room for them."""
    for tokens, count in ((8, 16), (8, 20), (8, 32), (16, 16), (16, 48), (32, 24)):
        yield StepDesign((Chunk(tokens),) * count)
        yield StepDesign((Chunk(tokens),) * count, as_served(32, 1024, limits.max_model_len))


def _parts(total: int, *divisors: int) -> list[int]:
    """Shares of a total, ascending, none twice and none empty."""
    return sorted({max(1, total // divisor) for divisor in divisors})


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
