"""What the device remembers from step to step, row by row of the page table."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from engine.core.request import Request
from engine.kernels.sampling_batch import SamplingBatch
from engine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class SamplingAsks:
    """What the rows of a step want of the sampler, together; see `SamplingBatch`."""

    all_greedy: bool = True
    needs_logprobs: bool = False
    max_top_logprobs: int = 0
    any_top_k: bool = False
    any_top_p: bool = False
    any_min_p: bool = False

    def flags(self) -> dict[str, Any]:
        """The same as keyword arguments of `SamplingBatch`."""
        return asdict(self)


NOTHING_SPECIAL = SamplingAsks()

# What requests usually ask besides, so that it is compiled before the first of them comes.
COMMON_ASKS = (
    SamplingAsks(all_greedy=False),
    SamplingAsks(all_greedy=False, any_top_k=True, any_top_p=True, any_min_p=True),
    SamplingAsks(needs_logprobs=True),
)


class DeviceState:
    """Page table, last tokens, and sampling parameters of every row, on one device.

    Args:
        rows: R, rows that requests may hold; row R is the dummy row.
        max_pages: pages of a row.
        dummy_page: what the dummy row and unused places point to.
        counters: int32 zeros that the decode attention needs.
        device: where.

    Attributes:
        page_table: int32[R + 1, max_pages].
        last_tokens: int32[R + 1].
        counters: int32[counters].
    """

    def __init__(
        self, rows: int, max_pages: int, dummy_page: int, counters: int, device: torch.device
    ) -> None:
        self.device = device
        self.rows = rows
        self.page_table = torch.full(
            (rows + 1, max_pages), dummy_page, dtype=torch.int32, device=device
        )
        self.last_tokens = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.counters = torch.zeros(counters, dtype=torch.int32, device=device)
        self._temperature = torch.zeros(rows + 1, device=device)
        self._top_k = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self._top_p = torch.ones(rows + 1, device=device)
        self._min_p = torch.zeros(rows + 1, device=device)
        self._seeds = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._params: dict[int, SamplingParams] = {}  # of registered requests
        self._drawing: set[int] = set()  # rows whose parameters are not greedy

    @property
    def dummy_row(self) -> int:
        """The row of padding."""
        return self.rows

    def register(self, request_id: int, params: SamplingParams) -> None:
        """Tell how a request samples, before it is planned; one that is not told of is greedy."""
        self._params[request_id] = params

    def forget(self, request_id: int) -> None:
        """A request has ended."""
        self._params.pop(request_id, None)

    def assign(self, row: int, request_id: int) -> None:
        """A request got a row: its sampling parameters go there."""
        params = self._params.get(request_id, GREEDY)
        if params.is_greedy:
            if row in self._drawing:
                self._drawing.discard(row)
                self._temperature[row] = 0.0
            return
        self._drawing.add(row)
        seed = params.seed if params.seed is not None else secrets.randbits(_SEED_BITS)
        self._temperature[row] = params.temperature
        self._top_k[row] = max(params.top_k, 0)
        self._top_p[row] = params.top_p
        self._min_p[row] = params.min_p
        self._seeds[row] = seed & ((1 << _SEED_BITS) - 1)

    def asks(self, sampled: Iterable[tuple[Request, int]]) -> SamplingAsks:
        """What the sampling requests of a step want of the sampler."""
        if not self._params:
            return NOTHING_SPECIAL
        get = self._params.get
        found = [params for request, _ in sampled if (params := get(request.request_id))]
        return SamplingAsks(
            all_greedy=all(p.is_greedy for p in found),
            needs_logprobs=any(p.logprobs is not None for p in found),
            max_top_logprobs=max((p.logprobs or 0 for p in found), default=0),
            any_top_k=any(p.top_k > 0 for p in found),
            any_top_p=any(p.top_p < 1 for p in found),
            any_min_p=any(p.min_p > 0 for p in found),
        )

    def sampling_batch(
        self, rows: torch.Tensor, positions: torch.Tensor, asks: SamplingAsks
    ) -> SamplingBatch:
        """Parameters of the rows of a batch.

        Args:
            rows: int32[S].
            positions: int32[S], of the tokens before the sampled ones; they number the draws.
            asks: of these rows.
        """
        if asks.all_greedy:  # nobody looks at them
            columns = (self._temperature, self._top_k, self._top_p, self._min_p, self._seeds)
            return SamplingBatch(*columns, positions, **asks.flags())
        index = rows.long()
        return SamplingBatch(
            self._temperature[index],
            self._top_k[index],
            self._top_p[index],
            self._min_p[index],
            self._seeds[index],
            positions,
            **asks.flags(),
        )
