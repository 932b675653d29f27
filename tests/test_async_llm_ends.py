"""How the streams of `AsyncLLM` end, and that the end of one disturbs no other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
import tiny_models
from async_stories import PATIENCE_S, Held, asks, collect, eventually, play
from fake_language import FakeRunner, FakeTokenizer, dies, engine, greedy

from engine import AsyncLLM
from engine.runtime.executor import EngineError, ExecutorDiedError
from engine.runtime.local_engine import RequestRejectedError


def test_cancelling_a_reader_aborts_its_request_only() -> None:
    """The request leaves the engine, which steps no more for it; others get the same tokens."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.001)
        local = engine(runner)
        held = Held(local, 12)
        async with AsyncLLM(local) as llm:
            long = asyncio.create_task(collect(llm, [9], asks(max_tokens=190)))
            other = asyncio.create_task(collect(llm, [1, 2], asks(max_tokens=60)))
            await eventually(lambda: local.live == 2 and held.waits)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            await eventually(lambda: local.live == 1)
            launched = runner.launched
            held.go.set()
            assert list((await other)[-1].outputs[0].token_ids) == greedy([1, 2], 60)
            assert 0 in runner.planned[launched - 1]
            assert all(ids == {1} for ids in runner.planned[launched:])
            assert local.live == 0

    play(story)


def test_closing_a_generator_aborts_its_request() -> None:
    """Leaving `async with aclosing(...)` early ends the request."""

    async def story() -> None:
        local = engine(FakeRunner(step_s=0.001))
        Held(local, 12)
        async with AsyncLLM(local) as llm:
            async with aclosing(llm.generate([9], asks(max_tokens=190))) as outputs:
                async for output in outputs:
                    if len(output.outputs[0].token_ids) > 3:
                        break
            await eventually(lambda: local.live == 0)

    play(story)


def test_an_engine_that_is_closed_finishes_nothing_for_a_reader_who_left() -> None:
    """Closing right after leaving a stream takes as long as steps in flight, not as the text."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.02)
        llm = AsyncLLM(engine(runner))
        async with aclosing(llm.generate([9], asks(max_tokens=190))) as outputs:
            async for _ in outputs:
                break
        launched = runner.launched
        await llm.close()
        assert runner.launched <= launched + 5

    play(story)


def test_an_abort_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked does not wait for ever, and the streams end with the same error."""

    async def story() -> None:
        local = engine(FakeRunner(step_s=0.001))
        held = Held(local, 12)
        async with AsyncLLM(local) as llm:
            reader = asyncio.create_task(collect(llm, [9], asks(max_tokens=190), request_id="mine"))
            await eventually(lambda: held.waits)

            def broken(_: object) -> bool:
                monkeypatch.undo()  # it fails once: what cleans up afterwards can abort
                raise RuntimeError("cannot abort")

            monkeypatch.setattr(local, "abort", broken)
            with pytest.raises(RuntimeError, match="cannot abort"):
                await llm.abort("mine")
            with pytest.raises(EngineError, match="cannot abort"):
                await reader

    play(story)


