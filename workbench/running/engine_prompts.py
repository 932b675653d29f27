"""Real token ids for the prompts of a workload, so that an engine can compute them."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.token_ids import SyntheticTokens, TokenBuffer
from engine.core.workload import NEVER, PromptSegments, Workload
from engine.demo import demo_model_folder, held_out_text
from engine.runtime.tokenizer import Tokenizer
from workbench.workload.random_streams import Stream, generator

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

    def _synthetic(self, keys: list[int], lengths: list[int]) -> Int32:
        """The ids that stand for these segments of text."""
        return SyntheticTokens(keys, lengths, self._vocab_size).ids(0, sum(lengths))

    def _spliced(self, request_id: int, segments: PromptSegments) -> Int32:
        """Synthetic text, with the engine's own answers in their places."""
        first, last = segments.offsets[request_id : request_id + 2].tolist()
        keys = segments.keys[first:last].tolist()
        lengths = segments.lengths[first:last].tolist()
        ids = self._synthetic(keys, lengths)
        at = 0
        for key, length in zip(keys, lengths, strict=True):
            source = self._by_answer.get(key)
            if source is not None:
                begin = int(self._workload.prompt_tokens[source])
                ids[at : at + length] = self._answering[source].ids(begin, begin + length)
            at += length
        return ids


class ShownText(NamedTuple):
    """A request as a person reads it.

    Attributes:
        request_id: whose text.
        prompt: its last lines.
        answer: what the model wrote.
    """

    request_id: int
    prompt: str
    answer: str


class TextPrompts(RealPrompts):
    """The same for the demo models, out of text that they were not trained on.

    The first id of each text says whose it is, as there; text follows. So what is shared does not
    depend on what is written.

    Args:
        workload, vocab_size, seed: see there.
    """

    def __init__(self, workload: Workload, vocab_size: int, seed: int) -> None:
        super().__init__(workload, vocab_size, seed)
        folder = demo_model_folder("demo-dense")  # all have its tokenizer
        if folder is None:
            raise ValueError("the demo models have gone")
        self._tokenizer = Tokenizer.from_folder(folder)
        ids = self._tokenizer.encode(held_out_text(), add_special_tokens=False)
        self._text: Int32 = np.asarray(ids, np.int32)
        self._sent: dict[int, TokenBuffer] = {}

    def __call__(self, request_id: int) -> TokenBuffer:
        """As there; the first texts are kept, to be shown."""
        buffer = super().__call__(request_id)
        if len(self._sent) < _KEPT_TEXTS:
            self._sent[request_id] = buffer
        return buffer

    def shown(self, count: int) -> list[ShownText]:
        """The first texts that have an answer, `count` of them at most."""
        shown: list[ShownText] = []
        for request_id, buffer in self._sent.items():
            begin = int(self._workload.prompt_tokens[request_id])
            if len(buffer) > begin and len(shown) < count:
                ids = buffer.ids(0, len(buffer)).tolist()
                parts = ids[max(1, begin - _SHOWN_PROMPT_TOKENS) : begin], ids[begin:]
                shown.append(ShownText(request_id, *map(self._tokenizer.decode, parts)))
        return shown

    def _unshared(self, request_id: int) -> Int32:
        length = int(self._workload.prompt_tokens[request_id])
        rng = generator(self._seed, Stream.PROMPT_IDS, request_id)
        return self._cut(request_id, int(rng.integers(len(self._text))), length)

    def _synthetic(self, keys: list[int], lengths: list[int]) -> Int32:
        rngs = [generator(self._seed, Stream.PROMPT_IDS, key) for key in keys]
        starts = [int(rng.integers(len(self._text))) for rng in rngs]
        parts = [self._cut(*row) for row in zip(keys, starts, lengths, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _cut(self, key: int, start: int, length: int) -> Int32:
        ids = self._text.take(np.arange(start, start + length), mode="wrap")
        ids[:1] = key % self._vocab_size
        return ids


_KEPT_TEXTS: Final = 8
_SHOWN_PROMPT_TOKENS: Final = 48
