"""Laws of shared text: which prompts agree, and exactly how far."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.workload import NEVER
from workbench.workload.lengths import Distribution, Fixed, Lognormal, Uniform, UniformWhole
from workbench.workload.prompts import (
    Requests,
    conversation_requests,
    shared_prefix_requests,
    synthetic_requests,
    trace_requests,
)
from workbench.workload.trace_errors import WorkloadError
from workbench.workload.traces import read_trace

MOONCAKE = Path(__file__).parent / "fixtures" / "traces" / "mooncake.jsonl"
VOCAB = 32_000


def _ids(requests: Requests, row: int, *, with_output: bool = False) -> np.ndarray:
    assert requests.segments is not None
    output = int(requests.output_tokens[row])
    stop = int(requests.prompt_tokens[row]) + (output if with_output else 0)
    return requests.segments.tokens(row, output).ids(0, stop)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def _shared_prefix(num_groups: int, **changes: object) -> Requests:
    arguments: dict[str, object] = {
        "num_requests": 60,
        "num_groups": num_groups,
        "system_prompt_len": UniformWhole(30, 90),
        "question_len": UniformWhole(1, 40),
        "output_len": Fixed(5),
        "vocab_size": VOCAB,
    }
    return shared_prefix_requests(3, **{**arguments, **changes})


def _conversations(**changes: object) -> Requests:
    arguments: dict[str, object] = {
        "num_conversations": 12,
        "turns": UniformWhole(1, 5),
        "user_len": UniformWhole(1, 30),
        "output_len": UniformWhole(1, 50),
        "think_time_s": Uniform(0.5, 2.0),
        "vocab_size": VOCAB,
        "system_prompt_len": Fixed(17),
    }
    return conversation_requests(3, **{**arguments, **changes})


# Independent requests


def test_synthetic_requests_share_nothing() -> None:
    """Requests without shared text need no segments."""
    requests = synthetic_requests(
        1, num_requests=50, prompt_len=UniformWhole(4, 9), output_len=Fixed(3)
    )
    assert requests.segments is None
    assert set(requests.prompt_tokens.tolist()) == set(range(4, 10))
    assert (requests.parent == NEVER).all()


# Shared prefixes


def test_requests_of_a_group_agree_on_the_system_prompt_and_part_there() -> None:
    """Two prompts agree for exactly the system prompt if they share a group, else not at all."""
    requests = _shared_prefix(4)
    assert requests.segments is not None
    groups = requests.segments.keys[0::2]
    system_tokens = requests.segments.lengths[0::2]
    prompts = [_ids(requests, row) for row in range(len(requests))]
    assert len(set(groups.tolist())) == 4
    for a, b in combinations(range(len(requests)), 2):
        expected = system_tokens[a] if groups[a] == groups[b] else 0
        assert _common(prompts[a], prompts[b]) == expected


def test_a_group_has_one_system_prompt_length() -> None:
    """The system prompt's length is drawn per group, not per request."""
    segments = _shared_prefix(4).segments
    assert segments is not None
    pairs = set(zip(segments.keys[0::2].tolist(), segments.lengths[0::2].tolist(), strict=True))
    assert len(pairs) == 4


def test_questions_of_a_group_part_at_once_even_in_a_small_vocabulary() -> None:
    """First ids of a group's questions differ while they are no more than the vocabulary."""
    requests = _shared_prefix(3, num_requests=900, vocab_size=500, question_len=Fixed(1))
    assert requests.segments is not None
    for group in range(3):
        keys = requests.segments.keys[1::2][requests.segments.keys[0::2] == group]
        assert len(np.unique(keys % 500)) == len(keys)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_group_popularity_follows_the_skew(skew: float) -> None:
    """The r-th group gets a share proportional to r ** -skew."""
    n, groups = 100_000, 8
    segments = _shared_prefix(groups, num_requests=n, group_skew=skew).segments
    assert segments is not None
    counts = np.bincount(segments.keys[0::2], minlength=groups)
    weights = np.arange(1.0, groups + 1) ** -skew
    expected = n * weights / weights.sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# Conversations


def test_a_turn_continues_the_last_turn_and_its_answer() -> None:
    """Turn t + 1 starts with the ids of turn t and of its output, and adds the user's new text."""
    requests = _conversations()
    followers = np.flatnonzero(requests.parent != NEVER).tolist()
    assert followers
    for row in followers:
        assert requests.parent[row] == row - 1
        said = _ids(requests, row - 1, with_output=True)
        prompt = _ids(requests, row)
        assert len(said) < len(prompt)
        np.testing.assert_array_equal(prompt[: len(said)], said)


def test_conversations_share_the_system_prompt_and_nothing_else() -> None:
    """Prompts of different conversations agree for exactly the system prompt."""
    for system_tokens in (0, 17):
        requests = _conversations(system_prompt_len=Fixed(system_tokens))
        firsts = np.flatnonzero(requests.parent == NEVER).tolist()
        prompts = [_ids(requests, row) for row in firsts]
        assert len(firsts) == 12
        for a, b in combinations(prompts, 2):
            assert _common(a, b) == system_tokens


def test_only_followers_think() -> None:
    """The pause precedes a turn that has a parent; first turns come when the load says."""
    requests = _conversations()
    is_first = requests.parent == NEVER
    assert (requests.think_ns[is_first] == 0).all()
    assert (requests.think_ns[~is_first] >= 500_000_000).all()
    assert (requests.think_ns[~is_first] <= 2_000_000_000).all()


