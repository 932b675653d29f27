"""Sorting pairs by expert, and the table of blocks."""

from __future__ import annotations

import pytest
import torch
from kernel_device import DEVICE
from moe_cases import random_experts

from engine.kernels import moe_sort
from engine.kernels.moe_sort import SortedPairs, sort_pairs_reference, sort_pairs_triton

IMPLEMENTATIONS = {"torch": sort_pairs_reference, "triton": sort_pairs_triton}
pytestmark = pytest.mark.parametrize("sort", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())


def check(sorted_pairs: SortedPairs, experts: torch.Tensor, num_experts: int, rows: int) -> None:
    """The order is stable and by expert; the blocks cover it, each within one expert."""
    flat = experts.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda pair: (flat[pair], pair))
    assert sorted_pairs.order.tolist() == order
    assert sorted_pairs.blocks.shape == (3, len(flat) // rows + num_experts)
    blocks = [block for block in sorted_pairs.blocks.T.tolist() if block[2]]
    covered = []
    for expert, first, count in blocks:
        assert 0 < count <= rows
        assert {flat[pair] for pair in order[first : first + count]} == {expert}
        covered += range(first, first + count)
    assert covered == list(range(len(flat)))
    fewest = sum(-(-flat.count(expert) // rows) for expert in range(num_experts))
    assert len(blocks) == fewest


@pytest.mark.parametrize("rows", [16, 4])
@pytest.mark.parametrize("shape", [(1, 8, 2), (33, 8, 2), (40, 16, 4), (5, 60, 6), (70, 3, 1)])
def test_sorts(sort, shape: tuple[int, int, int], rows: int) -> None:
    """Any number of tokens, experts with many and with no tokens."""
    tokens, num_experts, top_k = shape
    experts = random_experts(tokens, num_experts, top_k)
    check(sort(experts, num_experts, rows), experts, num_experts, rows)


@pytest.mark.parametrize("expert", [0, 2, 4])
@pytest.mark.parametrize("tokens", [15, 16, 17, 48])
def test_all_in_one_expert(sort, expert: int, tokens: int) -> None:
    """The most blocks that an expert can have, at block borders too."""
    experts = torch.full((tokens, 1), expert, dtype=torch.int32, device=DEVICE)
    check(sort(experts, 5, 16), experts, 5, 16)


@pytest.mark.parametrize("counted", [False, True])
def test_many_pairs(sort, counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs beyond what one program looks at, and beyond what it places, are sorted alike."""
    monkeypatch.setattr(moe_sort, "CHUNK", 128)
    monkeypatch.setattr(moe_sort, "SEGMENT", 256)
    monkeypatch.setattr(moe_sort, "COUNTED_TOGETHER", 2)
    monkeypatch.setattr(moe_sort, "COUNT_FROM", 0 if counted else 1000)
    experts = random_experts(300, 6, 2)
    experts[:, 0] = experts[:, 0].sort().values
    check(sort(experts, 6, 16), experts, 6, 16)
