"""Token embedding, where the id of a token may still be on the GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launching import kernel
from engine.kernels.pdl import launch_dependents, launch_options, wait


def embed_tokens_reference(
    token_ids: torch.Tensor, last_tokens: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Look token ids up in `table`.

    Args:
        token_ids: int32[T]; a negative entry `-1 - row` stands for `last_tokens[row]`.
        last_tokens: int32[R], the token that was sampled last for each row of the page table.
        table: [V, H].

    Returns:
        [T, H] in the dtype of `table`.
    """
    fed = last_tokens[(-1 - token_ids).clamp(min=0).long()]
    return table[torch.where(token_ids < 0, fed, token_ids).long()]


@kernel()
def _embed_tokens_kernel(
    token_ids, last_tokens, table, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    launch_dependents(PDL)
    wait(PDL)
    token_id = tl.load(token_ids + token)
    if token_id < 0:
        token_id = tl.load(last_tokens - 1 - token_id)
    values = tl.load(table + token_id.to(tl.int64) * width + columns, mask=inside)
    tl.store(out + token * width + columns, values, mask=inside)


def embed_tokens_triton(
    token_ids: torch.Tensor, last_tokens: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """As `embed_tokens_reference`, in one kernel."""
    tokens, width = len(token_ids), table.shape[1]
    out = torch.empty(tokens, width, dtype=table.dtype, device=table.device)
    block = min(triton.next_power_of_2(width), 2048)
    options = launch_options(table.device)
    _embed_tokens_kernel[(tokens, triton.cdiv(width, block))](
        token_ids, last_tokens, table, out, width, BLOCK=block, **options
    )
    return out


IMPLEMENTATIONS = {"torch": embed_tokens_reference, "triton": embed_tokens_triton}
