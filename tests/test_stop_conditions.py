"""Where a text ends: stop strings and tokens, the model's end, limits, rows without a token."""

from __future__ import annotations

import random

import pytest
from fake_language import (
    EOS,
    UFOX,
    FakeRunner,
    FakeTokenizer,
    Story,
    engine,
    fails_once,
    greedy,
    text_of,
)

from engine import LLM, SamplingParams
from engine.core.results import MAX_FAILURES
from engine.runtime.executor import StepFailedError
from engine.runtime.stop_strings import StopStrings

PROMPT = [1, 2, 3]


def random_text(rng: random.Random, most: int) -> str:
    return "".join(rng.choice("abc") for _ in range(rng.randint(0, most)))


def cut(rng: random.Random, text: str) -> list[str]:
    """The text in random pieces, some of them empty."""
    places = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 6)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def cases(count: int) -> list[tuple[random.Random, str, list[str]]]:
    rng = random.Random()
    found = []
    for _ in range(count):
        stops = [text for _ in range(rng.randint(1, 3)) if (text := random_text(rng, 4))]
        found.append((rng, random_text(rng, 20), stops))
    return found


def first_end(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What stands before the string that is complete first, and that string, by trying all."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


def test_pieces_do_not_matter() -> None:
    """However a text is cut, it ends before the stop string that is complete first."""
    for rng, text, stops in cases(400):
        strings = StopStrings(stops)
        for piece in cut(rng, text):
            strings.push(piece)
        assert (strings.text, strings.found) == first_end(text, stops), (text, stops)


def test_what_is_settled_is_never_taken_back_and_nothing_else_is_held() -> None:
    """Settled characters stay; the held tail is what a stop string may begin with."""
    for rng, text, stops in cases(400):
        strings, shown = StopStrings(stops), ""
        for piece in cut(rng, text):
            ended = strings.push(piece)
            settled = strings.text[: strings.settled]
            assert settled.startswith(shown)
            shown = settled
            held = strings.text[strings.settled :]
            assert not ended or not held
            assert not held or any(len(s) > len(held) and s.startswith(held) for s in stops)
        assert first_end(text, stops)[0].startswith(shown)


def test_exempt_pieces_end_nothing() -> None:
    """A string complete in an exempt piece is text; one that only begins there ends it later."""
    strings = StopStrings(["ab"])
    assert not strings.push("xaba", exempt=True)
    assert strings.settled == 3
    assert strings.push("b")
    assert strings.text == "xab"


def test_an_empty_stop_string_is_refused() -> None:
    """It would end every text before it begins."""
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])


def run(tokens: list[int], runner: FakeRunner | None = None, **params: object) -> object:
    """The text that follows PROMPT when the model says `tokens`, greedily."""
    runner = runner or FakeRunner()
    runner.stories.append(Story(PROMPT, tokens))
    settings = {"max_tokens": len(tokens), "temperature": 0.0} | params
    with LLM(engine(runner, FakeTokenizer())) as llm:
        return llm.generate(PROMPT, SamplingParams(**settings))[0].outputs[0]


def test_a_stop_string_over_several_tokens_is_cut_from_the_text() -> None:
    """The tokens stay, up to the one that completes it; what was held back is shown before it."""
    out = run([15, 11, 16, 11, 12, 2, 2], stop=["STOP"])  # " a" "ST" "b" "ST" "OP"
    assert out.token_ids == (15, 11, 16, 11, 12)
    assert out.text == " aSTb"
    assert (out.finish_reason, out.stop_reason) == ("stop", "STOP")


def test_a_stop_string_inside_a_token_ends_the_text_inside_it() -> None:
    """The rest of the token is cut as well."""
    out = run([15, 18, 2], stop="b")  # " a" "abc"
    assert (out.text, out.token_ids, out.stop_reason) == (" aa", (15, 18), "b")


def test_a_stop_string_of_split_characters_is_found() -> None:
    """Bytes of one character in several tokens are whole before they are compared."""
    out = run([*UFOX, 2, 2], stop=["🦊"])
    assert (out.text, out.token_ids) == ("ü", tuple(UFOX))


