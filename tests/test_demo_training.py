"""What trains the demo models: it computes what the engine computes, and measures honestly."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import torch
from demo_training import (
    bpe_constants,
    corpus,
    expert_load,
    export,
    memory,
    rounding,
    sampling,
    sources,
    speculation,
)
from demo_training.corpus import Document
from demo_training.model import Decoder
from demo_training.muon import orthogonalized
from demo_training.shapes import Shape

from engine import LLM, SamplingParams

DENSE = Shape(hidden=64, layers=2, heads=2, width=128)
MOE = Shape(hidden=64, layers=2, heads=1, width=32, experts=4, experts_per_token=2)


def random_model(shape: Shape, seed: int = 0) -> Decoder:
    """Weights large enough for decided probabilities, and bf16 already."""
    torch.manual_seed(seed)
    model = Decoder(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 1.0)
    export.round_to_bf16(model)
    return model


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
def test_the_engine_computes_what_was_trained(shape: Shape, tmp_path: Path) -> None:
    """Log-probabilities of the engine, from the exported folder, are those of the trainer."""
    model = random_model(shape)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    export.export(model, tmp_path / "model", tmp_path)
    prompt = list(range(5, 45))
    with LLM(tmp_path / "model", device="cpu", num_pages=32) as llm:
        params = SamplingParams(temperature=0, max_tokens=6, logprobs=5, ignore_eos=True)
        out = llm.generate([prompt], params)[0].outputs[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *out.token_ids]]))[0].log_softmax(-1)
    for at, entry in enumerate(out.logprobs):
        for token_id, found in entry.items():
            expected = float(logits[len(prompt) - 1 + at, token_id])
            assert found.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
def test_greedy_texts_are_those_without_a_cache(shape: Shape) -> None:
    """Writing token by token with a KV cache gives what computing the whole text anew gives."""
    model, prompts = random_model(shape), torch.randint(1, 4096, (3, 9))
    texts = sampling.continue_texts(model, prompts, 12, 0, seed=0)
    for prompt, text in zip(prompts.tolist(), texts, strict=True):
        whole = torch.tensor([[*prompt, *text]])
        with torch.no_grad():
            chosen = model(whole)[0].argmax(-1).tolist()
        assert text == chosen[len(prompt) - 1 : -1]
        assert (text[-1] == bpe_constants.END_OF_TEXT_ID) or len(text) == 12
        assert bpe_constants.END_OF_TEXT_ID not in text[:-1]


def test_a_draft_that_is_the_target_is_always_right() -> None:
    """All proposals are accepted, greedily and drawn, and each round gives one token more."""
    model, prompts = random_model(DENSE), torch.randint(1, 4096, (4, 9))
    for greedy in (True, False):
        measured = speculation.measure_acceptance(
            model, model, prompts, 10, greedy=greedy, seed=1
        ).as_json()
        assert measured["share_at"] == [1.0] * 4
        assert measured["tokens_per_round"] == 5


def test_speculation_keeps_the_distribution_of_the_target() -> None:
    """The token after a prompt has the target's probabilities, whatever the draft proposes."""
    target, draft = random_model(DENSE, 1), random_model(DENSE, 2)
    for model in (target, draft):  # of few tokens, or no count would be large
        model.embed_tokens.weight.data[8:] = 0
        model.norm.weight.data *= 0.2
    prompt, count = torch.tensor([[1, 2, 3]]), 1000
    texts = torch.zeros(count, 3 + 9, dtype=torch.long)
    texts[:, :3] = prompt
    lengths = torch.full((count,), 3)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        speculation._round(target, draft, texts, lengths, False, random)
        p = target(prompt)[0, -1].softmax(-1)
    counts = torch.bincount(texts[:, 3], minlength=8)[:8]
    expected = p[:8] * count
    chi_square = float(((counts - expected) ** 2 / expected.clamp_min(1)).sum())
    assert chi_square < 30  # 8 degrees of freedom: one in 5,000


