"""Laws of token sources: synthetic text is one fixed text, whatever part of it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.token_ids import SyntheticTokens, TokenBuffer

VOCAB = 1000
SEGMENTS = st.lists(
    st.tuples(st.integers(0, 2**62), st.sampled_from([0, 1, 2, 7, 64, 65_535, 65_536, 200_000])),
    min_size=1,
    max_size=5,
)


def synthetic(segments: list[tuple[int, int]], vocab_size: int = VOCAB) -> SyntheticTokens:
    return SyntheticTokens([k for k, _ in segments], [n for _, n in segments], vocab_size)


def whole(segments: list[tuple[int, int]], vocab_size: int = VOCAB) -> np.ndarray:
    return synthetic(segments, vocab_size).ids(0, sum(n for _, n in segments))


@settings(max_examples=60, deadline=None)
@given(SEGMENTS, st.data())
def test_any_part_is_a_part_of_the_whole(
    segments: list[tuple[int, int]], data: st.DataObject
) -> None:
    """ids(a, b) is the whole text from a to b."""
    length = sum(n for _, n in segments)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    part = synthetic(segments).ids(start, stop)
    assert part.dtype == np.int32
    assert np.array_equal(part, whole(segments)[start:stop])


@settings(max_examples=60, deadline=None)
@given(SEGMENTS)
def test_a_text_is_its_segments_one_after_the_other(segments: list[tuple[int, int]]) -> None:
    """What a segment says does not depend on what stands around it."""
    alone = [whole([segment]) for segment in segments]
    assert np.array_equal(whole(segments), np.concatenate(alone))


@given(st.integers(0, 2**62), st.integers(2, 300_000))
def test_ids_are_in_the_vocabulary_and_start_with_the_key(key: int, vocab_size: int) -> None:
    """The first id is the key modulo the vocabulary; all ids are below its size."""
    ids = whole([(key, 3000)], vocab_size)
    assert ids[0] == key % vocab_size
    assert ids.min() >= 0
    assert ids.max() < vocab_size


def test_keys_that_begin_alike_go_on_differently() -> None:
    """Keys that are equal modulo the vocabulary part at their second token nearly always."""
    seconds = [int(whole([(5 + VOCAB * i, 2)])[1]) for i in range(500)]
    assert len(set(seconds)) > 300  # of 500 draws from 1000 values, 393 are expected to differ


def test_text_looks_arbitrary() -> None:
    """A long text uses the vocabulary evenly: chi-squared of 64 k ids is near its mean."""
    counts = np.bincount(whole([(7, 65_000)]), minlength=VOCAB)
    chi_squared = float(((counts - 65.0) ** 2 / 65.0).sum())
    assert abs(chi_squared - VOCAB) < 6 * (2 * VOCAB) ** 0.5


def test_text_ends_where_it_ends() -> None:
    """Asking for ids beyond the end is an error, of synthetic and of real text."""
    with pytest.raises(IndexError, match="11"):
        synthetic([(1, 4), (2, 6)]).ids(0, 11)
    with pytest.raises(IndexError, match="3"):
        TokenBuffer([1, 2]).ids(0, 3)


@given(st.lists(st.integers(0, VOCAB), max_size=20), st.lists(st.integers(0, VOCAB), max_size=40))
def test_a_buffer_is_a_list_of_ids(prompt: list[int], generated: list[int]) -> None:
    """A buffer holds its prompt and what was appended, and forgets what is cut off."""
    buffer = TokenBuffer(prompt)
    for token_id in generated:
        buffer.append(token_id)
    text = prompt + generated
    assert buffer.ids(0, len(buffer)).tolist() == text
    buffer.truncate(len(text) // 2)
    assert buffer.ids(0, len(buffer)).tolist() == text[: len(text) // 2]
