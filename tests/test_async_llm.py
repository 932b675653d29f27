"""What the streams of `AsyncLLM` say: many at once, each as if it were alone."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise

import pytest
from async_stories import Held, asks, collect, eventually, play
from fake_language import UFOX, FakeRunner, FakeTokenizer, Story, engine, greedy, text_of

from engine import AsyncLLM, SamplingParams


@pytest.mark.parametrize("stop", [(), ("STOP",)])
def test_outputs_grow_to_the_whole_text(stop: tuple[str, ...]) -> None:
    """Each output continues the one before; only the last is finished, and it has everything."""

    async def story() -> None:
        runner = FakeRunner([Story([1, 2], [*UFOX, 11, 2, 15, *UFOX])], step_s=0.001)
        async with AsyncLLM(engine(runner, FakeTokenizer())) as llm:
            outputs = await collect(llm, [1, 2], asks(stop=stop, max_tokens=13))
        assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
        assert len(outputs) > 3, "this did not stream"
        for before, after in pairwise(outputs):
            assert after.outputs[0].text.startswith(before.outputs[0].text)
            ids = before.outputs[0].token_ids
            assert after.outputs[0].token_ids[: len(ids)] == ids
        assert outputs[-1].outputs[0].text == "ü🦊ST fox aü🦊"
        assert outputs[-1].outputs[0].finish_reason == "length"
        assert {o.request_id for o in outputs} == {outputs[0].request_id}

    play(story)


@pytest.mark.parametrize("stop", [(), ("STOP",)])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_deltas_joined_are_the_whole_text(stop: tuple[str, ...], logprobs: int | None) -> None:
    """Texts, tokens and log-probabilities, each exactly once; no half characters on the way."""

    async def story() -> None:
        runner = FakeRunner([Story([1, 2], [*UFOX, 11, 2, 15, *UFOX, 8])], step_s=0.001)
        params = asks(stop=stop, logprobs=logprobs, stop_token_ids=[8])
        async with AsyncLLM(engine(runner, FakeTokenizer())) as llm:
            whole = (await collect(llm, [1, 2], params))[-1].outputs[0]
            deltas = [o.outputs[0] for o in await collect(llm, [1, 2], params, delta=True)]
        assert "".join(d.text for d in deltas) == whole.text == "ü🦊ST fox aü🦊"
        assert all(set(d.text) <= set(whole.text) for d in deltas)
        assert tuple(i for d in deltas for i in d.token_ids) == whole.token_ids
        assert (whole.finish_reason, whole.stop_reason) == ("stop", 8)
        if logprobs is None:
            assert {d.logprobs for d in deltas} == {None}
        else:
            assert tuple(entry for d in deltas for entry in d.logprobs) == whole.logprobs
        assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + ["stop"]

    play(story)


def test_a_stop_string_is_never_seen_by_a_stream() -> None:
    """Text that may become a stop string is held back until it is known."""

    async def story() -> None:
        runner = FakeRunner([Story([1], [15, 11, 2, 11, 12, 2])], step_s=0.001)
        async with AsyncLLM(engine(runner, FakeTokenizer())) as llm:
            outputs = await collect(llm, [1], asks(stop="STOP"))
        shown = [o.outputs[0].text for o in outputs]
        assert set(shown) <= {"", " a", " aST fox"}
        assert shown[-1] == " aST fox"
        assert outputs[-1].outputs[0].stop_reason == "STOP"

    play(story)


def test_a_hundred_streams_get_the_same_share() -> None:
    """All texts are right, and while all run, nobody is far ahead of anybody."""
    prompts = [[1 + i % 18, 2 + i % 17] for i in range(100)]  # no half characters

    async def story() -> None:
        runner = FakeRunner(step_s=0.002)
        settings = dict(max_running_requests=128, max_num_batched_tokens=256, num_pages=2048)
        local = engine(runner, FakeTokenizer(), **settings)
        held = Held(local, 1)
        progress = dict.fromkeys(range(100), 0)

        async def read(at: int) -> None:
            async for output in llm.generate(prompts[at], asks(max_tokens=40)):
                progress[at] = len(output.outputs[0].token_ids)
            assert list(output.outputs[0].token_ids) == greedy(prompts[at], 40)
            assert output.outputs[0].text == text_of(output.outputs[0].token_ids)

        async with AsyncLLM(local) as llm:
            readers = [asyncio.create_task(read(at)) for at in range(100)]
            await eventually(lambda: local.live == 100 and held.waits)
            held.go_on(12)  # in each of which a text gets two tokens at most
            await eventually(lambda: held.waits and min(progress.values()) > 3)
            seen = progress.values()
            await eventually(lambda: max(seen) - min(seen) <= 2)
            assert max(seen) < 40
            held.go.set()
            await asyncio.gather(*readers)
        assert runner.largest == 100

    play(story)


def test_a_slow_reader_finds_more_and_holds_nobody_up() -> None:
    """While he sleeps the engine goes on; then one output has all that came meanwhile."""

    async def story() -> None:
        local = engine(FakeRunner(), FakeTokenizer())
        async with AsyncLLM(local) as llm:
            outputs = []
            async for output in llm.generate([1], asks(max_tokens=100), delta=True):
                outputs.append(output)
                await asyncio.to_thread(time.sleep, 0.05)
                quick = await collect(llm, [2], asks())
                assert list(quick[-1].outputs[0].token_ids) == greedy([2], 20)
            ids = [i for output in outputs for i in output.outputs[0].token_ids]
            assert ids == greedy([1], 100)
            assert len(outputs) < 50

    play(story)


def test_n_texts_stream_together() -> None:
    """Cumulative outputs have all texts, deltas only those with news; all end."""

    async def story() -> None:
        params = SamplingParams(n=3, seed=5, max_tokens=15)
        async with AsyncLLM(engine(FakeRunner(step_s=0.001), FakeTokenizer())) as llm:
            outputs = await collect(llm, [1] * 9, params)
            assert all([out.index for out in o.outputs] == [0, 1, 2] for o in outputs)
            texts: dict[int, str] = dict.fromkeys(range(3), "")
            for output in await collect(llm, [1] * 9, params, delta=True):
                for out in output.outputs:
                    texts[out.index] += out.text
        assert list(texts.values()) == [out.text for out in outputs[-1].outputs]
        assert len(set(texts.values())) == 3

    play(story)


def test_text_is_written_in_the_readers_thread() -> None:
    """Only requests with stop strings make the engine's thread detokenize."""

    async def story() -> None:
        tokenizer = FakeTokenizer()
        async with AsyncLLM(engine(tokenizer=tokenizer)) as llm:
            await collect(llm, [1], asks())
            assert tokenizer.threads == {threading.current_thread().name}
            await collect(llm, [1], asks(stop="x"))
            assert "engine" in tokenizer.threads

    play(story)


def test_an_idle_engine_wakes_for_a_request() -> None:
    """It sleeps between requests, using no time, and serves the next at once."""

    async def story() -> None:
        local = engine()
        async with AsyncLLM(local) as llm:
            await collect(llm, [1], asks())
            turn, turns = local.turn, 0

            def counted() -> object:
                nonlocal turns
                turns += 1
                return turn()

            local.turn = counted
            await asyncio.sleep(0.1)
            assert turns <= 2
            assert list((await collect(llm, [2], asks()))[-1].outputs[0].token_ids) == greedy(
                [2], 20
            )

    play(story)


def test_several_event_loops_and_engines_share_a_process() -> None:
    """Two engines, each read from two event loops in threads, give everybody his own text."""
    engines = [AsyncLLM(engine(FakeRunner([Story([1], [2 + i] * 9)]))) for i in range(2)]
    failures: list[BaseException] = []

    def read(at: int) -> None:
        async def story() -> None:
            for _ in range(5):
                outputs = await collect(engines[at], [1], asks(max_tokens=9))
                assert outputs[-1].outputs[0].token_ids == (2 + at,) * 9

        try:
            play(story)
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=read, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    async def close() -> None:
        for llm in engines:
            await llm.close()

    play(close)
