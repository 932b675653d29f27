"""What is asked: lengths and text of the requests of each kind of workload, without their times.

Text is `PromptSegments`: keys that stand for it. Keys are handed out so that texts which may follow
the same prefix have successive keys, because synthetic texts of different keys part at their first
token if the keys differ modulo the vocabulary. Requests that share no text have no segments at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.core.workload import NEVER, Int32, Int64, PromptSegments
from workbench.workload.lengths import MAX_TOKENS, Distribution, Zipf, sample_ns, sample_tokens
from workbench.workload.random_streams import Stream, generator
from workbench.workload.trace_errors import WorkloadError
from workbench.workload.traces import Trace

_MAX_SEGMENTS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests in columns, as in `engine.core.workload.Workload`, but for their times of arrival.

    Attributes:
        prompt_tokens: int32[n], at least 1.
        output_tokens: int32[n], at least 1.
        parent: int32[n], the previous turn's row, or NEVER.
        think_ns: int64[n], pause after the parent's end.
        segments: what the prompts are made of, or None if no two share text.
    """

    prompt_tokens: Int32
    output_tokens: Int32
    parent: Int32
    think_ns: Int64
    segments: PromptSegments | None = None

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @classmethod
    def independent(
        cls, prompt_tokens: Int32, output_tokens: Int32, segments: PromptSegments | None = None
    ) -> Requests:
        """Requests that wait for no other."""
        n = len(prompt_tokens)
        return cls(
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            parent=np.full(n, NEVER, np.int32),
            think_ns=np.zeros(n, np.int64),
            segments=segments,
        )

    def with_prompts_cut(self, prompt_tokens: Int32) -> Requests:
        """The same requests with prompts cut to the given lengths; their beginnings stay."""
        segments = self.segments and _cut(self.segments, prompt_tokens)
        return replace(self, prompt_tokens=prompt_tokens, segments=segments)


def synthetic_requests(
    seed: int,
    *,
    num_requests: int,
    prompt_len: Distribution,
    output_len: Distribution,
    max_tokens: int | None = None,
) -> Requests:
    """Independent requests that share no text.

    Args:
        seed: of all randomness.
        num_requests: rows.
        prompt_len: tokens per prompt.
        output_len: tokens until the model stops by itself.
        max_tokens: the client's limit, to which outputs are cut; None for no limit.
    """
    rng = generator(seed, Stream.PROMPT_LENGTHS)
    return Requests.independent(
        sample_tokens(prompt_len, rng, num_requests),
        _output_tokens(seed, output_len, num_requests, max_tokens),
    )


def shared_prefix_requests(
    seed: int,
    *,
    num_requests: int,
    num_groups: int,
    system_prompt_len: Distribution,
    question_len: Distribution,
    output_len: Distribution,
    vocab_size: int,
    group_skew: float = 0.0,
    max_tokens: int | None = None,
) -> Requests:
    """Requests of which each starts with its group's system prompt and ends with its own question.

    Args:
        seed: of all randomness.
        num_requests: rows.
        num_groups: system prompts. The r-th most popular is used with probability proportional to
            r ** -group_skew.
        system_prompt_len: tokens of a system prompt, drawn once per group.
        question_len: tokens of a question.
        output_len: tokens until the model stops by itself.
        vocab_size: token ids are below it.
        group_skew: 0 makes all groups equally popular.
        max_tokens: the client's limit, to which outputs are cut; None for no limit.
    """
    n, popularity = num_requests, Zipf(alpha=group_skew, min=1, max=num_groups)
    group = popularity.draw(generator(seed, Stream.GROUPS), n).astype(np.int64) - 1
    system = sample_tokens(
        system_prompt_len, generator(seed, Stream.SYSTEM_PROMPT_LENGTHS), num_groups
    )[group]
    question = sample_tokens(question_len, generator(seed, Stream.PROMPT_LENGTHS), n)
    question_key = np.empty(n, np.int64)
    question_key[np.argsort(group, kind="stable")] = num_groups + np.arange(n)
    segments = PromptSegments(
        offsets=np.arange(0, 2 * n + 1, 2),
        keys=np.column_stack((group, question_key)).reshape(-1),
        lengths=np.column_stack((system, question)).reshape(-1),
        output_keys=num_groups + n + np.arange(n),
        vocab_size=vocab_size,
    )
    output = _output_tokens(seed, output_len, n, max_tokens)
    return Requests.independent(system + question, output, segments)


def conversation_requests(
    seed: int,
    *,
    num_conversations: int,
    turns: Distribution,
    user_len: Distribution,
    output_len: Distribution,
    think_time_s: Distribution,
    vocab_size: int,
    system_prompt_len: Distribution | None = None,
    first_prompt_len: Distribution | None = None,
    max_tokens: int | None = None,
) -> Requests:
    """Conversations: a turn's prompt is everything said before, and the user's new text.

    Rows of a conversation follow each other; conversations come in order of arrival.

    Args:
        seed: of all randomness.
        num_conversations: how many first turns there are.
        turns: turns of a conversation.
        user_len: tokens of the user's text in a turn.
        output_len: tokens until the model stops by itself.
        think_time_s: seconds from the end of an answer to the next turn.
        vocab_size: token ids are below it.
        system_prompt_len: tokens that all conversations start with, drawn once; None for none.
        first_prompt_len: tokens of the user's first text; None: as `user_len`.
        max_tokens: the client's limit, to which outputs are cut; None for no limit.

    Raises:
        WorkloadError: prompts would get longer, or more numerous, than the columns can hold.
    """
    turns_of = sample_tokens(turns, generator(seed, Stream.TURNS), num_conversations)
    system_tokens = _system_tokens(seed, system_prompt_len)
    _check_segments(turns_of, int(system_tokens > 0))
    n = int(turns_of.sum(dtype=np.int64))
    conversation = np.repeat(np.arange(num_conversations), turns_of)
    first_row = np.cumsum(turns_of, dtype=np.int64) - turns_of
    turn = np.arange(n) - first_row[conversation]
    user = sample_tokens(user_len, generator(seed, Stream.PROMPT_LENGTHS), n)
    if first_prompt_len is not None:
        rng = generator(seed, Stream.FIRST_PROMPT_LENGTHS)
        user[first_row] = sample_tokens(first_prompt_len, rng, num_conversations)
    output = _output_tokens(seed, output_len, n, max_tokens)
    think_ns = sample_ns(think_time_s, generator(seed, Stream.THINK_TIMES), n)
    segments = _conversation_segments(conversation, turn, user, output, system_tokens, vocab_size)
    return Requests(
        prompt_tokens=_sums(segments),
        output_tokens=output,
        parent=np.where(turn > 0, np.arange(n) - 1, NEVER).astype(np.int32),
        think_ns=np.where(turn > 0, think_ns, 0),
        segments=segments,
    )


