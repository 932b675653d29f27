"""Routing: which experts, in which order, with which weights."""

from __future__ import annotations

import pytest
import torch
from kernel_device import DEVICE, relative_error

from engine.kernels.moe_routing import IMPLEMENTATIONS

pytestmark = pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))

# (tokens, experts, top_k): experts a power of two and not, k = 1, k = E, more than one row
# per program
SHAPES = [(1, 128, 8), (5, 8, 2), (3, 16, 4), (2, 60, 6), (3, 12, 12), (2, 5, 1), (131, 8, 2)]


def exact(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[list, torch.Tensor]:
    """Experts by a sort of Python tuples, weights in float64."""
    values = logits.double().cpu()
    order = [sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k] for row in values.tolist()]
    weights = values.softmax(-1).gather(1, torch.tensor(order))
    return order, weights / weights.sum(-1, keepdim=True) if renormalize else weights


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_an_exact_sort(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, renormalize: bool
) -> None:
    """The k best by (logit, lower index), in order, with the softmax's weights."""
    tokens, count, top_k = shape
    logits = torch.randn(tokens, count, device=DEVICE).to(dtype) * 3
    weights, experts = IMPLEMENTATIONS[name](logits, top_k, renormalize)
    order, expected = exact(logits, top_k, renormalize)
    assert experts.tolist() == order
    assert relative_error(weights, expected) < 1e-6
    assert (weights.dtype, experts.dtype) == (torch.float32, torch.int32)


def test_equal_logits_go_to_the_lower_experts(name: str) -> None:
    """Ties, also between 0.0 and -0.0 and between lows, are broken by index."""
    rows = [[0.0] * 16, [1.0, -0.0, 0.0, 2.0] * 4, [-float("inf")] * 15 + [-3.0]]
    weights, experts = IMPLEMENTATIONS[name](torch.tensor(rows, device=DEVICE), 6, True)
    assert experts.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [3, 7, 11, 15, 0, 4],
        [15, 0, 1, 2, 3, 4],
    ]
    assert torch.allclose(weights[0].cpu(), torch.full((6,), 1 / 6))
    assert weights[2].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_parts_are_summed(name: str) -> None:
    """Logits in parts give what their sum gives."""
    parts = torch.randn(3, 4, 16, device=DEVICE)
    weights, experts = IMPLEMENTATIONS[name](parts, 4, False)
    order, expected = exact(parts.double().sum(0), 4, False)
    assert experts.tolist() == order
    assert relative_error(weights, expected) < 1e-5


@pytest.mark.parametrize("top_k", [0, 5])
def test_too_many_or_no_experts_are_refused(name: str, top_k: int) -> None:
    """k outside 1..E is an error, not a guess."""
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        IMPLEMENTATIONS[name](torch.zeros(2, 4, device=DEVICE), top_k, True)


def test_experts_are_real_even_without_numbers(name: str) -> None:
    """NaN logits choose some experts, all different and in range: memory is safe."""
    logits = torch.full((2, 12), float("nan"), device=DEVICE)
    logits[1, ::2] = -float("nan")
    experts = IMPLEMENTATIONS[name](logits, 5, True)[1]
    for row in experts.tolist():
        assert len(set(row)) == 5
        assert all(0 <= expert < 12 for expert in row)


def test_no_tokens(name: str) -> None:
    """An empty batch has an empty answer."""
    weights, experts = IMPLEMENTATIONS[name](torch.zeros(0, 8, device=DEVICE), 2, True)
    assert weights.shape == experts.shape == (0, 2)
