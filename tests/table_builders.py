"""A tiny continuous-batching server, played by hand, that makes consistent tables for tests.

First come, first served; chunked prefill; a fixed pool of pages; the youngest request is sent back
when pages run out. It shares no code with the product but `EventLog`, and notes when every token
came and what every batch held, so that tests can check what is derived from the tables.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from engine.core.enums import AdmissionBlock, FinishReason, ItemKind, RequestEvent
from engine.core.events import TABLES, Detail, EventLog, Segment
from workbench.record.header import LoadFacts, MeasureFacts, ReplicaFacts, RunHeader, SloFacts

MS = 1_000_000
S = 1_000_000_000


@dataclass(frozen=True)
class Ask:
    """One request: when it comes, its lengths, its prefix hit, and the client's own delay."""

    arrival_ns: int
    prompt: int = 8
    output: int = 4
    cached: int = 0
    client_wait_ns: int = 0


@dataclass(frozen=True)
class Server:
    """How the tiny server is set up. `jitter` makes step times differ."""

    replicas: int = 1
    slots: int = 4
    chunk: int = 32
    num_pages: int = 1000
    page_size: int = 4
    overlap: bool = False
    host_ns: int = 100_000
    step_ns: int = 1 * MS
    prefill_token_ns: int = 10_000
    jitter: int = 0


@dataclass
class Played:
    """Tables of a run and the truth about it."""

    tables: Segment
    server: Server
    token_times: dict[int, list[int]]
    batches: dict[tuple[int, int], list[tuple[int, int, int, int]]]

    def header(
        self,
        measure: MeasureFacts | None = None,
        slo: SloFacts | None = None,
        load: LoadFacts | None = None,
        detail: str = "items",
    ) -> RunHeader:
        return make_header(self.server, measure, slo, load, detail)


@dataclass
class _Live:
    number: int
    ask: Ask
    admitted_ns: int = -1
    first_token_ns: int = -1
    finish_ns: int = -1
    computed: int = 0  # tokens in the KV cache
    generated: int = 0
    due: int = 0  # tokens to have computed before it decodes
    retractions: int = 0
    recomputed: int = 0
    span: dict[str, int] | None = None
    done: bool = False

    @property
    def decoding(self) -> bool:
        return self.computed >= self.due

    @property
    def known(self) -> int:
        return self.ask.prompt + self.generated


