"""New pages into the page table on the device."""

from __future__ import annotations

import pytest
import torch
from kernel_device import DEVICE

from engine.kernels.page_table import IMPLEMENTATIONS


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [0, 1, 7, 256, 257, 600])
def test_pages_go_where_they_belong(implementation: str, count: int) -> None:
    """Each place gets its page, negative places none, and everything else stays as it is."""
    rows, width = 13, 60
    table = torch.randint(1000, 2000, (rows, width), dtype=torch.int32)
    places = torch.randperm(rows * width)[:count].int()
    pages = torch.randint(0, 1000, (count,), dtype=torch.int32)
    skipped = torch.rand(count) < 0.3
    expected = table.clone()
    for place, page, skip in zip(places, pages, skipped, strict=True):
        if not skip:
            expected[place // width, place % width] = page
    places[skipped] = -1
    table = table.to(DEVICE)
    IMPLEMENTATIONS[implementation](table, places.to(DEVICE), pages.to(DEVICE))
    assert torch.equal(table.cpu(), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_alone_changes_nothing(implementation: str) -> None:
    """A step in which no request begins a page."""
    table = torch.randint(0, 99, (3, 4), dtype=torch.int32, device=DEVICE)
    before = table.clone()
    nowhere = torch.full((8,), -1, dtype=torch.int32, device=DEVICE)
    IMPLEMENTATIONS[implementation](table, nowhere, torch.zeros_like(nowhere))
    assert torch.equal(table, before)
