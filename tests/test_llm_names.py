"""`LLM` and `AsyncLLM` know the models that ship by name, as the command line does."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from engine import LLM, AsyncLLM, SamplingParams
from engine.demo import DEMO_MODELS, demo_model_folder
from engine.models.model_folder import NoWeightsError, UnknownNameError

PAGE = Path(__file__).parent.parent / "docs" / "python_api.md"
GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPT = "import numpy as np\n\ndef mean(values):\n    return "


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def text_of(model: str | Path, **options: object) -> str:
    with LLM(model, device="cpu", num_pages=64, **options) as llm:
        return llm.generate([PROMPT], GREEDY)[0].outputs[0].text


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_a_demo_model_writes_by_its_name_what_it_writes_by_its_folder(name: str) -> None:
    """Text in, text out: weights, tokenizer and end of text are those of the folder."""
    folder = demo_model_folder(name)
    assert folder is not None
    written = text_of(name.upper())
    assert written.strip()
    assert written == text_of(folder)
    assert text_of(name, load_format="dummy") != written


def test_a_stream_of_a_demo_model() -> None:
    """`AsyncLLM` takes the same names and writes the same text."""

    async def stream() -> str:
        async with AsyncLLM("demo-moe", device="cpu", num_pages=64) as llm:
            return [o async for o in llm.generate(PROMPT, GREEDY)][-1].outputs[0].text

    assert asyncio.run(stream()) == text_of("demo-moe")


@pytest.mark.parametrize("kind", [LLM, AsyncLLM])
def test_an_unknown_name_lists_what_would_be_accepted(kind: type[LLM | AsyncLLM]) -> None:
    """At once, before a device is looked for."""
    with pytest.raises(UnknownNameError, match="did you mean 'demo-dense'") as caught:
        kind("demo-dens", device="no such device")
    assert all(name in str(caught.value) for name in DEMO_MODELS)
    with pytest.raises(NoWeightsError, match="is a model card, which has no weights"):
        kind("Qwen3-0.6B")


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Pasted from the documentation, it prints each prompt and how it goes on: with some text."""
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    exec(example[1], {})
    texts = capsys.readouterr().out.split(" -> ")[1:]
    assert len(texts) == 2
    assert all(len(text.splitlines()) > 1 for text in texts)