@dataclass
class _Replica:
    number: int
    server: Server
    log: EventLog
    token_times: dict[int, list[int]]
    batches: dict[tuple[int, int], list[tuple[int, int, int, int]]]
    coming: deque[_Live]
    waiting: deque[_Live] = field(default_factory=deque)
    running: list[_Live] = field(default_factory=list)
    step: int = 0
    iteration: int = 0
    retracted: int = 0

    def play(self) -> None:
        plan, previous_end = 0, 0
        while self.coming or self.waiting or self.running:
            if not (self.waiting or self.running):
                plan = max(plan, self.coming[0].ask.arrival_ns)
            start, end = self._one_step(plan, previous_end)
            previous_end = end
            plan = start + self.server.host_ns // 2 if self.server.overlap else end

    def _one_step(self, plan: int, previous_end: int) -> tuple[int, int]:
        server = self.server
        while self.coming and self.coming[0].ask.arrival_ns <= plan:
            self._arrive(self.coming.popleft())
        self._retract_if_full(plan)
        decoding = [live for live in self.running if live.decoding]
        block, chunks = self._admit_and_chunk(plan)
        iteration = self.iteration if decoding else -1
        jitter = (self.step * 7919 + self.number * 31) % (server.jitter + 1)
        tokens = sum(size for _, size in chunks)
        gpu = server.step_ns + tokens * server.prefill_token_ns + len(decoding) * 1000 + jitter
        start = max(plan + server.host_ns, previous_end)
        end = start + gpu
        self._write_step(plan, start, end, gpu, decoding, chunks, block, iteration)
        for live in decoding:
            self._decode(live, end)
        for live, size in chunks:
            self._prefill(live, size, end)
        if decoding:
            self.iteration += 1
        self.step += 1
        return start, end

    def _arrive(self, live: _Live) -> None:
        ask = live.ask
        self._event(ask.arrival_ns, live, RequestEvent.ARRIVE, ask.prompt, ask.output)
        self.waiting.append(live)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.server.page_size)

    def _held(self) -> int:
        return sum(self._pages(max(live.due, live.known)) for live in self.running)

    def _retract_if_full(self, now: int) -> None:
        self.retracted = 0
        while self._held() > self.server.num_pages:
            live = self.running.pop()
            self._close_span(live)
            self._event(now, live, RequestEvent.RETRACT, live.computed, 0)
            live.recomputed += live.computed
            live.computed, live.due = 0, live.known
            live.retractions += 1
            self.retracted += 1
            self.waiting.appendleft(live)

    def _admit_and_chunk(self, now: int) -> tuple[AdmissionBlock, list[tuple[_Live, int]]]:
        budget = self.server.chunk
        chunks = []
        for live in self.running:
            if not live.decoding and budget:
                chunks.append((live, min(live.due - live.computed, budget)))
                budget -= chunks[-1][1]
        while self.waiting:
            live = self.waiting[0]
            if self.retracted:
                return AdmissionBlock.RETRACTION, chunks
            if not budget:
                return AdmissionBlock.TOKEN_BUDGET, chunks
            if len(self.running) >= self.server.slots:
                return AdmissionBlock.RUNNING_LIMIT, chunks
            if self._held() + self._pages(live.known) > self.server.num_pages:
                return AdmissionBlock.KV_PAGES, chunks
            self._admit(self.waiting.popleft(), now)
            chunks.append((live, min(live.due - live.computed, budget)))
            budget -= chunks[-1][1]
        return AdmissionBlock.NONE, chunks

    def _admit(self, live: _Live, now: int) -> None:
        first = live.admitted_ns < 0
        if first:
            live.admitted_ns = now
            live.computed = live.ask.cached
            live.due = live.ask.prompt
        kind = RequestEvent.ADMIT if first else RequestEvent.RESUME
        self._event(now, live, kind, live.computed, live.due - live.computed)
        self.running.append(live)

    def _prefill(self, live: _Live, size: int, now: int) -> None:
        live.computed += size
        if not live.decoding:
            return
        self._token(live, now)
        if live.generated >= live.ask.output:
            self._finish(live, now)
            self.running.remove(live)
            return
        live.span = {
            "token_ns": now,
            "first_iteration": self.iteration + self._decodes_now,
            "scheduled": 0,
            "committed": 0,
            "context_tokens": live.computed,
        }

    def _decode(self, live: _Live, now: int) -> None:
        assert live.span is not None
        live.span["scheduled"] += 1
        if live.done:
            self._close_span(live)
            self.running.remove(live)
            return
        live.span["committed"] += 1
        live.computed += 1
        live.due = live.computed
        self._token(live, now)
        if live.generated >= live.ask.output:
            self._finish(live, now)
            live.done = True
            if not self.server.overlap:
                self._close_span(live)
                self.running.remove(live)

    def _token(self, live: _Live, now: int) -> None:
        live.generated += 1
        self.token_times[live.number].append(now)
        if live.first_token_ns < 0:
            live.first_token_ns = now
            self._event(now, live, RequestEvent.FIRST_TOKEN, 0, 0)

    def _finish(self, live: _Live, now: int) -> None:
        live.finish_ns = now
        self._event(now, live, RequestEvent.FINISH, FinishReason.LENGTH, live.generated)
        ask = live.ask
        self._write(
            "requests",
            request_id=live.number,
            replica=self.number,
            parent=-1,
            prompt_tokens=ask.prompt,
            max_tokens=ask.output,
            output_tokens=live.generated,
            cached_tokens=ask.cached,
            retractions=live.retractions,
            recomputed_tokens=live.recomputed,
            client_wait_ns=ask.client_wait_ns,
            arrival_ns=ask.arrival_ns,
            admitted_ns=live.admitted_ns,
            first_token_ns=live.first_token_ns,
            finish_ns=now,
            finish_reason=FinishReason.LENGTH,
        )

    def _close_span(self, live: _Live) -> None:
        span, live.span = live.span, None
        if span is not None:
            self._write("decode_spans", request_id=live.number, replica=self.number, **span)

    def _write_step(
        self,
        plan: int,
        start: int,
        end: int,
        gpu: int,
        decoding: list[_Live],
        chunks: list[tuple[_Live, int]],
        block: AdmissionBlock,
        iteration: int,
    ) -> None:
        self._decodes_now = 1 if decoding else 0
        contexts = [live.computed + 1 for live in decoding]
        batch = [(live.number, int(ItemKind.PREFILL), n, live.computed) for live, n in chunks]
        for number, kind, size, context in batch:
            self._write(
                "items",
                step=self.step,
                replica=self.number,
                request_id=number,
                kind=kind,
                num_tokens=size,
                context_tokens=context,
            )
        batch += sorted(
            (live.number, int(ItemKind.DECODE), 1, self._context(live)) for live in decoding
        )
        self.batches[self.number, self.step] = batch
        before = sum(context for _, kind, _, context in batch if kind == ItemKind.PREFILL)
        self._write(
            "steps",
            step=self.step,
            replica=self.number,
            plan_ns=plan,
            start_ns=start,
            end_ns=end,
            gpu_ns=gpu,
            host_ns=self.server.host_ns,
            prefill_tokens=sum(size for _, size in chunks),
            prefill_requests=len(chunks),
            prefill_context=before,
            decode_requests=len(decoding),
            decode_tokens=len(decoding),
            decode_context=sum(contexts),
            decode_max_context=max(contexts, default=0),
            running=len(self.running),
            waiting=len(self.waiting),
            block_reason=block,
            free_pages=self.server.num_pages - self._held(),
            retracted=self.retracted,
            decode_iteration=iteration,
        )

    def _write(self, table: str, **values: int) -> None:
        """Write a row; columns not named are 0."""
        write = self.log.write(table)
        if write is not None:
            write(tuple(int(values.pop(column, 0)) for column in TABLES[table]))
        assert write is None or not values, values

    def _context(self, live: _Live) -> int:
        assert live.span is not None
        return live.span["context_tokens"] + live.span["scheduled"]

    def _event(self, t: int, live: _Live, event: RequestEvent, a: int, b: int) -> None:
        row = {"t_ns": t, "replica": self.number, "request_id": live.number}
        self._write("lifecycle", **row, event=event, a=a, b=b)


