"""The language models that ship: what they are, how good they are, and what they write."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from forced_text import nats_per_token, one_thread

from engine import LLM, SamplingParams
from engine.demo import DEMO_MODELS, demo_model_folder, held_out_text, recorded_behaviour
from engine.runtime.tokenizer import Tokenizer

CARDS = Path(__file__).parents[1] / "engine" / "core" / "model_cards"
MOST_BYTES = 50_000_000

# Of the engine on a CPU in fp32. The weights are fixed, so only rounding may differ elsewhere.
PERPLEXITIES = [("demo-dense", 20_000, 10.100), ("demo-draft", 20_000, 22.598)]
GREEDY = [
    (
        "demo-dense",
        "def is_prime(number):",
        (
            '\n    """\n    Check whether the number is prime.\n\n    Parameters\n    ----------\n'
            "    number : int\n        Number of prime numbers.\n\n    Returns\n    -------\n"
            "    is_prime : bool\n        Whether the"
        ),
    ),
    (
        "demo-dense",
        ".. function:: sleep(seconds)\n\n  ",
        " Sleep the number of seconds to be reached.\n\n   .. versionadded:: 3.2\n",
    ),
    (
        "demo-draft",
        'def add(a, b):\n    """Return the sum of a and b."""\n   ',
        " return a.split()\n",
    ),
    (
        "demo-moe",
        "def read_lines(path):",
        (
            '\n    """\n    Read a file from a file.\n\n    This is a file-like object.\n    """\n'
            "    return read_lines(path)\n"
        ),
    ),
]


def folder(name: str) -> Path:
    found = demo_model_folder(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_a_card_is_the_config_of_its_model(name: str) -> None:
    """What is simulated under a name is what is served under it."""
    assert (CARDS / f"{name}.json").read_bytes() == (folder(name) / "config.json").read_bytes()


def test_the_models_are_small() -> None:
    """All files together take no more than 50 MB."""
    files = (path for path in folder("demo-dense").parent.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_all_have_one_tokenizer() -> None:
    """Otherwise the draft could not propose tokens."""
    texts = {(folder(name) / "tokenizer.json").read_bytes() for name in DEMO_MODELS}
    assert len(texts) == 1


@pytest.mark.parametrize(("name", "tokens", "expected"), PERPLEXITIES)
def test_perplexity_has_not_changed(name: str, tokens: int, expected: float) -> None:
    """The engine finds held-out text as likely as when the models were made, within 0.2 %."""
    ids = Tokenizer.from_folder(folder(name)).encode(held_out_text())[: tokens + 1]
    found = math.exp(nats_per_token(folder(name), ids))
    assert found == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(("name", "prompt", "expected"), GREEDY)
def test_greedy_texts_have_not_changed(name: str, prompt: str, expected: str) -> None:
    """These texts are decided by a margin of 0.05 nats or more at each token (MoE: 0.03)."""
    with one_thread(), LLM(folder(name), device="cpu", num_pages=64) as llm:
        output = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=40))[0]
    assert output.outputs[0].text == expected


def test_acceptance_follows_from_its_counts() -> None:
    """Later positions are accepted less often, and every round gives what was accepted, and one."""
    recorded = recorded_behaviour("acceptance")
    for temperature in ("temperature 0", "temperature 1"):
        measured = recorded[temperature]
        accepted, rounds = measured["accepted_at"], measured["rounds"]
        assert sorted(accepted, reverse=True) == accepted
        assert measured["share_at"] == [count / rounds for count in accepted]
        by_tokens = measured["rounds_by_tokens"]
        assert sum(by_tokens) == rounds
        tokens = sum(count * (at + 1) for at, count in enumerate(by_tokens))
        assert measured["tokens_per_round"] == pytest.approx(tokens / rounds)


def test_balance_is_seen_in_the_recorded_routing() -> None:
    """Without balance one expert has several times the mean; the entropy says the same."""
    loads = recorded_behaviour("expert_load")
    path = folder("demo-moe").parent / "behaviour" / "routing.npz"
    with np.load(path) as routing:
        for name, load in loads.items():
            experts = routing[name]
            assert experts.shape == (4, 4096, 2)
            assert experts.max() < 16
            assert (experts[..., 0] != experts[..., 1]).all()
            for layer in load["layers"]:
                counts = np.array(layer["counts"])
                assert counts.sum() == 2 * load["tokens"]
                assert layer["max_over_mean"] == pytest.approx(counts.max() / counts.mean())
    worst = {n: max(x["max_over_mean"] for x in load["layers"]) for n, load in loads.items()}
    least = {n: min(x["entropy_bits"] for x in load["layers"]) for n, load in loads.items()}
    assert worst["moe-none"] > 5 > 2.1 > worst["demo-moe"] > worst["moe-bias"]
    assert least["moe-none"] < 2.6 < 3.8 < least["demo-moe"] < 4


def test_what_is_not_recorded_is_not_found() -> None:
    """There is no guess in the place of a measurement."""
    with pytest.raises(FileNotFoundError):
        recorded_behaviour("mood")
    assert demo_model_folder("demo-vision") is None
    assert json.loads((folder("DEMO-Dense") / "config.json").read_text())["hidden_size"] == 256
