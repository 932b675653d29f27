"""Writes new pages into the page table on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait


def write_pages_reference(page_table: torch.Tensor, at: torch.Tensor, pages: torch.Tensor) -> None:
    """Put pages into the flat page table.

    Args:
        page_table: int32[R + 1, max_pages], contiguous, changed in place.
        at: int32[U], flat places; negative ones are skipped.
        pages: int32[U].
    """
    real = at >= 0
    page_table.view(-1)[at[real].long()] = pages[real]


@kernel(do_not_specialize=["count"])
def _write_pages_kernel(page_table, at, pages, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    launch_dependents(PDL)
    wait(PDL)
    place = tl.load(at + index, mask=index < count, other=-1)
    page = tl.load(pages + index, mask=index < count, other=0)
    tl.store(page_table + place, page, mask=place >= 0)


def write_pages_triton(page_table: torch.Tensor, at: torch.Tensor, pages: torch.Tensor) -> None:
    """As `write_pages_reference`."""
    count = len(at)
    if count:
        _write_pages_kernel[(triton.cdiv(count, 256),)](
            page_table, at, pages, count, BLOCK=256, num_warps=4,
            **launch_options(page_table.device),
        )  # fmt: skip


IMPLEMENTATIONS = {"torch": write_pages_reference, "triton": write_pages_triton}