def test_the_prompt_does_not_begin_a_stop_string() -> None:
    """Only generated text is searched."""
    runner = FakeRunner([Story([11], [12, 2, 2])])  # "ST" | "OP"
    llm = LLM(engine(runner, FakeTokenizer()))
    out = llm.generate([11], SamplingParams(max_tokens=3, temperature=0, stop=["STOP"]))[0]
    assert (out.outputs[0].text, out.outputs[0].finish_reason) == ("OP fox fox", "length")


def test_a_stop_token_is_kept_as_a_token_and_not_as_text() -> None:
    """Its id is the stop reason; tokens after it do not exist."""
    out = run([2, 3, 8, 2], stop_token_ids=[8])
    assert (out.text, out.token_ids) == (" fox dog", (2, 3, 8))
    assert (out.finish_reason, out.stop_reason) == ("stop", 8)


def test_the_end_of_text_ends_a_text_unless_ignored() -> None:
    """The model's own end has no stop reason; ignored, it is a token like others."""
    out = run([2, EOS, 3])
    assert (out.text, out.token_ids, out.finish_reason, out.stop_reason) == (
        " fox", (2, EOS), "stop", None,
    )  # fmt: skip
    out = run([2, EOS, 3], ignore_eos=True)
    assert (out.text, out.token_ids, out.finish_reason) == (" fox dog", (2, EOS, 3), "length")


def test_an_ignored_end_of_text_may_still_be_a_stop_token() -> None:
    """What is asked for explicitly counts, and says so."""
    out = run([2, EOS, 3], ignore_eos=True, stop_token_ids=[EOS])
    assert (out.token_ids, out.finish_reason, out.stop_reason) == ((2, EOS), "stop", EOS)


@pytest.mark.parametrize("least", [0, 1, 2, 3, 4])
def test_min_tokens_come_before_any_end(least: int) -> None:
    """Neither stop tokens nor the end of text nor stop strings end the first `min_tokens`."""
    out = run([2, EOS, 8, EOS, 3, 8], stop_token_ids=[8], min_tokens=least)
    assert out.token_ids == (2, EOS, 8, EOS, 3, 8)[: {0: 2, 1: 2, 2: 3, 3: 4, 4: 6}[least]]
    out = run([11, 12, 15, 14, 15], stop=["STOP", " a"], min_tokens=least)
    assert len(out.token_ids) == {0: 2, 1: 2, 2: 3, 3: 5, 4: 5}[least]


def test_a_stop_at_the_last_token_is_a_stop() -> None:
    """STOP beats LENGTH, for tokens and strings, even at the first token."""
    assert run([2, 8], stop_token_ids=[8]).finish_reason == "stop"
    assert run([8], stop=[" END"]).finish_reason == "stop"
    assert run([2, 8]).finish_reason == "length"


def test_what_is_held_back_is_shown_at_the_end() -> None:
    """A text that reaches its limit inside a possible stop string has lost nothing."""
    out = run([15, 11], stop=["STOP"])
    assert (out.text, out.finish_reason, out.stop_reason) == (" aST", "length", None)
    out = run([2, 21, 22], stop=["🦊"])  # half a character
    assert out.text == " fox\N{REPLACEMENT CHARACTER}"


def test_requests_stop_each_for_themselves() -> None:
    """One's stop token and strings are the others' text, in whatever order they come and go."""
    prompts = [[1, i, i] for i in range(3, 15)]
    wishes = [{"stop_token_ids": [t]} for t in (5, 9, 20)] + [{"stop": [s]} for s in ("a", "ST")]
    params = [
        SamplingParams(max_tokens=30, temperature=0, **wishes[at % len(wishes)])
        for at in range(len(prompts))
    ]
    with LLM(engine(tokenizer=FakeTokenizer())) as llm:
        together = llm.generate(prompts, params)
        for prompt, wish, output in zip(prompts, params, together, strict=True):
            out, whole = output.outputs[0], greedy(prompt, 30)
            if wish.stop:
                ends = [n for n in range(1, 31) if wish.stop[0] in text_of(whole[:n])]
                assert wish.stop[0] not in out.text
            else:
                ends = [n + 1 for n, i in enumerate(whole) if i == wish.stop_token_ids[0]]
            assert len(out.token_ids) == min(ends, default=30)
            assert list(out.token_ids) == whole[: len(out.token_ids)]