@pytest.mark.parametrize("n", [1, 3])
def test_abort_ends_a_stream_with_what_there_is(n: int) -> None:
    """Its last output says so and has a beginning of the text; a second abort finds nobody."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.001)
        local = engine(runner, FakeTokenizer())
        held = Held(local, 12)
        async with AsyncLLM(local) as llm:
            params = asks(max_tokens=190, n=n)
            stream = asyncio.create_task(collect(llm, [9] * 9, params, request_id="mine"))
            other = asyncio.create_task(collect(llm, [1, 2], asks(max_tokens=60)))
            await eventually(lambda: local.live == n + 1 and held.waits)
            assert await llm.abort("mine")
            launched = runner.launched
            held.go.set()
            last = (await stream)[-1]
            assert last.finished
            assert [out.finish_reason for out in last.outputs] == ["abort"] * n
            for out in last.outputs:
                assert list(out.token_ids) == greedy([9] * 9, len(out.token_ids))
            assert not await llm.abort("mine")
            assert not await llm.abort("nobody")
            assert list((await other)[-1].outputs[0].token_ids) == greedy([1, 2], 60)
            assert len(runner.planned[launched - 1]) >= n
            assert len(set().union(*runner.planned[launched:])) == 1, "it steps for the other only"

    play(story)


def test_an_abort_before_the_first_token_is_an_end_too() -> None:
    """Also of texts that were still waiting for their prompt."""

    async def story() -> None:
        local = engine(FakeRunner(), FakeTokenizer())
        held = Held(local, 1)
        async with AsyncLLM(local) as llm:
            stream = asyncio.create_task(collect(llm, [9] * 9, asks(n=3), request_id="mine"))
            await eventually(lambda: held.waits)  # the step that computes the prompt is launched
            assert await llm.abort("mine")
            (last,) = await stream
            assert [out.finish_reason for out in last.outputs] == ["abort"] * 3
            assert {out.token_ids for out in last.outputs} == {()}

    play(story)


def test_a_refused_prompt_harms_nobody() -> None:
    """Its stream raises, the others go on; so do bad prompts and ids in use."""

    async def story() -> None:
        local = engine(FakeRunner(step_s=0.001))
        held = Held(local, 12)
        async with AsyncLLM(local) as llm:
            other = asyncio.create_task(collect(llm, [1], asks(max_tokens=60), request_id="one"))
            await eventually(lambda: held.waits)
            with pytest.raises(RequestRejectedError, match="at most 200 fit"):
                await collect(llm, [1] * 300)
            with pytest.raises(ValueError, match="the prompt is empty"):
                await collect(llm, [])
            with pytest.raises(ValueError, match="text needs a tokenizer"):
                await collect(llm, "the fox")
            with pytest.raises(ValueError, match="request id 'one' is in use"):
                await collect(llm, [2], request_id="one")
            held.go.set()
            assert list((await other)[-1].outputs[0].token_ids) == greedy([1], 60)
            again = await collect(llm, [2], asks(), request_id="one")
            assert list(again[-1].outputs[0].token_ids) == greedy([2], 20)

    play(story)


def test_a_row_without_a_token_ends_its_stream_alone() -> None:
    """Its last output says what happened; the engine serves on."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.001)
        runner.nan_at.add((0, 4))
        async with AsyncLLM(engine(runner)) as llm:
            bad, good = await asyncio.gather(collect(llm, [1], asks()), collect(llm, [2], asks()))
            out = bad[-1].outputs[0]
            assert (out.finish_reason, len(out.token_ids)) == ("error", 4)
            assert "not numbers" in out.error
            assert list(good[-1].outputs[0].token_ids) == greedy([2], 20)
            assert llm.error is None

    play(story)


def test_a_dead_device_is_raised_in_every_stream_and_later() -> None:
    """Streams that run, streams that come, texts that wait: all hear of it; close still works."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.001)
        runner.on_launch = dies(30)
        llm = AsyncLLM(engine(runner))
        long = asks(max_tokens=190)
        streams = [collect(llm, [1 + i] * 9, long) for i in range(5)]
        ends = await asyncio.gather(*streams, return_exceptions=True)
        assert [type(end) for end in ends] == [ExecutorDiedError] * 5
        assert isinstance(llm.error, ExecutorDiedError)
        with pytest.raises(ExecutorDiedError, match="the device is lost"):
            await collect(llm, [1])
        assert not await llm.abort("anything")
        await llm.close()
        assert runner.closed == 1

    play(story)


def test_a_stream_that_comes_while_the_device_dies_hears_of_it() -> None:
    """So do those behind it, and an abort gets its answer."""

    async def story() -> None:
        runner, dying, sent = FakeRunner(), threading.Event(), threading.Event()

        def on_launch(plan: object) -> None:
            dying.set()
            assert sent.wait(PATIENCE_S)
            raise ExecutorDiedError("the device is lost")

        runner.on_launch = on_launch
        llm = AsyncLLM(engine(runner))
        early = asyncio.create_task(collect(llm, [1], asks(), request_id="early"))
        await eventually(dying.is_set)
        late = [asyncio.create_task(collect(llm, [i], asks(n=2))) for i in (2, 3)]
        await eventually(lambda: len(llm._inbox) == 2)
        abort = asyncio.create_task(llm.abort("early"))
        await eventually(lambda: len(llm._inbox) == 3)
        sent.set()
        for end in await asyncio.gather(early, *late, return_exceptions=True):
            assert isinstance(end, ExecutorDiedError)
        assert not await abort
        await llm.close()

    play(story)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_streams_end_even_if_the_device_cannot_be_let_go() -> None:
    """A runner that fails to close after its device was lost keeps nobody waiting."""

    async def story() -> None:
        runner = FakeRunner()
        runner.on_launch = dies(3)

        def close() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        runner.close = close
        llm = AsyncLLM(engine(runner))
        with pytest.raises(ExecutorDiedError):
            await collect(llm, [1], asks())
        await llm.close()

    play(story)


def test_an_abort_that_nobody_waits_for_harms_nobody() -> None:
    """Who asked for it may be cancelled before the engine gets round to it; the request ends."""

    async def story() -> None:
        runner, held, go = FakeRunner(step_s=0.001), threading.Event(), threading.Event()

        def on_launch(plan: object) -> None:
            if runner.launched == 3:
                held.set()
                assert go.wait(PATIENCE_S)

        runner.on_launch = on_launch
        async with AsyncLLM(engine(runner)) as llm:
            stream = asyncio.create_task(
                collect(llm, [1], asks(max_tokens=150), request_id="first")
            )
            other = asyncio.create_task(collect(llm, [2], asks()))
            await eventually(held.is_set)
            abort = asyncio.create_task(llm.abort("first"))
            await eventually(lambda: bool(llm._inbox))
            abort.cancel()
            await asyncio.gather(abort, return_exceptions=True)
            go.set()
            assert (await stream)[-1].outputs[0].finish_reason == "abort"
            assert list((await other)[-1].outputs[0].token_ids) == greedy([2], 20)
            assert llm.error is None

    play(story)


def test_an_unexpected_error_is_raised_in_every_stream() -> None:
    """A bug in the engine's thread ends no stream silently."""

    async def story() -> None:
        runner = FakeRunner()

        def on_launch(plan: object) -> None:
            raise KeyError("row 7")

        runner.on_launch = on_launch
        llm = AsyncLLM(engine(runner))
        streams = (collect(llm, [1 + i] * 9, asks(n=2)) for i in range(3))
        for end in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(end, EngineError)
            assert "row 7" in str(end)
        await llm.close()

    play(story)


