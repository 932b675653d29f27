"""A language that needs no model: each next token is a function of the whole text before it.

`FakeRunner` carries out plans the way a device does: it keeps the token ids of each request, feeds
a step from the one before it, and may take its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.runtime.executor import ExecutorDiedError, StepFailedError, StepOutput, TopLogprobs
from engine.runtime.local_engine import LocalEngine
from engine.runtime.tokenizer import Tokenizer
from engine.sampling_params import SamplingParams

EOS = 0
# Words, halves of words, and the bytes of characters that several tokens share.
_PIECES = [
    b"<eos>", b" the", b" fox", b" dog", b" jum", b"ps", b".", b"\n", b" END", b"EN", b"D", b"ST",
    b"OP", b"S", b"TOP", b" a", b"b", b"c", b"abc", "ü".encode()[:1], "ü".encode()[1:],
    "🦊".encode()[:1], "🦊".encode()[1:3], "🦊".encode()[3:], "好".encode(), b"!", b" x", b"y",
    b"z", b"\n\n",
]  # fmt: skip
VOCAB_SIZE = len(_PIECES)
UFOX = [19, 20, 21, 22, 23]  # ü and 🦊, in pieces


class FakeTokenizer(Tokenizer):
    """Pieces of bytes; ids of a text are the longest piece that fits, from left to right."""

    def __init__(self) -> None:
        self.decoded = 0
        self.threads: set[str] = set()

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            fits = [i for i, piece in enumerate(_PIECES) if i != EOS and rest.startswith(piece)]
            ids.append(max(fits, key=lambda i: len(_PIECES[i])))
            rest = rest[len(_PIECES[ids[-1]]) :]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.decoded += 1
        self.threads.add(threading.current_thread().name)
        kept = (i for i in token_ids if i != EOS or not skip_special_tokens)
        return b"".join(_PIECES[i] for i in kept).decode("utf-8", errors="replace")


def text_of(token_ids: Sequence[int]) -> str:
    return FakeTokenizer().decode(token_ids)


def logits_after(ids: Sequence[int]) -> np.ndarray:
    """float64[VOCAB_SIZE]: which token the language likes after a text; never EOS by itself."""
    state = 17
    for token_id in ids:
        state = (state * 1_000_003 + token_id + 1) % 2_147_483_647
    logits = np.random.default_rng(state).normal(0, 2, VOCAB_SIZE)
    logits[EOS] = -30
    return logits


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The next tokens of an undisturbed text."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits_after(ids).argmax()))
    return ids[len(prompt) :]


class Story:
    """A prompt that is followed by given tokens, and then by the language's own."""

    def __init__(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        self.prompt, self.tokens = tuple(prompt), tuple(tokens)

    def next(self, ids: Sequence[int]) -> int | None:
        at = len(ids) - len(self.prompt)
        begins = tuple(ids[: len(self.prompt)]) == self.prompt
        if not begins or not 0 <= at < len(self.tokens):
            return None
        return self.tokens[at] if tuple(ids[len(self.prompt) :]) == self.tokens[:at] else None


class FakeRunner:
    """An executor for the language.

    Args:
        stories: texts that go a given way.
        step_s: how long a step takes, in s, on a device that works by itself.
        nan_at: (request id, output tokens so far) whose next token is none.

    Attributes:
        on_launch: called with each plan; may raise.
        launched, prefilled: steps, and prompt tokens computed in them.
        planned: ids of the requests in each of these steps.
        largest: most requests in a step.
        registered: parameters of the live requests that are not plainly greedy.
        all_registered: also of those that have ended.
        closed: how often it was closed.
    """

    def __init__(self, stories: Sequence[Story] = (), step_s: float = 0.0) -> None:
        self.stories, self.step_s = list(stories), step_s
        self.nan_at: set[tuple[int, int]] = set()
        self.on_launch: Callable[[StepPlan], None] = lambda plan: None
        self.launched = self.prefilled = 0
        self.planned: list[set[int]] = []
        self.largest = 0
        self.registered: dict[int, SamplingParams] = {}
        self.all_registered: dict[int, SamplingParams] = {}
        self.closed = 0
        self._texts: dict[tuple[int, int], list[int]] = {}
        self._free_at = 0.0

    def register(self, request_id: int, params: SamplingParams) -> None:
        self.registered[request_id] = self.all_registered[request_id] = params

    def forget(self, request_id: int) -> None:
        del self.registered[request_id]

    def close(self) -> None:
        self.closed += 1

    def launch(self, plan: StepPlan) -> FakeStep:
        self.on_launch(plan)
        self.launched += 1
        self.prefilled += plan.prefill_tokens
        rows = plan.sampling_requests()
        requests = [item.request for item in plan.prefills] + [request for request, _ in rows]
        self.planned.append({request.request_id for request in requests})
        self.largest = max(self.largest, len(rows))
        for item in plan.prefills:
            if item.samples:
                known = item.request.tokens.ids(0, item.request.known_tokens).tolist()
                self._texts[item.request.request_id, item.epoch] = known
        sampled = [self._sample(request, epoch) for request, epoch in rows]
        begin = max(time.perf_counter(), self._free_at)
        self._free_at = begin + self.step_s
        wanted = [self.registered.get(request.request_id) for request, _ in rows]
        count = max((p.logprobs or 0 for p in wanted if p), default=0)
        any_logprobs = any(p is not None and p.logprobs is not None for p in wanted)
        return FakeStep(sampled, self._free_at, count if any_logprobs else None)

    def _sample(self, request: Request, epoch: int) -> tuple[int, np.ndarray]:
        ids = self._texts[request.request_id, epoch]
        count = len(ids) - request.prompt_tokens
        logits = logits_after(ids)
        token_id = int(logits.argmax())
        params = self.registered.get(request.request_id)
        if params is not None and not params.is_greedy:
            rng = np.random.default_rng([abs(params.seed), len(ids)])
            token_id = int(np.argmax(logits / params.temperature + rng.gumbel(size=VOCAB_SIZE)))
        for story in self.stories:
            told = story.next(ids)
            token_id = token_id if told is None else told
        if (request.request_id, count) in self.nan_at:
            token_id = -1
        ids.append(max(token_id, 0))
        return token_id, logits


class FakeStep:
    """A step that is done at a time of `time.perf_counter`."""

    def __init__(
        self, sampled: list[tuple[int, np.ndarray]], done_at: float, top: int | None
    ) -> None:
        self._sampled, self._done_at, self._top = sampled, done_at, top

    def is_done(self) -> bool:
        return time.perf_counter() >= self._done_at

    def result(self) -> StepOutput:
        time.sleep(max(0.0, self._done_at - time.perf_counter()))
        ids = np.array([token_id for token_id, _ in self._sampled], np.int32)
        if self._top is None or not len(ids):
            return StepOutput(ids, None, None, 0, 1)
        logprobs = log_softmax(np.stack([logits for _, logits in self._sampled]))
        own = np.take_along_axis(logprobs, np.maximum(ids, 0)[:, None].astype(int), 1)[:, 0]
        order = np.argsort(-logprobs, axis=1)[:, : self._top]
        best = np.take_along_axis(logprobs, order, 1)
        top = TopLogprobs(order.astype(np.int32), best.astype(np.float32)) if self._top else None
        return StepOutput(ids, own.astype(np.float32), top, 0, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def fails_once(at: int) -> Callable[[StepPlan], None]:
    """`on_launch` that lets one step fail."""

    def on_launch(plan: StepPlan) -> None:
        if plan.plan_id == at:
            raise StepFailedError("out of memory")

    return on_launch


def dies(at: int) -> Callable[[StepPlan], None]:
    """`on_launch` that loses the device."""

    def on_launch(plan: StepPlan) -> None:
        if plan.plan_id >= at:
            raise ExecutorDiedError("the device is lost")

    return on_launch


def engine(
    runner: FakeRunner | None = None,
    tokenizer: Tokenizer | None = None,
    **settings: object,
) -> LocalEngine:
    """An engine for the language; `settings` are the scheduler's."""
    defaults: dict[str, object] = dict(
        num_pages=256, page_size=4, max_model_len=200, max_num_batched_tokens=64,
        max_running_requests=32,
    )  # fmt: skip
    config = SchedulerConfig(**{**defaults, **settings})
    return LocalEngine(runner or FakeRunner(), config, VOCAB_SIZE, [EOS], tokenizer)
