"""Settings of one scheduler, frozen and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from engine.core.defaults import MAX_NUM_BATCHED_TOKENS, MAX_RUNNING_REQUESTS, PAGE_SIZE
from engine.core.radix_tree import Eviction
from engine.core.waiting_queue import Policy

Mode = Literal["mixed", "prefill_first"]
Admission = Literal["estimate", "reserve"]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "policy": get_args(Policy),
    "mode": get_args(Mode),
    "admission": get_args(Admission),
    "eviction": get_args(Eviction),
}

MAX_PLANS_IN_FLIGHT = 4

# Settings that a running scheduler keeps: its memory, and what its requests were accepted under.
UNCHANGEABLE = (
    "num_pages", "page_size", "max_model_len", "prefix_cache", "eviction",
    "num_speculative_tokens", "transfer_timeout_ns",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How one replica schedules.

    Attributes:
        num_pages, page_size: KV memory, in pages and in tokens per page.
        max_num_batched_tokens: tokens that one step may compute.
        max_running_requests: requests that may be admitted at once.
        max_model_len: longest prompt plus output in tokens.
        max_prefill_tokens: prefill tokens per step, below the budget; None: only the budget counts.
        chunked_prefill: whether a prompt may be spread over several steps.
        policy: order of the queue.
        mode: `mixed` puts prefill chunks and decodes into one step; `prefill_first` lets decodes
            wait while there is anything to prefill.
        admission: `estimate` admits by the output that running requests are likely to need (the
            new-token ratio), `reserve` by what max_tokens allows, so that nothing is ever
            retracted.
        schedule_conservativeness: scales that estimate; larger admits fewer.
        prefix_cache, eviction: radix cache on or off, and which leaves it gives up first.
        max_plans_in_flight: 1 plans after results are known, 2 plans while the GPU runs.
        cuda_graph_batch_sizes: batch sizes that decode steps are padded to, ascending; larger
            batches and steps with prefill run eagerly.
        num_speculative_tokens: drafted tokens per verify item; 0 decodes one token at a time.
        transfer_timeout_ns: a KV transfer that takes longer is given up.
        check_every: recount all invariants after every n-th commit; 0: never.
    """

    num_pages: int
    max_model_len: int
    page_size: int = PAGE_SIZE
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    max_running_requests: int = MAX_RUNNING_REQUESTS
    max_prefill_tokens: int | None = None
    chunked_prefill: bool = True
    policy: Policy = "fcfs"
    mode: Mode = "mixed"
    admission: Admission = "estimate"
    schedule_conservativeness: float = 1.0
    prefix_cache: bool = True
    eviction: Eviction = "lru"
    max_plans_in_flight: int = 2
    cuda_graph_batch_sizes: tuple[int, ...] = ()
    num_speculative_tokens: int = 0
    transfer_timeout_ns: int = 30_000_000_000
    check_every: int = 0

    def __post_init__(self) -> None:
        at_least_one = (
            "num_pages", "max_model_len", "page_size", "max_num_batched_tokens",
            "max_running_requests", "transfer_timeout_ns",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_speculative_tokens", "check_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 1 <= self.max_plans_in_flight <= MAX_PLANS_IN_FLIGHT:
            raise ValueError(
                f"max_plans_in_flight must be 1 to {MAX_PLANS_IN_FLIGHT}, "
                f"got {self.max_plans_in_flight}"
            )
        if self.max_prefill_tokens is not None and self.max_prefill_tokens < 1:
            raise ValueError(
                f"max_prefill_tokens must be at least 1, got {self.max_prefill_tokens}"
            )
        if not self.schedule_conservativeness > 0:
            raise ValueError(
                f"schedule_conservativeness must be positive, got {self.schedule_conservativeness}"
            )
        least_budget = self.max_running_requests * (1 + self.num_speculative_tokens)
        if self.max_num_batched_tokens < least_budget:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} cannot hold "
                f"{1 + self.num_speculative_tokens} token(s) of each of max_running_requests="
                f"{self.max_running_requests} requests: raise it to {least_budget} or lower "
                "max_running_requests"
            )
        sizes = self.cuda_graph_batch_sizes
        if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < 1):
            raise ValueError(f"cuda_graph_batch_sizes must be ascending and positive, got {sizes}")

    @property
    def prefill_budget(self) -> int:
        """Prefill tokens that an otherwise empty step may compute."""
        cap = self.max_prefill_tokens
        return self.max_num_batched_tokens if cap is None else min(cap, self.max_num_batched_tokens)
