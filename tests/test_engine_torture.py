"""The engine's real loop, a tiny model on the CPU, and everything that can go wrong around it.

Whatever happens to some requests (clients that give up or vanish, steps that fail before or after
their launch, logits that are not numbers, a worker that dies), nothing leaks, and the tokens of the
others are those of an undisturbed run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny_models
from async_stories import PATIENCE_S

from engine import AsyncLLM, SamplingParams
from engine.core.invariants import check
from engine.core.plan import StepPlan
from engine.runtime.executor import ExecutorDiedError, RunningStep, StepFailedError, StepOutput
from engine.runtime.generation import Generation
from engine.runtime.local_engine import LocalEngine
from engine.runtime.model_runner import ModelRunner
from engine.runtime.serving_loop import Turn

pytest.importorskip("triton")
from tiny_engine import make_runner, scheduler_config

STEMS = [[5, 6, 7, 8] * 4, [9] * 16, list(range(40, 56))]
MOST = 10  # output tokens


@dataclass
class Faults:
    """What goes wrong with steps, and what has gone wrong.

    Attributes:
        launch, fail, nan: how often a step cannot be launched, fails, or brings no number.
        dies_at: the step with which the worker dies; None: it does not.
        late: how often at most a step denies that it is done, so that two are in flight.
    """

    coin: Random
    launch: float = 0.05
    fail: float = 0.05
    nan: float = 0.02
    dies_at: int | None = None
    late: int = 2
    seen: set[str] = field(default_factory=set)


class FaultyRunner:
    """A real runner with faults in front of it."""

    def __init__(self, runner: ModelRunner, faults: Faults) -> None:
        self._runner, self._faults = runner, faults
        self.steps = 0
        self.registered: set[int] = set()
        self.closed = False

    def launch(self, plan: StepPlan) -> RunningStep:
        assert not self.closed
        faults, self.steps = self._faults, self.steps + 1
        if faults.dies_at is not None and self.steps >= faults.dies_at:
            faults.seen.add("died")
            raise ExecutorDiedError("the worker was killed")
        if faults.coin.random() < faults.launch:
            faults.seen.add("unlaunchable")
            raise StepFailedError("no memory for the step")
        return FaultyStep(self._runner.launch(plan), faults)

    def register(self, request_id: int, params: SamplingParams) -> None:
        self.registered.add(request_id)
        self._runner.register(request_id, params)

    def forget(self, request_id: int) -> None:
        self.registered.remove(request_id)
        self._runner.forget(request_id)

    def close(self) -> None:
        self.closed = True


class FaultyStep:
    """A step that may fail when it is asked for its result."""

    def __init__(self, step: RunningStep, faults: Faults) -> None:
        self._step, self._faults = step, faults
        self._denials = faults.coin.randint(0, faults.late)

    def is_done(self) -> bool:
        self._denials -= 1
        return self._denials < 0 and self._step.is_done()

    def result(self) -> StepOutput:
        faults, output = self._faults, self._step.result()
        if faults.coin.random() < faults.fail:
            faults.seen.add("failed")
            raise StepFailedError("the device reported an error")
        if len(output.token_ids) and faults.coin.random() < faults.nan:
            faults.seen.add("nan")
            ids = output.token_ids.copy()
            ids[faults.coin.randrange(len(ids))] = -1
            return replace(output, token_ids=ids)
        return output


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    folder: Path = tmp_path_factory.mktemp("torture")
    tiny_models.make("llama", folder)
    made = make_runner(str(folder), device="cpu", num_pages=24, page_size=4)
    yield made
    made.close()


def engine(runner: Any, base: ModelRunner, **settings: Any) -> LocalEngine:
    config = scheduler_config(base, check_every=1, **settings)
    return LocalEngine(runner, config, base.spec.vocab_size, (), None)


@pytest.fixture(scope="module")
def expected(runner: ModelRunner) -> Callable[[tuple[int, ...]], list[int]]:
    """What a prompt is answered with when it is alone."""

    @cache
    def answer(prompt: tuple[int, ...]) -> list[int]:
        alone = engine(runner, runner, prefix_cache=False)
        generation = alone.prepare(list(prompt), asks(MOST))
        alone.submit(generation)
        alone.drain()
        return list(generation.output().outputs[0].token_ids)

    return answer


def asks(max_tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, n=n)


def random_prompt(rng: Random) -> list[int]:
    stem = rng.choice(STEMS)
    return stem[: rng.randint(1, len(stem))]


def check_at_rest(local: LocalEngine, faulty: FaultyRunner) -> None:
    """No request, page, lock, text or registration is left."""
    scheduler = local._loop.scheduler
    check(scheduler)
    kv = scheduler.kv
    assert (local.live, len(local._book), local._waiting) == (0, 0, [])
    assert not scheduler.has_work
    assert not scheduler.in_flight
    assert kv.pool.free_pages + kv.cached_pages == kv.pool.num_pages
    assert (kv.held_pages, kv.has_deferred, kv.pool.leases()) == (0, False, {})
    assert faulty.registered == set()
    if kv.cache is not None:
        assert kv.cache.protected_pages == 0


def check_text(ids: list[int], reason: str | None, max_tokens: int, alone: list[int]) -> None:
    """A text that came to its end is whole, any other a beginning of it."""
    assert reason in ("length", "abort", "error")
    assert ids == alone[: len(ids)]
    if reason == "length":
        assert len(ids) == max_tokens


@pytest.mark.parametrize("seed", range(4))
def test_the_real_loop_survives_torture(
    seed: int, runner: ModelRunner, expected: Callable[[tuple[int, ...]], list[int]]
) -> None:
    """Aborts, failing steps and NaN: nothing leaks, and no other text changes."""
    rng = Random(seed)
    faults = Faults(Random(seed + 1))
    faulty = FaultyRunner(runner, faults)
    local = engine(
        faulty, runner, max_plans_in_flight=rng.choice([1, 2, 3]),
        policy=rng.choice(["fcfs", "lpm"]), prefix_cache=rng.random() < 0.8,
        schedule_conservativeness=rng.choice([0.01, 1.0]),
    )  # fmt: skip
    asked: list[tuple[Generation, int]] = []
    left = 20
    while left or local.is_busy:
        if left and rng.random() < 0.4:
            left -= 1
            most = rng.randint(1, MOST)
            generation = local.prepare(random_prompt(rng), asks(most, rng.choice([1, 1, 2])))
            asked.append((generation, most))
            local.submit(generation)
        if asked and rng.random() < 0.1:
            local.abort(rng.choice(asked)[0])
        if rng.random() < 0.05:  # a storm
            for generation, _ in asked[-6:]:
                local.abort(generation)
        if local.is_busy and local.turn() is not Turn.AGAIN and rng.random() < 0.5:
            local.wait()

    check_at_rest(local, faulty)
    for generation, most in asked:
        alone = expected(generation.prompt_token_ids)
        for out in generation.output().outputs:
            check_text(list(out.token_ids), out.finish_reason, most, alone)
    assert any(g.output().outputs[0].finish_reason == "length" for g, _ in asked)
    assert faults.seen


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_worker_ends_everything_and_leaks_nothing(
    seed: int, runner: ModelRunner, expected: Callable[[tuple[int, ...]], list[int]]
) -> None:
    """Whatever had been told until then is true, and a later request is refused at once."""
    faults = Faults(Random(seed), nan=0.0, dies_at=3 + 5 * seed)
    faulty = FaultyRunner(runner, faults)
    local = engine(faulty, runner)
    asked = [local.prepare(random_prompt(Random(seed + i)), asks(MOST)) for i in range(6)]
    for generation in asked:
        local.submit(generation)

    def drive() -> None:
        while True:
            local.turn()
            local.wait()

    with pytest.raises(ExecutorDiedError, match="killed"):
        drive()
    late = local.prepare([5, 6], asks(2))
    with pytest.raises(ExecutorDiedError):
        local.submit(late)
    for generation in (*asked, late):
        (out,) = generation.output().outputs
        alone = expected(generation.prompt_token_ids)
        check_text(list(out.token_ids), out.finish_reason, MOST, alone)
        assert out.finish_reason in ("length", "error")
    assert (local.live, len(local._book), faulty.registered) == (0, 0, set())
    assert not local._loop.scheduler.has_work
    local.close()
    assert faulty.closed


@pytest.mark.parametrize(("seed", "dies"), [(1, False), (4, True)])
def test_streams_survive_clients_that_vanish(
    seed: int, dies: bool, runner: ModelRunner, expected: Callable[[tuple[int, ...]], list[int]]
) -> None:
    """Readers are cancelled, close their stream, abort, or read to the end; a worker may die."""
    rng = Random(seed)
    faults = Faults(Random(seed + 1), nan=0.0, dies_at=10 if dies else None)
    faulty = FaultyRunner(runner, faults)
    local = engine(faulty, runner, max_plans_in_flight=2)
    whole = 0
    for stem in STEMS:  # before the engine's thread has the runner
        for length in range(1, len(stem) + 1):
            expected(tuple(stem[:length]))

    async def read(llm: AsyncLLM, number: int) -> None:
        nonlocal whole
        prompt, fate = random_prompt(rng), rng.choice(["read", "read", "close", "abort"])
        stop_at, name = rng.randint(0, 4), str(number)
        ids: list[int] = []
        stream = llm.generate(prompt, asks(MOST), request_id=name)
        try:
            async for output in stream:
                (out,) = output.outputs
                ids = list(out.token_ids)
                assert ids == expected(tuple(prompt))[: len(ids)]
                if fate != "read" and len(ids) >= stop_at:
                    if fate == "close":
                        break
                    await llm.abort(name)
            else:
                whole += len(ids) == MOST
        finally:
            await stream.aclose()

    async def story() -> None:
        async with AsyncLLM(local) as llm:
            readers = [asyncio.create_task(read(llm, number)) for number in range(24)]
            for reader in readers:
                await asyncio.sleep(rng.random() * 0.01)
                if rng.random() < 0.2:
                    reader.cancel()
            errors = (asyncio.CancelledError, ExecutorDiedError)
            for reader in readers:
                with suppress(*errors):
                    await reader
            while local.live:  # noqa: ASYNC110 - the engine's thread sets no event
                await asyncio.sleep(0.001)
            assert (llm.error is not None) == dies

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
    assert faulty.closed
    assert (len(local._book), faulty.registered) == (0, set())
    if not dies:
        check_at_rest(local, faulty)
        assert whole > 0