def test_muon_makes_matrices_orthogonal() -> None:
    """All singular values of what it returns are near 1, for tall and for wide matrices."""
    for shape in ((2, 48, 16), (2, 16, 48)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_rounding_costs_at_most_half_a_step() -> None:
    """No weight moves by more than half of its group's step, and int8 moves less than int4."""
    model = random_model(DENSE)
    before = model.layers[0].mlp.up_proj.weight.detach()
    errors = []
    for form in (rounding.Format(8, 0), rounding.Format(4, 32)):
        after = rounding.rounded(model, form).layers[0].mlp.up_proj.weight.detach()
        step = before.abs().max() / (2 ** (form.bits - 1) - 1)
        assert float((after - before).abs().max()) <= float(step) / 2 * 1.001
        errors.append(float((after - before).square().mean()))
    assert errors[0] < errors[1] / 50


def test_load_statistics_know_even_from_uneven() -> None:
    """Experts that take turns have max/mean 1 and log2(E) bits; one that takes all has E and 0."""
    tokens = np.arange(256, dtype=np.uint8)
    even = np.stack([tokens % 4, (tokens + 1) % 4], axis=1)[None]
    one = np.zeros((1, 256, 2), np.uint8)
    (fair,) = expert_load.load_statistics(even, 4)["layers"]
    (unfair,) = expert_load.load_statistics(one, 4)["layers"]
    assert (fair["max_over_mean"], fair["entropy_bits"]) == (1, 2)
    assert (unfair["max_over_mean"], unfair["entropy_bits"]) == (4, 0)


def test_a_file_falls_into_definitions_and_sections() -> None:
    """Two blank lines before an unindented line begin a piece, and so does an underlined title."""
    code = "import os\n\n\ndef f():\n    return 1\n\n    # inner\n\n\nclass C:\n\n    x = 1\n"
    pieces = Document("a", "b.py", "", code).pieces()
    assert [piece.split("\n")[0] for piece in pieces] == ["import os", "def f():", "class C:"]
    prose = "Title\n=====\n\nText.\n\nSecond\n------\n\nMore.\n"
    pieces = Document("a", "b.rst", "", prose).pieces()
    assert [piece.split("\n")[0] for piece in pieces] == ["Title", "Second"]


def test_a_licence_off_the_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term of an expression counts; the committed sources all pass."""
    assert len(sources.read_sources()) == 57
    entry = dict(name="x", version="1", file="x.whl", sha256="", licence="MIT AND MPL-2.0")
    (tmp_path / "sources.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(sources, "_SOURCES", tmp_path / "sources.json")
    with pytest.raises(sources.SourceError, match=r"x: licence MIT AND MPL-2\.0"):
        sources.read_sources()


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    """It is not read, whatever is in it."""
    (tmp_path / "x.whl").write_bytes(b"other")
    source = sources.Source("x", "1", "x.whl", "00", "MIT")
    with pytest.raises(sources.SourceError, match="SHA-256"):
        sources.fetch((source,), tmp_path)


def wheel(folder: Path, files: dict[str, str]) -> sources.Source:
    with zipfile.ZipFile(folder / "x.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return sources.Source("x", "1", "x.whl", "", "MIT")


def code(seed: int, count: int = 12) -> str:
    return "".join(f"def function_{seed}_{i}(value):\n    return value\n" for i in range(count))


def test_only_own_permissive_text_is_chosen(tmp_path: Path) -> None:
    """Tests, other licences, generated files, data and copies are left out, each for its reason."""
    mixed = {
        "a/fine.py": "# Copyright somebody\n" + code(1),
        "a/tests/case.py": code(2),
        "a/other.py": '"""Under the GNU General Public License."""\n' + code(3),
        "a/made.py": "# generated by a tool, do not edit\n" + code(4),
        "a/data.py": "X = [" + "1234567890, " * 80 + "]\n",
        "a/short.py": "x = 1\n",
    }
    chosen = corpus.choose((wheel(tmp_path, mixed),), tmp_path)
    (document,) = [*chosen.train, *chosen.held_out]
    assert (document.path, document.text) == ("a/fine.py", code(1))
    assert sum(chosen.dropped.values()) == 5
    copies = {f"a/copy_{i}.py": code(1) for i in range(9)}
    chosen = corpus.choose((wheel(tmp_path, copies),), tmp_path)
    assert len(chosen.train) + len(chosen.held_out) == 1
    assert chosen.dropped["mostly in other files"] == 8


def test_nothing_held_out_is_in_the_training_text(tmp_path: Path) -> None:
    """Of files that share a part with others those held out are dropped."""
    files = {f"a/m{i}.py": code(i, 30) + code(-(i // 2) - 1, 4) for i in range(400)}
    chosen = corpus.choose((wheel(tmp_path, files),), tmp_path)
    train = set().union(*(corpus._shingles(d.text) for d in chosen.train))
    for document in chosen.held_out:
        assert corpus._share(corpus._shingles(document.text), train) <= 0.02
    assert chosen.dropped["held out, but partly in the training text"] > 0


def test_copied_spans_are_found() -> None:
    """Spans of 50 tokens count, 49 do not; each token counts once."""
    rng = np.random.default_rng(0)
    known = rng.integers(1, 4096, 5000).astype(np.uint16)
    fresh = rng.integers(1, 4096, 300).tolist()
    text = memory.TrainingText(known)
    spans = known[1000:1080].tolist(), known[2000:2049].tolist()
    found = text.copied([fresh[:100] + spans[0] + fresh[100:], spans[1] + fresh])
    assert found["copied_tokens"] == 80
    assert found["texts_with_a_copied_span"] == 1
