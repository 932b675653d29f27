"""Real token ids for the prompts of a workload, so that an engine can compute them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.core.token_ids import SyntheticTokens, TokenBuffer
from engine.core.workload import NEVER, PromptSegments, Workload
from workbench.random_streams import Stream, generator

Int32 = NDArray[np.int32]


class RealPrompts:
    """Makes the ids of each prompt when it is sent; the same workload and seed give the same ids.

    Prompts that share text share ids, as in a simulation, except that where a turn of a
    conversation repeats an earlier answer the ids are those that the engine generated. Prompts that
    share no text begin with different ids, as long as there are fewer of them than the vocabulary
    has entries.

    Args:
        workload: whose prompts.
        vocab_size: ids are below it.
        seed: of prompts that are made of no segments.
    """

    def __init__(self, workload: Workload, vocab_size: int, seed: int) -> None:
        self._workload = workload
        self._vocab_size = vocab_size
        self._seed = seed
        segments = workload.segments
        self._by_answer: dict[int, int] = {}  # output key -> the request that answers so
        if segments is not None:
            keys = segments.output_keys.tolist()
            parents = set(workload.parent.tolist()) - {NEVER}
            self._by_answer = {keys[request_id]: request_id for request_id in parents}
        self._answering: dict[int, TokenBuffer] = {}

    def __call__(self, request_id: int) -> TokenBuffer:
        """The prompt of a request, with room for its answer. Answers in it must be complete."""
        w = self._workload
        segments = w.segments
        if segments is None:
            ids = self._unshared(request_id)
        else:
            ids = self._spliced(request_id, segments)
        buffer = TokenBuffer(ids, len(ids) + int(w.max_tokens[request_id]))
        if segments is not None and int(segments.output_keys[request_id]) in self._by_answer:
            self._answering[request_id] = buffer
        return buffer

    def _unshared(self, request_id: int) -> Int32:
        rng = generator(self._seed, Stream.PROMPT_IDS, request_id)
        length = int(self._workload.prompt_tokens[request_id])
        ids = rng.integers(self._vocab_size, size=length, dtype=np.int32)
        ids[0] = request_id % self._vocab_size
        return ids

    def _spliced(self, request_id: int, segments: PromptSegments) -> Int32:
        """Synthetic text, with the engine's own answers in their places."""
        first, last = segments.offsets[request_id : request_id + 2].tolist()
        keys = segments.keys[first:last].tolist()
        lengths = segments.lengths[first:last].tolist()
        ids = SyntheticTokens(keys, lengths, self._vocab_size).ids(0, sum(lengths))
        at = 0
        for key, length in zip(keys, lengths, strict=True):
            source = self._by_answer.get(key)
            if source is not None:
                begin = int(self._workload.prompt_tokens[source])
                ids[at : at + length] = self._answering[source].ids(begin, begin + length)
            at += length
        return ids