def trace_requests(trace: Trace, *, vocab_size: int, max_tokens: int | None = None) -> Requests:
    """The requests of a trace; equal hash ids become equal text, the last block's partly.

    Args:
        trace: the rows.
        vocab_size: token ids are below it.
        max_tokens: the client's limit, to which outputs are cut; None for no limit.
    """
    output = _limited(trace.output_tokens, max_tokens)
    segments = _trace_segments(trace, vocab_size)
    return Requests.independent(trace.prompt_tokens, output, segments)


def _output_tokens(seed: int, output_len: Distribution, n: int, max_tokens: int | None) -> Int32:
    return _limited(
        sample_tokens(output_len, generator(seed, Stream.OUTPUT_LENGTHS), n), max_tokens
    )


def _limited(output_tokens: Int32, max_tokens: int | None) -> Int32:
    return output_tokens if max_tokens is None else np.minimum(output_tokens, np.int32(max_tokens))


def _system_tokens(seed: int, system_prompt_len: Distribution | None) -> int:
    if system_prompt_len is None:
        return 0
    rng = generator(seed, Stream.SYSTEM_PROMPT_LENGTHS)
    return int(sample_tokens(system_prompt_len, rng, 1, least=0)[0])


def _check_segments(turns_of: Int32, lead: int) -> None:
    """Turn t has `lead` + 2 t + 1 pieces of text, hence T turns have T (T + lead)."""
    turns = turns_of.astype(np.float64)
    pieces = float(np.sum(turns * (turns + lead)))
    if pieces > _MAX_SEGMENTS:
        raise WorkloadError(
            f"the prompts of all turns together repeat {pieces:.3g} pieces of text; at most "
            f"{_MAX_SEGMENTS} are supported, so use fewer conversations or turns"
        )


def _conversation_segments(
    conversation: Int64,
    turn: Int64,
    user: Int32,
    output: Int32,
    system_tokens: int,
    vocab_size: int,
) -> PromptSegments:
    """Turn t: [system,] user 0, output 0, user 1, output 1, ..., user t."""
    n, lead = len(turn), int(system_tokens > 0)
    counts = lead + 2 * turn + 1
    offsets = np.append(0, np.cumsum(counts))
    num_conversations = int(conversation[-1]) + 1
    user_keys = 1 + np.where(turn == 0, conversation, num_conversations + np.arange(n))
    output_keys = 1 + num_conversations + n + np.arange(n)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts) - lead
    source = np.repeat(np.arange(n) - turn, counts) + place // 2
    is_output = place % 2 == 1
    keys = np.where(is_output, output_keys[source], user_keys[source])
    lengths = np.where(is_output, output[source], user[source])
    keys[place < 0] = 0
    lengths[place < 0] = system_tokens
    return PromptSegments(offsets, keys, lengths, output_keys, vocab_size)


def _trace_segments(trace: Trace, vocab_size: int) -> PromptSegments | None:
    if trace.hash_offsets is None or trace.hash_ids is None:
        return None
    distinct, keys = np.unique(trace.hash_ids, return_inverse=True)
    lengths = np.full(len(keys), trace.block_size, np.int32)
    lengths[trace.hash_offsets[1:] - 1] = (trace.prompt_tokens - 1) % trace.block_size + 1
    output_keys = len(distinct) + np.arange(len(trace))
    return PromptSegments(trace.hash_offsets, keys, lengths, output_keys, vocab_size)


def _sums(segments: PromptSegments) -> Int32:
    """int32[n] total length of each prompt."""
    ends = np.append(0, np.cumsum(segments.lengths, dtype=np.int64))[segments.offsets]
    totals = np.diff(ends)
    if len(totals) and totals.max() > MAX_TOKENS:
        raise WorkloadError(
            f"the prompt of a conversation's last turn grows to {totals.max()} tokens; "
            f"at most {MAX_TOKENS} are supported"
        )
    return totals.astype(np.int32)


def _cut(segments: PromptSegments, prompt_tokens: Int32) -> PromptSegments:
    """Segments of prompts cut to the given lengths; segments of which nothing is left go away."""
    counts = np.diff(segments.offsets)
    ends = np.append(0, np.cumsum(segments.lengths, dtype=np.int64))
    starts = ends[:-1] - np.repeat(ends[segments.offsets[:-1]], counts)
    left = np.minimum(np.repeat(prompt_tokens, counts) - starts, segments.lengths)
    kept = left > 0
    return PromptSegments(
        offsets=np.append(0, np.cumsum(kept))[segments.offsets],
        keys=segments.keys[kept],
        lengths=left[kept].astype(np.int32),
        output_keys=segments.output_keys,
        vocab_size=segments.vocab_size,
    )
