"""`workbench chat`: a text that a person and a model write in turns."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing

import pytest
from async_stories import asks, play
from fake_language import EOS, FakeRunner, FakeTokenizer, Story, engine, greedy, text_of

from engine.runtime.executor import EngineError
from workbench.chat_session import ChatSession


async def written(session: ChatSession, text: str) -> str:
    return "".join([piece async for piece in session.turn(text)])


def test_the_model_sees_all_that_was_written() -> None:
    """A later turn continues text and answers; what was computed before is a prefix hit."""

    async def story() -> None:
        session = ChatSession(engine(FakeRunner(), FakeTokenizer()), asks(max_tokens=9))
        first = FakeTokenizer().encode(" the fox jumps.")
        answer = greedy(first, 9)
        assert await written(session, " the fox jumps.") == text_of(answer)
        assert session.last.cached_tokens == 0
        assert session.last.finish_reason == "length"
        whole = [*first, *answer, *FakeTokenizer().encode("\n the dog")]
        assert await written(session, " the dog") == text_of(greedy(whole, 9))
        figures = session.last
        assert (figures.prompt_tokens, figures.output_tokens) == (len(whole), 9)
        known = len(first) + len(answer) - 1  # the last token's KV is never written
        assert figures.cached_tokens == known // 4 * 4
        assert f"prefix hit {figures.cached_tokens} of {len(whole)}" in figures.line()
        session.forget()
        assert await written(session, " the fox jumps.") == text_of(answer)
        await session.close()

    play(story)


def test_a_text_that_ended_is_not_continued_on_a_new_line() -> None:
    """After the model's own end of text the next text follows at once."""

    async def story() -> None:
        prompt = FakeTokenizer().encode(" dog")
        runner = FakeRunner([Story(prompt, [1, 2, EOS])])
        session = ChatSession(engine(runner, FakeTokenizer()), asks(max_tokens=9))
        assert await written(session, " dog") == " the fox"
        assert session.last.finish_reason == "stop"
        assert session.last.line().endswith("ended]")
        await written(session, " fox")
        assert session.last.prompt_tokens == len(prompt) + 3 + 1
        await session.close()

    play(story)


def test_an_interrupted_answer_stays() -> None:
    """What had been written is part of the text; the engine stops and serves the next turn."""

    async def story() -> None:
        local = engine(FakeRunner(step_s=0.002), FakeTokenizer())
        session = ChatSession(local, asks(max_tokens=150))
        async with aclosing(session.turn(" fox")) as pieces:
            async for _ in pieces:
                break
        assert session.last.finish_reason == "abort"
        kept = session.last.output_tokens
        assert 0 < kept < 150
        deadline = time.monotonic() + 30
        while local.live and time.monotonic() < deadline:  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0.001)
        assert not local.live
        await written(session, " dog")
        assert session.last.prompt_tokens == 1 + kept + 2
        await session.close()

    play(story)


def test_what_does_not_fit_the_context_is_forgotten() -> None:
    """The oldest tokens go, so that prompt and answer always fit."""

    async def story() -> None:
        local = engine(FakeRunner(), FakeTokenizer(), max_model_len=40)
        session = ChatSession(local, asks(max_tokens=10))
        for _ in range(6):
            await written(session, " the fox jumps.")
        assert session.last.prompt_tokens == 30
        assert session.last.output_tokens == 10
        await session.close()

    play(story)


def test_a_model_that_cannot_chat_is_refused() -> None:
    """Without a tokenizer, or without room for a prompt, there is no session."""
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        ChatSession(engine(FakeRunner()), asks())
    with pytest.raises(EngineError, match="30 leave no room"):
        ChatSession(engine(FakeRunner(), FakeTokenizer(), max_model_len=30), asks(max_tokens=30))


def chat(*flags: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "chat", "--device", "cpu", *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, **options,
    )  # fmt: skip


def test_a_pipe_is_answered_line_by_line() -> None:
    """The text alone goes to stdout, figures to stderr, and the end of the input ends it."""
    pytest.importorskip("triton")
    process = chat("--temperature", "0", "--max-tokens", "8")
    lines = "def read(self):\n/new\nimport os\\\nimport\n/quit\nnever\n"
    out, err = process.communicate(lines, timeout=120)
    assert process.returncode == 0, err
    assert err.count("prefix hit 0 of") == 2
    assert "tokens/s" in err
    assert "> " not in out
    assert out.strip()


def test_ctrl_c_ends_a_piped_chat() -> None:
    """The interrupted answer is ended with its figures, and the exit code is 130."""
    pytest.importorskip("triton")
    process = chat("--max-tokens", "1900", "--temperature", "0")
    process.stdin.write("class A:\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted]" in err
    assert "Traceback" not in err
