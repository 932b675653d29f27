"""Plans of any shape, without a scheduler: requests that hold pages as if they had come so far.

What is in those pages is noise, which a step takes as long over as over anything else.
"""

from __future__ import annotations

import bisect
from itertools import count, cycle

import numpy as np

from engine.core.decode_batch import DecodeBatch
from engine.core.enums import RequestStatus
from engine.core.plan import PrefillItem, StepPlan
from engine.core.request import Request
from engine.core.token_ids import Int32
from engine.profiling.step_shapes import EngineLimits, StepDesign

_SEED = 1
_RUN = 4  # pages that follow each other; a long service has runs of two, a new one of eight


class _Passage:
    """A text that begins somewhere in a long one: requests of one text would choose one expert."""

    __slots__ = ("_start", "_text")

    def __init__(self, text: Int32, start: int) -> None:
        self._text, self._start = text, start

    def ids(self, start: int, stop: int) -> Int32:
        return self._text[self._start + start : self._start + stop]


class PlanMaker:
    """Makes plans for one executor, which must be told of no requests with the same numbers.

    Args:
        limits: of the engine.
        vocab_size: prompts are of random tokens below it.
        first_request, first_page: of its own, where another maker has those before.
    """

    def __init__(
        self,
        limits: EngineLimits,
        vocab_size: int,
        *,
        first_request: int = 0,
        first_page: int = 0,
    ) -> None:
        self._limits = limits
        draw = np.random.default_rng(_SEED)
        text = draw.integers(0, vocab_size, 2 * limits.max_model_len, dtype=np.int32)
        # In service, too, the pages of a request are pieces of what others left.
        runs = np.arange(limits.num_pages).reshape(-1, 1)
        if limits.num_pages > _RUN:
            runs = runs[: limits.num_pages // _RUN * _RUN].reshape(-1, _RUN)
        order = np.random.default_rng(_SEED).permutation(runs).ravel()
        rest = np.arange(len(order), limits.num_pages)
        self._pages: list[int] = (first_page + np.concatenate([order, rest])).tolist()
        # The same requests again and again: a new epoch says that their pages are others.
        numbers = range(first_request, first_request + limits.max_running_requests)
        starts = draw.integers(0, limits.max_model_len, len(numbers)).tolist()
        self._requests = [
            Request(number, limits.max_model_len - 1, 1, tokens=_Passage(text, start))
            for number, start in zip(numbers, starts, strict=True)
        ]
        for request in self._requests:  # of those that wait, an executor takes back what they hold
            request.move_to(RequestStatus.PREFILLING)
        self._epochs, self._plan_ids = count(1), count()

    def make(self, design: StepDesign) -> tuple[StepPlan | None, StepPlan]:
        """(a plan to run once before, or None; the plan of the design, to run again and again).

        The first shows the executor the pages of decoding requests, as their prompts would have.

        Raises:
            ValueError: the engine could not run such a step.
        """
        if not self._limits.allows(design):
            raise ValueError(f"the engine cannot run {design}")
        lengths = [chunk.tokens + chunk.context for chunk in design.chunks] + [*design.decodes]
        requests = self._with_pages(lengths)
        decoding = requests[len(design.chunks) :]
        self._share(decoding, design)
        before = self._introduction(decoding, design.decodes)
        plan = StepPlan(next(self._plan_ids))
        if design.chunks:
            plan.prefills = [
                PrefillItem(request, request.epoch, chunk.tokens, chunk.context, design.samples)
                for request, chunk in zip(requests, design.chunks, strict=False)
            ]
        if decoding:
            self._decode(plan, decoding, design.decodes)
        self._count(plan, design)
        return before, plan

    def _with_pages(self, lengths: list[int]) -> list[Request]:
        """A request for each length, with pages of its own for so many tokens."""
        page, found = 0, []
        for request, length in zip(self._requests, lengths, strict=False):
            pages = -(-length // self._limits.page_size)
            request.epoch = next(self._epochs)
            request.pages = self._pages[page : page + pages]
            page += pages
            found.append(request)
        return found

    def _share(self, requests: list[Request], design: StepDesign) -> None:
        """Let the requests of a group begin with the pages of its first one."""
        pages = design.shared // self._limits.page_size
        firsts = cycle(requests[: design.groups])
        for request, first in zip(requests[design.groups :], firsts, strict=False):
            request.pages = first.pages[:pages] + request.pages[pages:]

    def _introduction(self, requests: list[Request], lengths: tuple[int, ...]) -> StepPlan | None:
        if not requests:
            return None
        plan = StepPlan(next(self._plan_ids))
        plan.prefills = [
            PrefillItem(request, request.epoch, 1, length - 1, False)
            for request, length in zip(requests, lengths, strict=True)
        ]
        plan.prefill_tokens = len(requests)
        return plan

    def _decode(self, plan: StepPlan, requests: list[Request], lengths: tuple[int, ...]) -> None:
        batch = DecodeBatch(self._limits.page_size)
        for request, length in zip(requests, lengths, strict=True):
            request.scheduled_tokens = length - 1
            batch.join(request)
        plan.batch, plan.batch_version = batch, batch.version
        plan.decode_iteration = 1

    def _count(self, plan: StepPlan, design: StepDesign) -> None:
        """What a scheduler says of its plan."""
        chunks, decodes = design.chunks, design.decodes
        plan.prefill_tokens = sum(chunk.tokens for chunk in chunks)
        plan.prefill_context = sum(chunk.context for chunk in chunks)
        plan.prefill_pairs = sum(c.tokens * c.context + c.tokens * (c.tokens + 1) // 2
                                 for c in chunks)  # fmt: skip
        plan.prefill_max_context = max((c.tokens + c.context for c in chunks), default=0)
        plan.decode_requests = plan.decode_tokens = len(decodes)
        plan.decode_context = sum(decodes)
        plan.decode_max_context = max(decodes, default=0)
        plan.shared_context = design.shared * max(0, len(decodes) - design.groups)
        plan.sampled_tokens = len(decodes) + (len(chunks) if design.samples else 0)
        plan.running = len(chunks) + len(decodes)
        sizes = self._limits.graph_batch_sizes
        if not chunks and sizes and len(decodes) <= sizes[-1]:
            plan.graph_batch = sizes[bisect.bisect_left(sizes, len(decodes))]
