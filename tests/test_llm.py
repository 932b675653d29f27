"""`LLM.generate`: prompts in, texts out, in order, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from fake_language import (
    FakeRunner,
    FakeTokenizer,
    Story,
    dies,
    engine,
    greedy,
    log_softmax,
    logits_after,
    text_of,
)

import engine as engine_package
from engine import LLM, SamplingParams
from engine.runtime.executor import EngineError, ExecutorDiedError
from engine.runtime.local_engine import RequestRejectedError

GREEDY = SamplingParams(temperature=0)


def test_the_public_names_do_not_import_torch() -> None:
    """`from engine import LLM, AsyncLLM, SamplingParams` leaves torch and asyncio's users alone."""
    code = (
        "import sys, engine\n"
        "assert not [m for m in sys.modules if m.startswith('engine.runtime')]\n"
        "from engine import LLM, AsyncLLM, SamplingParams\n"
        "from engine import EngineError, ExecutorDiedError, RequestRejectedError\n"
        "assert 'torch' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "assert {'LLM', 'AsyncLLM', 'SamplingParams'} <= set(dir(engine))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = engine_package.LMM


def test_outputs_come_in_the_order_of_the_prompts() -> None:
    """Each has its own prompt's text, whatever the lengths and the order in which they end."""
    prompts = [[1 + i % 28, 2, 3][: 1 + i % 3] * (1 + i % 7) for i in range(40)]
    params = [SamplingParams(temperature=0, max_tokens=1 + (7 * i) % 23) for i in range(40)]
    runner = FakeRunner()
    with LLM(engine(runner, FakeTokenizer())) as llm:
        outputs = llm.generate(prompts, params)
    assert len({output.request_id for output in outputs}) == 40
    for prompt, asked, output in zip(prompts, params, outputs, strict=True):
        expected = greedy(prompt, asked.max_tokens)
        out = output.outputs[0]
        assert (list(output.prompt_token_ids), output.prompt) == (prompt, None)
        assert list(out.token_ids) == expected
        assert out.text == text_of([*prompt, *expected])[len(text_of(prompt).rstrip("\ufffd")) :]
        assert output.finished
        assert out.finished
        assert (out.index, out.finish_reason, out.error, out.logprobs) == (0, "length", None, None)
    assert runner.largest > 8, "they did not run together"


def test_a_prompt_may_have_many_forms() -> None:
    """Text, ids, arrays and mappings, alone or in a list, are the same prompt."""
    llm = LLM(engine(tokenizer=FakeTokenizer()))
    text, ids = " the fox", [1, 2]
    forms = [
        text, ids, tuple(ids), np.array(ids), {"prompt": text}, {"prompt_token_ids": ids},
        [text], [ids], [np.array(ids)], [{"prompt": text}], np.array([ids]),
        [{"prompt_token_ids": np.array(ids)}],
    ]  # fmt: skip
    for form in forms:
        (output,) = llm.generate(form, GREEDY)
        assert list(output.outputs[0].token_ids) == greedy(ids, 16)
        assert output.prompt_token_ids == (1, 2)
    assert len(llm.generate([text, ids, {"prompt": text}])) == 3
    assert llm.generate([]) == []


def test_a_text_has_the_prompt_that_was_given() -> None:
    """A prompt given as text comes back with its ids."""
    (output,) = LLM(engine(tokenizer=FakeTokenizer())).generate(" the fox", GREEDY)
    assert (output.prompt, output.prompt_token_ids) == (" the fox", (1, 2))


LIMIT = "with at least one token of output at most 200 fit"
BAD_PROMPTS = [
    ([], ValueError, "prompt 1: the prompt is empty"),
    ("", ValueError, "prompt 1: the prompt is empty"),
    ([1, 30], ValueError, r"prompt 1: prompt_token_ids must be in \[0, 30\), got 30"),
    ([-1], ValueError, r"must be in \[0, 30\)"),
    ([1, 2.0], TypeError, "prompt 1: token ids must be integers, got 2.0"),
    ([1, True], TypeError, "token ids must be integers, got True"),
    (3.5, TypeError, "prompt 1: a prompt must be text, token ids or a mapping"),
    (b"fox", TypeError, "a prompt must be text, token ids or a mapping"),
    ({"prompt": 3}, ValueError, "prompt 1: a prompt given as a mapping"),
    ({"text": "x"}, ValueError, r"got keys \['text'\]"),
    ([1] * 200, RequestRejectedError, f"prompt 1: the prompt has 200 tokens; {LIMIT}"),
]


@pytest.mark.parametrize(("prompt", "kind", "message"), BAD_PROMPTS)
def test_a_bad_prompt_is_named_before_anything_starts(
    prompt: object, kind: type[Exception], message: str
) -> None:
    """The error says which prompt and why; the good ones beside it were not begun."""
    runner = FakeRunner()
    llm = LLM(engine(runner, FakeTokenizer()))
    with pytest.raises(kind, match=message):
        llm.generate([[1, 2], prompt], GREEDY)
    assert runner.launched == 0
    assert list(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == greedy([1, 2], 16)


def test_what_the_cache_cannot_hold_is_refused_with_its_size() -> None:
    """Prompt and max_tokens that need more slots than there are: the error says how many."""
    llm = LLM(engine(num_pages=10))
    assert len(llm.generate([1] * 20, SamplingParams(max_tokens=21))[0].outputs[0].token_ids) == 21
    with pytest.raises(RequestRejectedError, match=r"20 tokens and max_tokens is 22.*41 at most"):
        llm.generate([1] * 20, SamplingParams(max_tokens=22))
    llm = LLM(engine(chunked_prefill=False))
    with pytest.raises(RequestRejectedError, match="without chunked_prefill a step computes 64"):
        llm.generate([1] * 65)


def test_a_text_ends_where_the_context_does() -> None:
    """More tokens than fit are not an error: the text ends with "length"."""
    (output,) = LLM(engine()).generate([1] * 190, SamplingParams(max_tokens=50))
    assert len(output.outputs[0].token_ids) == 10
    assert output.outputs[0].finish_reason == "length"


def test_without_a_tokenizer_there_are_only_ids() -> None:
    """Texts are empty; text prompts and stop strings are errors that say so."""
    llm = LLM(engine())
    out = llm.generate([1, 2], SamplingParams(temperature=0, logprobs=0))[0].outputs[0]
    assert (out.text, out.logprobs[0][out.token_ids[0]].decoded_token) == ("", None)
    with pytest.raises(ValueError, match="text needs a tokenizer, but the model has no tokenizer"):
        llm.generate(" the fox")
    with pytest.raises(ValueError, match="a stop string needs a tokenizer"):
        llm.generate([1, 2], SamplingParams(stop="x"))


def test_parameters_fit_the_prompts() -> None:
    """As many as prompts, of the right type, with ids of the vocabulary."""
    llm = LLM(engine())
    with pytest.raises(ValueError, match="2 prompts, but 1 sampling parameters"):
        llm.generate([[1], [2]], [GREEDY])
    with pytest.raises(TypeError, match="must be SamplingParams"):
        llm.generate([[1]], [{"max_tokens": 3}])
    with pytest.raises(ValueError, match=r"stop_token_ids must be in \[0, 30\), got 30"):
        llm.generate([1], SamplingParams(stop_token_ids=[30]))


@pytest.mark.parametrize("cache", [True, False])
def test_n_texts_share_their_prompt(cache: bool) -> None:
    """`n` texts in one output; with a prefix cache the prompt is computed once, but for its end."""
    runner = FakeRunner()
    llm = LLM(engine(runner, FakeTokenizer(), prefix_cache=cache))
    prompt = [1 + i % 20 for i in range(41)]
    params = SamplingParams(n=5, seed=3, max_tokens=12)
    (output,) = llm.generate([prompt], params)
    assert [out.index for out in output.outputs] == [0, 1, 2, 3, 4]
    assert len({out.token_ids for out in output.outputs}) == 5
    assert runner.prefilled == (41 + 4 if cache else 5 * 41)
    assert [p.seed for p in runner.all_registered.values()] == [3, 4, 5, 6, 7]
    assert runner.registered == {}
    for index, out in enumerate(output.outputs):
        alone = llm.generate([prompt], SamplingParams(seed=3 + index, max_tokens=12))
        assert alone[0].outputs[0].token_ids == out.token_ids


def test_seeds_are_drawn_where_none_is_given() -> None:
    """Texts without a seed differ from each other, in one call and in the next."""
    llm = LLM(engine())
    params = SamplingParams(n=3, max_tokens=20, temperature=1.5)
    outputs = [*llm.generate([[1, 2]] * 2, params), *llm.generate([1, 2], params)]
    assert len({out.token_ids for output in outputs for out in output.outputs}) == 9
    top = SamplingParams(n=2, seed=2**63 - 1)
    assert len(llm.generate([1, 2], top)[0].outputs) == 2  # the seed after the last is the first


def test_greedy_requests_need_no_parameters_on_the_device() -> None:
    """The runner is told only of requests that draw or want log-probabilities, until they end."""
    runner = FakeRunner()
    llm = LLM(engine(runner))
    llm.generate([[1], [2]], GREEDY)
    assert runner.all_registered == {}
    llm.generate([[1], [2]], [GREEDY, SamplingParams(temperature=0, logprobs=1)])
    assert len(runner.all_registered) == 1
    assert runner.registered == {}


@pytest.mark.parametrize("count", [0, 1, 4])
def test_logprobs_are_those_of_the_model(count: int) -> None:
    """The sampled token's first, then the likeliest, with ranks and text, for who asked only."""
    llm = LLM(engine(tokenizer=FakeTokenizer()))
    params = [SamplingParams(seed=1, logprobs=count), SamplingParams(logprobs=6), GREEDY]
    outputs = llm.generate([[1, 2], [1, 2], [1, 2]], params)
    assert outputs[2].outputs[0].logprobs is None
    out, ids = outputs[0].outputs[0], [1, 2]
    assert len(out.logprobs) == len(out.token_ids) == 16
    for token_id, entry in zip(out.token_ids, out.logprobs, strict=True):
        expected = log_softmax(logits_after(ids))
        best = np.argsort(-expected)[:count].tolist()
        assert next(iter(entry)) == token_id
        assert set(entry) == {token_id, *best}
        for other, found in entry.items():
            assert found.logprob == pytest.approx(expected[other], abs=1e-5)
            assert found.rank == (best.index(other) + 1 if other in best else None)
            assert found.decoded_token == FakeTokenizer().decode([other], skip_special_tokens=False)
        ids.append(token_id)


def test_metrics_follow_the_clock() -> None:
    """Arrival, first token and end come in this order; a prefix hit is counted."""
    llm = LLM(engine(FakeRunner(step_s=0.002)))
    prompt = [1 + i % 9 for i in range(30)]
    for hit in (0, 28):
        (output,) = llm.generate([prompt], GREEDY)
        times = output.metrics
        assert 0 <= times.arrival_s < times.first_token_s < times.finish_s
        assert times.finish_s - times.first_token_s >= 15 * 0.002 * 0.9
        assert output.num_cached_tokens == hit


def test_a_dead_device_is_an_error_now_and_later() -> None:
    """The call that sees it raises, every later one does too, and closing still works."""
    runner = FakeRunner()
    runner.on_launch = dies(4)
    llm = LLM(engine(runner))
    for _ in range(2):
        with pytest.raises(ExecutorDiedError, match="the device is lost"):
            llm.generate([[1], [2]], GREEDY)
    llm.close()
    assert runner.closed == 1


def test_parameters_that_are_none_are_named() -> None:
    """A mapping in the place of sampling parameters is not taken for a list of them."""
    llm = LLM(engine(FakeRunner()))
    with pytest.raises(TypeError, match="must be SamplingParams, got <class 'dict'>"):
        llm.generate([1], {"temperature": 1.0})  # type: ignore[arg-type]


def test_an_unexpected_error_is_the_end_too() -> None:
    """A bug of the runner is not served around: the engine says what happened from then on."""
    runner = FakeRunner()

    def on_launch(plan: object) -> None:
        raise KeyError("row 7")

    runner.on_launch = on_launch
    llm = LLM(engine(runner))
    with pytest.raises(EngineError, match="the engine failed: KeyError.'row 7'") as caught:
        llm.generate([1])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(EngineError, match="row 7"):
        llm.generate([1])


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    """After Ctrl-C in the middle the engine is idle, with all pages free, and serves the next."""
    runner = FakeRunner()
    local = engine(runner)
    llm = LLM(local)
    turn, turns = local.turn, 0

    def interrupted() -> object:
        nonlocal turns
        turns += 1
        if turns == 9:
            raise KeyboardInterrupt
        return turn()

    local.turn = interrupted
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1] * 9, [2] * 9], SamplingParams(n=2, max_tokens=100))
    assert (local.live, local.is_busy, runner.registered) == (0, False, {})
    assert list(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == greedy([1, 2], 16)


def test_ctrl_c_in_the_middle_of_a_launch_waits_for_its_end() -> None:
    """The signal itself, wherever it hits: the engine serves the next, and Ctrl-C works as ever."""
    runner = FakeRunner()
    local = engine(runner)
    llm = LLM(local)

    def on_launch(plan: object) -> None:
        if runner.launched == 4:
            signal.raise_signal(signal.SIGINT)

    runner.on_launch = on_launch
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1] * 9, [2] * 9], SamplingParams(n=2, max_tokens=100))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (local.live, local.is_busy, runner.registered) == (0, False, {})
    assert list(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == greedy([1, 2], 16)


def test_closing_twice_is_closing_once() -> None:
    """And a closed engine says that it is closed."""
    runner = FakeRunner()
    with LLM(engine(runner)) as llm:
        llm.generate([1])
    llm.close()
    assert runner.closed == 1
    with pytest.raises(EngineError, match="the engine is closed"):
        llm.generate([1])


def test_two_engines_in_one_process_do_not_meet() -> None:
    """The same ids and prompts in two engines give each its own story."""
    first, second = (
        LLM(engine(FakeRunner([Story([1], [2, 3])]), FakeTokenizer())),
        LLM(engine(FakeRunner([Story([1], [4, 5])]), FakeTokenizer())),
    )
    params = SamplingParams(max_tokens=2, temperature=0)
    texts = [llm.generate([[1]], params)[0].outputs[0].text for llm in (first, second, first)]
    assert texts == [" fox dog", " jumps", " fox dog"]