@pytest.mark.parametrize("pages", [24, 256])
def test_retracted_texts_go_on_where_they_were(pages: int) -> None:
    """Running out of pages changes no token, no text, and no log-probability's place."""
    runner = FakeRunner()
    prompts = [[1 + i % 20, 2, 3, 4, 5] for i in range(6)]
    params = SamplingParams(max_tokens=40, temperature=0, stop=["🦊x"], logprobs=1)
    llm = LLM(engine(runner, FakeTokenizer(), num_pages=pages, schedule_conservativeness=0.01))
    outputs = llm.generate(prompts, params)
    again = sum(len(prompt) for prompt in prompts) < runner.prefilled
    assert again == (pages == 24), "this did not retract"
    for prompt, output in zip(prompts, outputs, strict=True):
        out = output.outputs[0]
        assert list(out.token_ids) == greedy(prompt, 40)
        assert out.text == text_of([*prompt, *out.token_ids])[len(text_of(prompt)) :]
        assert [next(iter(entry)) for entry in out.logprobs] == list(out.token_ids)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("plans", [1, 2])
def test_a_row_without_a_token_ends_its_request_alone(count: int, plans: int) -> None:
    """It keeps what it had and says what happened; the others' texts are undisturbed."""
    runner = FakeRunner()
    runner.nan_at.add((1, count))
    prompts = [[1, 2], [3, 4], [5, 6]]
    llm = LLM(engine(runner, FakeTokenizer(), max_plans_in_flight=plans))
    outputs = [o.outputs[0] for o in llm.generate(prompts, SamplingParams(temperature=0))]
    assert [o.finish_reason for o in outputs] == ["length", "error", "length"]
    assert f"output token {count + 1}" in outputs[1].error
    assert list(outputs[1].token_ids) == greedy(prompts[1], 16)[:count]
    for at in (0, 2):
        assert list(outputs[at].token_ids) == greedy(prompts[at], 16)
        assert outputs[at].error is None


def test_a_failed_step_is_done_again() -> None:
    """One failure changes no token."""
    runner = FakeRunner()
    runner.on_launch = fails_once(3)
    llm = LLM(engine(runner, FakeTokenizer()))
    out = llm.generate([1, 2], SamplingParams(temperature=0, logprobs=0))[0].outputs[0]
    assert list(out.token_ids) == greedy([1, 2], 16)
    assert len(out.logprobs) == 16


def test_a_request_whose_steps_always_fail_ends_with_their_error() -> None:
    """After MAX_FAILURES it gives up, and the engine serves the next."""
    runner, failures = FakeRunner(), 0

    def on_launch(plan: object) -> None:
        nonlocal failures
        if failures < MAX_FAILURES:
            failures += 1
            raise StepFailedError("out of memory: 12 GiB")

    runner.on_launch = on_launch
    llm = LLM(engine(runner, max_plans_in_flight=1))
    out = llm.generate([1, 2], SamplingParams(temperature=0))[0].outputs[0]
    assert (out.finish_reason, out.error) == ("error", "out of memory: 12 GiB")
    out = llm.generate([1, 2], SamplingParams(temperature=0))[0].outputs[0]
    assert list(out.token_ids) == greedy([1, 2], 16)


def test_nothing_is_detokenized_before_it_must_be() -> None:
    """Without stop strings a text is decoded once, at its end, whatever its length."""
    tokenizer = FakeTokenizer()
    llm = LLM(engine(tokenizer=tokenizer))
    llm.generate([[1, 2], [3, 4]], SamplingParams(max_tokens=100, temperature=0))
    assert tokenizer.decoded <= 4
