"""`LLM.generate` on a tiny model: its texts are those of transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tiny_models

from engine import LLM, AsyncLLM, SamplingParams

PROMPTS = [[5, 6, 7], [9] * 40, [7, 8], list(range(10, 80))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A folder with a tiny Qwen3 and its tokenizer, and the model as transformers has it."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_models.make("qwen3", folder)
    tiny_models.save_tokenizer(folder)
    return folder, model


@pytest.fixture(scope="module")
def greedy_texts(tiny: tuple[Path, object]) -> list[list[int]]:
    """What transformers generates from PROMPTS, 10 tokens each."""
    return [tiny_models.greedy(tiny[1], prompt, 10) for prompt in PROMPTS]


def open_tiny(folder: Path, **options: object) -> LLM:
    settings = dict(device="cpu", num_pages=64, max_running_requests=8, max_num_batched_tokens=32)
    return LLM(folder, **{**settings, **options})


@pytest.mark.parametrize("page_size", [1, 16])
def test_real_greedy_texts_are_those_of_transformers(
    tiny: tuple[Path, object], greedy_texts: list[list[int]], page_size: int
) -> None:
    """Several prompts at once, in chunks and mixed batches, with and without a prefix hit."""
    folder, _ = tiny
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    with open_tiny(folder, page_size=page_size, num_pages=1024 // page_size) as llm:
        cold, warm = llm.generate(PROMPTS, params), llm.generate(PROMPTS, params)
        for outputs in (cold, warm):
            assert [list(o.outputs[0].token_ids) for o in outputs] == greedy_texts
        assert [o.outputs[0].text for o in cold] == [o.outputs[0].text for o in warm]
        assert warm[3].num_cached_tokens >= 64 > 0 == cold[3].num_cached_tokens


def test_real_logprobs_are_those_of_transformers(tiny: tuple[Path, object]) -> None:
    """Of the sampled token and the three likeliest, at every position of a drawn text."""
    folder, model = tiny
    params = SamplingParams(seed=5, max_tokens=8, logprobs=3, ignore_eos=True)
    with open_tiny(folder) as llm:
        out = llm.generate([PROMPTS[0]], params)[0].outputs[0]
    logits = tiny_models.logits(model, [*PROMPTS[0], *out.token_ids])
    expected = logits.log_softmax(-1)[len(PROMPTS[0]) - 1 :]
    for at, entry in enumerate(out.logprobs):
        best = expected[at].topk(3).indices.tolist()
        assert set(entry) == {out.token_ids[at], *best}
        for token_id, found in entry.items():
            assert found.logprob == pytest.approx(float(expected[at, token_id]), abs=2e-4)


def test_real_texts_stop_where_they_should(tiny: tuple[Path, object]) -> None:
    """A stop string and a stop token cut the text that the model would have written."""
    folder, _ = tiny
    params = dict(temperature=0, max_tokens=24, ignore_eos=True)
    with open_tiny(folder) as llm:
        (whole,) = llm.generate("The quick brown fox", SamplingParams(**params))
        out = whole.outputs[0]
        piece = out.text[5:8]
        (cut,) = llm.generate("The quick brown fox", SamplingParams(**params, stop=[piece]))
        assert cut.outputs[0].text == out.text[: out.text.index(piece)]
        assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", piece)
        token = out.token_ids[6]
        (cut,) = llm.generate(
            "The quick brown fox", SamplingParams(**params, stop_token_ids=[token])
        )
        assert cut.outputs[0].token_ids == out.token_ids[: out.token_ids.index(token) + 1]


def test_real_texts_of_one_prompt_differ_by_seed_only(tiny: tuple[Path, object]) -> None:
    """`n` drawn texts are those of single requests with the following seeds."""
    folder, _ = tiny
    with open_tiny(folder) as llm:
        drawn = dict(max_tokens=8, ignore_eos=True)
        (output,) = llm.generate([PROMPTS[1]], SamplingParams(n=3, seed=40, **drawn))
        for index, out in enumerate(output.outputs):
            (alone,) = llm.generate([PROMPTS[1]], SamplingParams(seed=40 + index, **drawn))
            assert alone.outputs[0].token_ids == out.token_ids
        assert len({out.token_ids for out in output.outputs}) == 3


def test_a_real_broken_row_harms_nobody(
    tiny: tuple[Path, object], greedy_texts: list[list[int]]
) -> None:
    """A prompt whose embedding is not a number ends with an error; the others are undisturbed."""
    folder, _ = tiny
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with open_tiny(folder) as llm:
        embedding = llm._engine._runner.transformer.weights.embed
        embedding[200] = float("nan")
        outputs = llm.generate([PROMPTS[0], [5, 200, 7], PROMPTS[2]], params)
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "error", "length"]
    assert "not numbers" in outputs[1].outputs[0].error
    for at in (0, 2):
        assert list(outputs[at].outputs[0].token_ids) == greedy_texts[at][:8]


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (3, 3)])
def test_a_small_model_computes_on_one_thread_or_as_many_as_asked(
    tiny: tuple[Path, object], monkeypatch: pytest.MonkeyPatch, asked: int | None, expected: int
) -> None:
    """Only while it computes: the caller's torch has its threads before, between and after."""
    import torch

    folder, _ = tiny
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_tiny(folder, cpu_threads=asked) as llm:
            threads = threads_of_turns(llm._engine, monkeypatch)
            assert torch.get_num_threads() == 2
            llm.generate([PROMPTS[0]], SamplingParams(max_tokens=3))
            assert set(threads) == {expected}
            assert torch.get_num_threads() == 2
        threads.clear()
        asyncio.run(stream(folder, asked, threads, monkeypatch))
        assert set(threads) == {expected}
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("engine.runtime.local_engine.SMALL_MODEL", 1)
        with open_tiny(folder, cpu_threads=asked) as llm:  # a large one is left as torch is
            threads = threads_of_turns(llm._engine, monkeypatch)
            llm.generate([PROMPTS[0]], SamplingParams(max_tokens=3))
            assert set(threads) == {asked or 2}
    finally:
        torch.set_num_threads(before)


def threads_of_turns(engine: object, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On how many threads torch would compute at each turn; grows."""
    import torch

    found: list[int] = []
    turn = engine.turn

    def noting() -> object:
        found.append(torch.get_num_threads())
        return turn()

    monkeypatch.setattr(engine, "turn", noting)
    return found


async def stream(
    folder: Path, asked: int | None, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(max_running_requests=8, max_num_batched_tokens=32, cpu_threads=asked)
    async with AsyncLLM(folder, device="cpu", num_pages=64, **options) as llm:
        noted = threads_of_turns(llm._engine, monkeypatch)
        async for _ in llm.generate({"prompt_token_ids": PROMPTS[0]}, SamplingParams(max_tokens=9)):
            pass
    threads.extend(noted)


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True])
def test_a_number_of_threads_that_is_none_is_refused(threads: object) -> None:
    """Before a model is looked for."""
    with pytest.raises(ValueError, match="cpu_threads must be a whole number, at least 1"):
        LLM("no such model", cpu_threads=threads)
