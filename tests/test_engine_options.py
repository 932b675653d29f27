"""The keyword arguments of `LLM`: which there are, what they are called, and who gets them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_language import engine

from engine import LLM
from engine.runtime.engine_options import OPTION_NAMES, EngineOptions
from engine.runtime.local_engine import THREADS

PAGE = Path(__file__).parent.parent / "docs" / "python_api.md"


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    """It is named, with what was probably meant."""
    with pytest.raises(TypeError, match="unknown option 'page_sise'; did you mean 'page_size'"):
        LLM("some/model", page_sise=3)
    with pytest.raises(TypeError, match="an engine has its options already"):
        LLM(engine(), page_size=3)


@pytest.mark.parametrize(
    ("asked", "got"),
    [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"), ("bf16", "bf16"),
     ("auto", None), (None, None)],
)  # fmt: skip
def test_number_formats_have_long_names_too(asked: str | None, got: str | None) -> None:
    """Those of torch and vLLM; any other name is refused with the short ones."""
    assert EngineOptions.parse("m", {"dtype": asked}).runner.dtype == got
    with pytest.raises(ValueError, match="dtype must be bf16, fp16 or fp32, got 'float8'"):
        EngineOptions.parse("m", {"dtype": "float8"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_num_batched_tokens": 4}, "cannot hold"),
        ({"policy": "zz"}, "policy must be one of"),
        ({"page_size": 0}, "page_size must be at least 1"),
    ],
)
def test_options_are_refused_before_the_model_loads(options: dict[str, object], says: str) -> None:
    """Even a model that is not there is not looked for."""
    with pytest.raises(ValueError, match=says):
        LLM("no/such-model", **options)


def test_each_option_goes_to_whom_it_belongs() -> None:
    """The runner and the scheduler hear the same of what both need, defaults included."""
    asked = dict(page_size=32, seed=3, policy="lpm", max_model_len=99, num_pages=7)
    options = EngineOptions.parse("m", asked)
    assert (options.runner.model, options.runner.seed, options.runner.num_pages) == ("m", 3, 7)
    scheduler = options.scheduler_for(5, 80, (1, 2))
    assert (scheduler.policy, scheduler.num_pages, scheduler.max_model_len) == ("lpm", 5, 80)
    assert scheduler.cuda_graph_batch_sizes == (1, 2)
    for name in ("page_size", "max_num_batched_tokens", "max_running_requests"):
        assert getattr(scheduler, name) == getattr(options.runner, name)
    assert scheduler.page_size == 32


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({}, (1, 2, 4, 8, 16, 20)),
        ({"cuda_graph_batch_sizes": None}, (1, 2, 4, 8, 16, 20)),
        ({"cuda_graph_batch_sizes": [3, 5]}, (3, 5)),
        ({"cuda_graph_batch_sizes": ()}, ()),
        ({"cuda_graph_batch_sizes": [3, 5], "enforce_eager": True}, ()),
    ],
)
def test_decode_batches_are_captured_unless_asked_otherwise(
    asked: dict[str, object], sizes: tuple[int, ...]
) -> None:
    """As many as requests may run, those that are named, or none."""
    options = EngineOptions.parse("m", {"max_running_requests": 20, **asked})
    assert options.runner.cuda_graph_batch_sizes == sizes


def test_every_option_is_documented() -> None:
    """The table of docs/python_api.md and the help of `EngineOptions` name all and no other."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("\n## Options\n")
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    options = [*OPTION_NAMES, THREADS]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(options)
    listed, _, _ = (EngineOptions.__doc__ or "").partition("Attributes:")
    assert set(OPTION_NAMES) <= set(re.findall(r"\w+", listed))