def play(asks: list[Ask], server: Server | None = None, detail: Detail = Detail.PAGES) -> Played:
    """Serve the requests, dealt to the replicas in turn; the list index is the request id."""
    server = server or Server()
    log = EventLog(detail)
    token_times: dict[int, list[int]] = {i: [] for i in range(len(asks))}
    batches: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    lives = sorted(
        (_Live(i, ask) for i, ask in enumerate(asks)), key=lambda live: live.ask.arrival_ns
    )
    for number in range(server.replicas):
        coming = deque(lives[number :: server.replicas])
        _Replica(number, server, log, token_times, batches, coming).play()
    return Played(log.tables(), server, token_times, batches)


def make_header(
    server: Server,
    measure: MeasureFacts | None = None,
    slo: SloFacts | None = None,
    load: LoadFacts | None = None,
    detail: str = "items",
) -> RunHeader:
    """A header that fits what the tiny server did."""
    facts = ReplicaFacts(
        num_pages=server.num_pages,
        page_size=server.page_size,
        max_num_batched_tokens=server.chunk,
        max_running_requests=server.slots,
    )
    return RunHeader(
        name="tiny",
        kind="simulation",
        detail=detail,  # type: ignore[arg-type]
        seed=7,
        model="tiny-model",
        gpu="tiny-gpu",
        cost_model="by hand",
        replicas=(facts,) * server.replicas,
        load=load or LoadFacts(kind="poisson", request_rate=10.0, burstiness=1.0),
        measure=measure or MeasureFacts(),
        slo=slo or SloFacts(),
        scenario={"schema": "workbench/scenario/v1", "name": "tiny"},
        scenario_sha256="0" * 64,
    )


def poisson(count: int, rate: float, seed: int = 1, prompt: int = 8, output: int = 4) -> list[Ask]:
    """Requests at `rate` per second, all of one shape."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [Ask(int(t * S), prompt, output) for t in np.cumsum(gaps)]


def asks() -> st.SearchStrategy[list[Ask]]:
    """Up to 12 requests that need at most 30 tokens of KV each."""
    one = st.builds(
        Ask,
        arrival_ns=st.integers(0, 10 * MS),
        prompt=st.integers(1, 20),
        output=st.integers(1, 10),
    )
    return st.lists(one, min_size=1, max_size=12)


def servers() -> st.SearchStrategy[Server]:
    """Set-ups under which every request of `asks` completes, some with retractions."""
    chunk, jitter = st.integers(1, 40), st.integers(0, 3000)
    roomy = st.builds(
        Server,
        replicas=st.integers(1, 3),
        slots=st.integers(1, 5),
        chunk=chunk,
        host_ns=st.sampled_from([0, 50_000]),
        jitter=jitter,
    )
    tight = st.builds(
        Server,
        slots=st.just(6),
        chunk=chunk,
        num_pages=st.integers(15, 20),
        page_size=st.just(2),
        jitter=jitter,
    )
    overlapping = st.builds(
        Server,
        replicas=st.integers(1, 2),
        slots=st.integers(1, 5),
        chunk=chunk,
        overlap=st.just(True),
        jitter=jitter,
    )
    return tight | roomy | overlapping