def test_closing_ends_all_streams() -> None:
    """They end as aborted; closing again does nothing, and new requests are errors."""

    async def story() -> None:
        runner = FakeRunner(step_s=0.001)
        local = engine(runner)
        held = Held(local, 12)
        llm = AsyncLLM(local)
        streams = [
            asyncio.create_task(collect(llm, [1 + i] * 9, asks(max_tokens=190, n=1 + i % 2)))
            for i in range(4)
        ]
        await eventually(lambda: local.live == 6 and held.waits)
        await asyncio.gather(llm.close(), llm.close())
        await llm.close()
        for outputs in await asyncio.gather(*streams):
            assert {out.finish_reason for out in outputs[-1].outputs} == {"abort"}
        assert runner.closed == 1
        assert runner.registered == {}
        with pytest.raises(EngineError, match="the engine is closed"):
            await collect(llm, [1])

    play(story)


def test_no_stream_hangs_however_late_it_comes() -> None:
    """Requests and aborts that race with closing end or raise, all of them."""

    async def one(pause_s: float) -> None:
        llm = AsyncLLM(engine(FakeRunner()))

        async def late() -> None:
            await asyncio.sleep(pause_s)
            await collect(llm, [1, 2], asks(max_tokens=150), request_id="late")

        task = asyncio.create_task(late())
        abort = asyncio.create_task(llm.abort("late"))
        await asyncio.sleep(0.002)
        await asyncio.gather(llm.close(), abort)
        (end,) = await asyncio.gather(task, return_exceptions=True)
        assert end is None or "closed" in str(end)

    async def story() -> None:
        for at in range(20):
            await one(at * 0.0002)

    play(story)


def test_a_loop_that_was_closed_leaves_the_engine_serving() -> None:
    """Streams of an event loop that died are forgotten; others are served."""
    llm = AsyncLLM(engine(FakeRunner(step_s=0.001)))

    async def abandon() -> None:
        stream = llm.generate([1], asks(max_tokens=190))
        await anext(stream)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.close()

    async def story() -> None:
        outputs = await collect(llm, [2], asks())
        assert list(outputs[-1].outputs[0].token_ids) == greedy([2], 20)
        await llm.close()

    play(story)


def test_real_streams_do_not_notice_an_abort(tmp_path: Path) -> None:
    """On a tiny model: one of three is aborted in the middle, the others' tokens are unchanged."""
    pytest.importorskip("triton")
    model = tiny_models.make("llama", tmp_path)
    tiny_models.save_tokenizer(tmp_path)
    prompts = [[5, 6, 7], [9] * 20, [7, 8]]

    async def story() -> None:
        options = dict(device="cpu", num_pages=64, max_running_requests=8)
        async with AsyncLLM(tmp_path, **options) as llm:
            held = Held(llm._engine, 12)
            long = asks(max_tokens=200, ignore_eos=True)
            victim = asyncio.create_task(collect(llm, prompts[1], long, request_id="victim"))
            rest = [
                asyncio.create_task(collect(llm, prompt, asks(max_tokens=12, ignore_eos=True)))
                for prompt in (prompts[0], prompts[2])
            ]
            await eventually(lambda: llm._engine.live == 3 and held.waits)
            assert await llm.abort("victim")
            held.go.set()
            assert (await victim)[-1].outputs[0].finish_reason == "abort"
            for prompt, outputs in zip((prompts[0], prompts[2]), rest, strict=True):
                ids = list((await outputs)[-1].outputs[0].token_ids)
                assert ids == tiny_models.greedy(model, prompt, 12)

    play(story)
