"""A request's life: which changes of status are legal, and what its limits mean."""

from __future__ import annotations

from itertools import product

import pytest

from engine.core.enums import RequestStatus
from engine.core.errors import IllegalTransitionError
from engine.core.request import LEGAL_TRANSITIONS, Request

S = RequestStatus


@pytest.mark.parametrize(("before", "after"), list(product(S, S)))
def test_only_legal_changes_of_status_happen(before: RequestStatus, after: RequestStatus) -> None:
    """`move_to` does what the table allows, and changes nothing otherwise."""
    request = Request(0, 1, 1)
    request.status = before
    if after in LEGAL_TRANSITIONS[before]:
        request.move_to(after)
        assert request.status == after
    else:
        with pytest.raises(IllegalTransitionError, match=f"{before.name} -> {after.name}"):
            request.move_to(after)
        assert request.status == before


def test_a_life_has_one_end() -> None:
    """Every status can reach FINISHED at once, and FINISHED is left by nothing."""
    assert all(S.FINISHED in LEGAL_TRANSITIONS[status] for status in S if status != S.FINISHED)
    assert LEGAL_TRANSITIONS[S.FINISHED] == frozenset()
    assert set(LEGAL_TRANSITIONS) == set(S)


def test_kv_is_handed_over_by_requests_that_compute_no_more() -> None:
    """KV is held after a prefill and leaves with the request; awaited KV starts a decode."""
    assert {before for before in S if S.HOLDING_KV in LEGAL_TRANSITIONS[before]} == {S.PREFILLING}
    assert LEGAL_TRANSITIONS[S.HOLDING_KV] == {S.FINISHED}
    assert {before for before in S if S.AWAITING_KV in LEGAL_TRANSITIONS[before]} == {S.WAITING}
    assert S.DECODING in LEGAL_TRANSITIONS[S.AWAITING_KV]


@pytest.mark.parametrize(("prompt_tokens", "max_tokens"), [(0, 1), (1, 0), (-1, 5), (5, -1)])
def test_empty_requests_do_not_exist(prompt_tokens: int, max_tokens: int) -> None:
    """A request has a prompt and asks for at least one token."""
    with pytest.raises(ValueError, match="must both be at least 1"):
        Request(3, prompt_tokens, max_tokens)


def test_the_last_token_needs_no_kv() -> None:
    """A request of one output token needs KV for its prompt only."""
    assert Request(0, 7, 1).max_kv_tokens == 7
    assert Request(0, 7, 5).max_kv_tokens == 11