def test_first_prompts_may_have_a_length_of_their_own() -> None:
    """`first_prompt_len` replaces the user's first text and leaves the others as they were."""
    plain = _conversations(system_prompt_len=None)
    longer = _conversations(system_prompt_len=None, first_prompt_len=Fixed(500))
    is_first = plain.parent == NEVER
    assert (longer.prompt_tokens[is_first] == 500).all()
    for requests in (plain, longer):
        said = requests.prompt_tokens + requests.output_tokens
        added = requests.prompt_tokens[1:] - said[:-1]
        np.testing.assert_array_equal(
            added[~is_first[1:]],
            (plain.prompt_tokens[1:] - (plain.prompt_tokens + plain.output_tokens)[:-1])[
                ~is_first[1:]
            ],
        )


def test_a_limit_cuts_what_the_next_turn_repeats() -> None:
    """With max_tokens, the answer that a turn repeats is the one that was cut off."""
    requests = _conversations(
        output_len=Fixed(50), max_tokens=8, user_len=Fixed(10), turns=Fixed(3)
    )
    assert set(requests.output_tokens.tolist()) == {8}
    assert requests.prompt_tokens[:3].tolist() == [27, 45, 63]


def test_conversations_too_long_for_memory_are_refused() -> None:
    """The quadratic growth of repeated text is checked before any of it is made."""
    with pytest.raises(WorkloadError, match="1e\\+14 pieces of text"):
        _conversations(num_conversations=1, turns=Fixed(10_000_000))


def test_conversations_too_long_for_a_prompt_are_refused() -> None:
    """A prompt beyond the column's range is an error, not a wrapped number."""
    with pytest.raises(WorkloadError, match="last turn grows to"):
        _conversations(user_len=Fixed(10_000_000), turns=Fixed(200))


# Traces


@pytest.mark.parametrize("vocab_size", [50, VOCAB])
def test_mooncake_prompts_agree_as_far_as_their_hash_ids(vocab_size: int) -> None:
    """Two prompts agree on the blocks whose ids agree, to the end of a partial block."""
    trace = read_trace(MOONCAKE)
    requests = trace_requests(trace, vocab_size=vocab_size)
    assert trace.hash_ids is not None
    assert trace.hash_offsets is not None
    blocks = np.split(trace.hash_ids, trace.hash_offsets[1:-1])
    for a, b in combinations(range(len(trace)), 2):
        same = _common(blocks[a], blocks[b]) * trace.block_size
        shortest = min(trace.prompt_tokens[a], trace.prompt_tokens[b])
        assert _common(_ids(requests, a), _ids(requests, b)) == min(same, shortest)


def test_mooncake_prompts_have_the_length_of_the_trace() -> None:
    """The last block is as long as is left, a full one if nothing is."""
    trace = read_trace(MOONCAKE)
    requests = trace_requests(trace, vocab_size=VOCAB)
    for row in range(len(trace)):
        assert len(_ids(requests, row)) == trace.prompt_tokens[row]


def test_outputs_are_unlike_any_prompt() -> None:
    """Every request generates text of its own."""
    for requests in (_shared_prefix(3), trace_requests(read_trace(MOONCAKE), vocab_size=VOCAB)):
        assert requests.segments is not None
        outputs = requests.segments.output_keys
        assert len(np.unique(outputs)) == len(requests)
        assert not np.isin(outputs, requests.segments.keys).any()


def test_huge_hash_ids_keep_their_identity(tmp_path: Path) -> None:
    """64-bit hashes are as good as small numbers."""
    row = '{{"timestamp": 0, "input_length": 20, "output_length": 1, "hash_ids": {}}}\n'
    path = tmp_path / "trace.jsonl"
    ids = [2**63 - 1, 2**63 - 2, 5]
    path.write_text("".join(row.format(pair) for pair in ([ids[0], ids[1]], [ids[0], ids[2]])))
    requests = trace_requests(read_trace(path, block_size=16), vocab_size=VOCAB)
    assert _common(_ids(requests, 0), _ids(requests, 1)) == 16


# Cutting


LENGTHS: list[Distribution] = [Fixed(1), UniformWhole(1, 50), Lognormal(40, 60, 1, 400)]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(LENGTHS), st.data())
def test_a_cut_prompt_is_a_beginning_of_the_whole_one(
    seed: int, user_len: Distribution, data: st.DataObject
) -> None:
    """Cutting keeps the first ids, so shared prefixes stay shared."""
    whole = conversation_requests(
        seed,
        num_conversations=3,
        turns=UniformWhole(1, 4),
        user_len=user_len,
        output_len=UniformWhole(1, 20),
        think_time_s=Fixed(0),
        vocab_size=VOCAB,
        system_prompt_len=UniformWhole(0, 20),
    )
    lengths = [data.draw(st.integers(1, int(tokens))) for tokens in whole.prompt_tokens]
    cut = whole.with_prompts_cut(np.array(lengths, np.int32))
    assert cut.segments is not None
    assert (cut.segments.lengths > 0).all()
    for row, length in enumerate(lengths):
        ids = _ids(cut, row)
        assert len(ids) == length
        np.testing.assert_array_equal(ids, _ids(whole, row)[:length])
