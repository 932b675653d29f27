"""`workbench chat`: a text that a person and a model write in turns."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from async_stories import Held, asks, eventually, play
from fake_language import EOS, FakeRunner, FakeTokenizer, Story, engine, greedy, text_of
from tmux_terminal import TMUX, Terminal
from typer.testing import CliRunner

from engine.demo import demo_model_folder
from engine.runtime.executor import EngineError
from workbench.chat_session import ChatSession, TextTooLongError, open_session
from workbench.cli import app


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
        held = Held(local, 20)
        session = ChatSession(local, asks(max_tokens=150))
        async with aclosing(session.turn(" fox")) as pieces:
            async for _ in pieces:
                break
        assert session.last.finish_reason == "abort"
        kept = session.last.output_tokens
        assert 0 < kept < 150
        await eventually(lambda: local.live == 0)
        held.go.set()
        await written(session, " dog")
        assert session.last.prompt_tokens == 1 + kept + 2
        await session.close()

    play(story)


def test_what_does_not_fit_the_context_is_forgotten() -> None:
    """The older part goes at once and aloud, so that answers fit and later turns hit again."""

    async def story() -> None:
        told: list[str] = []
        local = engine(FakeRunner(), FakeTokenizer(), max_model_len=100)
        session = ChatSession(local, asks(max_tokens=10), told.append)
        hits, tellings = [], []
        for _ in range(20):
            await written(session, " the fox jumps.")
            assert session.last.output_tokens == 10
            hits.append(session.last.cached_tokens)
            tellings.append(len(told))
        anew = [turn for turn in range(20) if not hits[turn]]
        assert len(told) == len(anew) - 1 >= 3  # the first turn is no telling
        assert [tellings[turn] - tellings[turn - 1] for turn in anew[1:]] == [1] * len(told)
        assert "has 101: the oldest 56 are forgotten" in told[0]  # 45 of 90 stay
        await session.close()

    play(story)


def test_an_answer_takes_what_room_the_prompt_leaves() -> None:
    """However many tokens are asked for, the prompt stays whole; it is said once."""

    async def story() -> None:
        told: list[str] = []
        local = engine(FakeRunner(), FakeTokenizer(), max_model_len=30)
        session = ChatSession(local, asks(max_tokens=29), told.append)
        await written(session, " the fox jumps." * 4)
        assert (session.last.prompt_tokens, session.last.output_tokens) == (20, 10)
        assert told == [
            "the model sees 30 tokens and the text has 20: the answer has 10 at most, not 29"
        ]
        with pytest.raises(TextTooLongError, match="36 tokens, and the model sees 30"):
            await written(session, " the fox jumps." * 7)
        session.forget()
        await written(session, " dog")
        assert (session.last.prompt_tokens, session.last.output_tokens) == (1, 29)
        assert len(told) == 1
        await session.close()

    play(story)


def test_a_model_that_cannot_chat_is_refused(tmp_path: Path) -> None:
    """Without a tokenizer there is no session, and a damaged one is not called missing."""
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        ChatSession(engine(FakeRunner()), asks())
    copy = tmp_path / "model"
    shutil.copytree(str(demo_model_folder("demo-draft")), copy)
    (copy / "tokenizer.json").write_text("[")
    with pytest.raises(EngineError, match="the file is damaged"):
        open_session(str(copy), asks(), device="cpu")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer\.json"):
        open_session(str(copy), asks(), device="cpu")


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (("--top-p", "0"), "--top-p must be in (0, 1], not 0"),
        (("--top-p", "nan"), "--top-p must be in (0, 1], not nan"),
        (("--top-p", "1.5"), "--top-p must be in (0, 1], not 1.5"),
        (("--temperature", "inf"), "--temperature must be 0 (greedy) or a finite positive"),
        (("--temperature", "nan"), "Invalid value for '--temperature': Input should be greater"),
        (("--seed", "9" * 23), "--seed must be None or in [-2^63, 2^63 - 1]"),
    ],
)
def test_a_flag_out_of_its_range_is_wrong_usage(flags: tuple[str, ...], allowed: str) -> None:
    """Exit code 2; the message names the option and the range."""
    result = CliRunner().invoke(app, ["chat", *flags])
    assert result.exit_code == 2
    assert allowed in result.stderr
    assert "defect" not in result.stderr


def chat(*flags: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "chat", "--device", "cpu", *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, preexec_fn=_heed_ctrl_c, **options,  # noqa: PLW1509 - no threads yet
    )  # fmt: skip


def _heed_ctrl_c() -> None:
    """What was started in the background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def test_bytes_that_are_no_text_are_replaced() -> None:
    """Latin-1 in a pipe is no reason to stop: each byte is U+FFFD, and stderr says so once."""
    pytest.importorskip("triton")
    process = chat("-q", "--max-tokens", "4")
    process.stdin.buffer.write(b"def f\xe9(x):\nreturn \xe9\xe8\n")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.strip()
    assert err == "[bytes that are no utf-8 are read as \N{REPLACEMENT CHARACTER}]\n"


def test_what_looks_like_a_command_is_not_continued() -> None:
    """Unknown commands are named; a path or a comment is text."""
    pytest.importorskip("triton")
    process = chat("--max-tokens", "2")
    _, err = process.communicate("/nope\n/quit now\n/* a */\n/usr/bin/env\n", timeout=120)
    assert process.returncode == 0, err
    assert "unknown command /nope" in err
    assert "unknown command /quit now" in err
    assert err.count("unknown") == 2
    assert err.count("prefix hit") == 2


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


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
def test_ctrl_c_on_a_terminal_ends_nothing_but_what_is_going_on(tmp_path: Path) -> None:
    """It stops an answer, then drops what is typed and says how to leave, which is with code 0."""
    pytest.importorskip("triton")
    terminal = Terminal(tmp_path, height=400)  # what was typed stays in sight
    try:
        terminal.command(
            "chat",
            "--device",
            "cpu",
            "--temperature",
            "0",
            "--max-tokens",
            "1900;",
            "echo",
            "code $?",
        )
        terminal.until("/quit or Ctrl-D ends.", "\n>")
        terminal.keys("class A:", "Enter")
        while not terminal.until("> class A:").partition("> class A:")[2].strip():
            time.sleep(0.05)  # until the model writes
        terminal.keys("C-c")
        terminal.until("interrupted]\n>")
        terminal.keys("def half\\", "Enter", "of a text", "C-c")
        terminal.until("Nothing was sent. /quit or Ctrl-D ends.\n>")
        terminal.keys("/new", "Enter", "C-d")
        shown = terminal.until("code 0")
        assert shown.count("tokens ·") == 1, "what was dropped is not answered"
        assert "Traceback" not in shown
    finally:
        terminal.close()
