"""How fast the Python and the C++ prefix cache answer the calls of a chat service, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.core.radix_cache import RadixCache
from engine.core.token_ids import Int32
from engine.native.prefix_cache import native_cache

PAGE_SIZE = 16
SYSTEM_PROMPTS, SYSTEM_TOKENS = 8, 512
CONVERSATIONS, TURNS = 60, 5
QUESTION_TOKENS, ANSWER_TOKENS = 150, 250
CAPACITY_PAGES = 6000  # so that the older half is evicted
LOOKS = 3  # at the queue before a request is admitted
REPEATS = 5


@dataclass(frozen=True, slots=True)
class CacheSpeed:
    """CPU time per request, best of several rounds of the same calls.

    Attributes:
        python_us: of `RadixCache`, as it runs in this process.
        native_us: of the C++ one.
        requests: of a round.
        equal: whether both gave the same answers.
    """

    python_us: float
    native_us: float
    requests: int
    equal: bool


def measure_cache_speed() -> CacheSpeed:
    """Serve the same made-up conversations from both caches.

    Raises:
        NativeUnavailableError: the C++ one cannot be built here; says why.
    """
    turns = list(_turns(np.random.default_rng(0)))
    python_s, python_answers = _best(lambda: RadixCache(PAGE_SIZE), turns)
    native_s, native_answers = _best(lambda: native_cache(PAGE_SIZE), turns)
    count = len(turns)
    return CacheSpeed(
        1e6 * python_s / count, 1e6 * native_s / count, count, python_answers == native_answers
    )


def _turns(rng: np.random.Generator) -> Iterator[tuple[Int32, Int32]]:
    """(prompt, prompt and answer) of every turn, conversations in between each other."""

    def text(tokens: int) -> Int32:
        return rng.integers(0, 128_000, tokens).astype(np.int32)

    systems = [text(SYSTEM_TOKENS) for _ in range(SYSTEM_PROMPTS)]
    histories = [systems[i % SYSTEM_PROMPTS] for i in range(CONVERSATIONS)]
    for _ in range(TURNS):
        for i in rng.permutation(CONVERSATIONS):
            prompt = np.concatenate([histories[i], text(QUESTION_TOKENS)])
            histories[i] = np.concatenate([prompt, text(ANSWER_TOKENS)])
            yield prompt, histories[i]


def _best(
    make: Callable[[], RadixCache], turns: list[tuple[Int32, Int32]]
) -> tuple[float, list[int]]:
    best, answers = float("inf"), list[int]()
    for _ in range(REPEATS):
        cache, answers = make(), []
        begin = time.process_time()
        _serve(cache, turns, answers)
        best = min(best, time.process_time() - begin)
    return best, answers


def _serve(cache: RadixCache, turns: list[tuple[Int32, Int32]], answers: list[int]) -> None:
    """The calls that a scheduler makes for each request."""
    free, taken = CAPACITY_PAGES, 0
    for prompt, whole in turns:
        answers += [cache.peek(prompt[:-1]) for _ in range(LOOKS)]
        match = cache.match(prompt[:-1])
        cache.lock(match.node)
        node, depth = match.node, len(match.pages) * PAGE_SIZE
        for stop in (len(prompt) // PAGE_SIZE * PAGE_SIZE, len(whole) // PAGE_SIZE * PAGE_SIZE):
            count = (stop - depth) // PAGE_SIZE
            if count > free:
                free += len(cache.evict(max(count - free, CAPACITY_PAGES // 256)))
            if not cache.continues(node, whole[depth:stop]):
                result = cache.insert_locked(
                    node, whole[depth:stop], list(range(taken, taken + count))
                )
                free += result.duplicate_pages - count
                node, depth, taken = result.node, stop, taken + count
        cache.unlock(node)
        answers.append(depth)
