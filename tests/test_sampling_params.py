"""Sampling parameters: what is allowed, and what a refusal says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [1, 10**6]),
        ("temperature", [0, 0.0, 1e-9, 0.7, 2, 100.0]),
        ("top_k", [-1, 0, 1, 10**9]),
        ("top_p", [1e-6, 0.5, 1, 1.0]),
        ("min_p", [0, 0.0, 0.3, 1.0]),
        ("seed", [None, 0, -(2**63), 2**63 - 1]),
        ("n", [1, 8]),
        ("logprobs", [None, 0, 32]),
        ("min_tokens", [0, 16]),
        ("ignore_eos", [True, False]),
    ],
)
def test_allowed_values_are_kept(field: str, values: list[object]) -> None:
    """A value in range, its ends included, is kept as it came."""
    for value in values:
        assert getattr(SamplingParams(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("temperature", -0.5, "0 (greedy) or a finite positive number"),
        ("temperature", float("inf"), "0 (greedy) or a finite positive number"),
        ("temperature", float("nan"), "0 (greedy) or a finite positive number"),
        ("top_k", -2, "0 or -1 (off), or at least 1"),
        ("top_p", 0.0, "in (0, 1]"),
        ("top_p", 1.5, "in (0, 1]"),
        ("top_p", float("nan"), "in (0, 1]"),
        ("min_p", -0.1, "in [0, 1]"),
        ("min_p", 1.01, "in [0, 1]"),
        ("seed", 2**63, "None or in [-2^63, 2^63 - 1]"),
        ("n", 0, "at least 1"),
        ("logprobs", -1, "None or in [0, 32]"),
        ("logprobs", 33, "None or in [0, 32]"),
        ("min_tokens", -1, "in [0, max_tokens = 16]"),
        ("min_tokens", 17, "in [0, max_tokens = 16]"),
        ("stop", "", "strings that are not empty"),
        ("stop", ["a", ""], "strings that are not empty"),
    ],
)
def test_refusal_names_field_value_and_range(field: str, value: object, allowed: str) -> None:
    """A value out of range is refused in words that say how to mend it."""
    with pytest.raises(ValueError, match=r"must be") as refused:
        SamplingParams(**{field: value})
    assert str(refused.value) == f"{field} must be {allowed}, not {value!r}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", None), ("temperature", "hot"),
        ("temperature", None), ("top_k", 2.0), ("top_p", "1"), ("min_p", False), ("seed", 1.0),
        ("n", "2"), ("logprobs", True), ("min_tokens", None), ("stop", 3), ("stop", [3]),
        ("stop_token_ids", 3), ("stop_token_ids", ["x"]), ("ignore_eos", 1),
    ],
)  # fmt: skip
def test_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    """A value of another type is no number or string by accident."""
    with pytest.raises(TypeError, match=rf"^{field} must be"):
        SamplingParams(**{field: value})


def test_negative_stop_token_is_refused() -> None:
    """A token id is never negative."""
    with pytest.raises(ValueError, match=r"stop_token_ids must be .*at least 0, not -4"):
        SamplingParams(stop_token_ids=[3, -4])


def test_stops_are_tuples() -> None:
    """A single stop string is a list of one, and lists cannot change afterwards."""
    stops = ["a", "b"]
    params = SamplingParams(stop=stops, stop_token_ids=[7, 8])
    stops.append("c")
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (7, 8)
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams().stop == ()
    assert hash(params) == hash(SamplingParams(stop=("a", "b"), stop_token_ids=(7, 8)))


def test_frozen_and_replaceable() -> None:
    """Parameters do not change; a changed copy is checked again."""
    params = SamplingParams(temperature=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]
    assert dataclasses.replace(params, top_k=5).top_k == 5
    with pytest.raises(ValueError, match="top_p"):
        dataclasses.replace(params, top_p=0)


def test_greedy_and_truncated() -> None:
    """Filters count only for a request that draws."""
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=1e-6).is_greedy
    assert not SamplingParams(temperature=1e-4).is_greedy
    assert not SamplingParams(temperature=0, top_k=5, top_p=0.5, min_p=0.5).is_truncated
    assert not SamplingParams(top_k=-1).is_truncated
    for some in ({"top_k": 1}, {"top_p": 0.99}, {"min_p": 0.01}):
        assert SamplingParams(**some).is_truncated


def test_needs_no_torch() -> None:
    """A client may make sampling parameters without torch."""
    code = "import sys, engine.sampling_params; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
