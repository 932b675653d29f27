"""Finding a model by path or by its name in the Hugging Face cache, and its special tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.hf_config import ModelConfigError
from engine.core.model_spec import load_model_spec
from engine.demo import DEMO_MODELS, demo_model_folder
from engine.models.model_folder import (
    FoundModel,
    ModelNotFoundError,
    NoWeightsError,
    SpecialTokens,
    UnknownNameError,
    cached_models,
    find_model,
    find_model_folder,
    hugging_face_cache,
    special_tokens,
)


def write(file: Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")


def cached(cache: Path, name: str, commit: str, *, main: bool = True) -> Path:
    """A model in a Hugging Face cache; returns its snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    write(repository / "snapshots" / commit / "config.json", {})
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit, encoding="ascii")
    return repository / "snapshots" / commit


def test_a_folder_is_itself(tmp_path: Path) -> None:
    """A path that exists is taken; one without config.json is an error that says so."""
    write(tmp_path / "model" / "config.json", {})
    assert find_model_folder(str(tmp_path / "model"), environment={}) == tmp_path / "model"
    with pytest.raises(ModelNotFoundError, match="holds no config"):
        find_model_folder(str(tmp_path), environment={})


def test_a_name_is_found_in_the_cache(tmp_path: Path) -> None:
    """org/name is the snapshot that refs/main points to; another revision is taken by name."""
    old = cached(tmp_path, "Org/Model-1.0", "aaaa")
    new = cached(tmp_path, "Org/Model-1.0", "bbbb")
    environment = {"HF_HUB_CACHE": str(tmp_path)}
    assert find_model_folder("Org/Model-1.0", environment=environment) == new
    assert find_model_folder("Org/Model-1.0", "aaaa", environment) == old


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path.home() / ".cache/huggingface/hub")),
    ],
)
def test_the_cache_is_where_hugging_face_puts_it(
    environment: dict[str, str], expected: str
) -> None:
    """The variables count in the order of huggingface_hub."""
    assert hugging_face_cache(environment) == Path(expected)


def test_a_model_that_is_not_here_is_explained(tmp_path: Path) -> None:
    """The error names the cache, what is like it there, and that nothing is downloaded."""
    cached(tmp_path, "Org/Model-1.0", "aaaa")
    with pytest.raises(ModelNotFoundError) as caught:
        find_model_folder("Org/Model-1", environment={"HF_HUB_CACHE": str(tmp_path)})
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "did you mean 'Org/Model-1.0'?" in message
    assert "not downloaded" in message


@pytest.mark.parametrize("name", ["/no/such", "a/b/c", "~/nowhere/at/all"])
def test_what_is_neither_path_nor_name_is_refused(name: str, tmp_path: Path) -> None:
    """Anything else than a folder or org/name is an error of one line."""
    with pytest.raises(ModelNotFoundError, match="no such folder, and no org/name"):
        find_model_folder(name, environment={"HF_HOME": str(tmp_path)})


def test_an_unknown_name_lists_what_is_accepted(tmp_path: Path) -> None:
    """Demo models, what the cache holds, and cards where random weights are wanted."""
    cached(tmp_path, "Org/Model-1.0", "aaaa")
    environment = {"HF_HUB_CACHE": str(tmp_path)}
    for load_format, others in (("auto", ()), ("dummy", ("Qwen3-8B",))):
        with pytest.raises(UnknownNameError) as caught:
            find_model("demo-dens", load_format, environment=environment)
        assert str(caught.value).startswith(
            "no model is called 'demo-dens'; did you mean 'demo-dense'?\naccepted: "
        )
        for name in ("demo-dense", "demo-draft", "demo-moe", "Org/Model-1.0", *others):
            assert name in caught.value.known
            assert name in str(caught.value)
    with pytest.raises(UnknownNameError, match="the name of the model is empty"):
        find_model(" ", environment=environment)


def test_a_name_means_the_first_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder here comes before a demo model and a card, which comes before a file."""
    monkeypatch.chdir(tmp_path)
    shipped = demo_model_folder("demo-moe")
    assert find_model("Demo-MoE") == FoundModel(shipped, "demo-moe")
    assert find_model("demo-moe", "dummy") == FoundModel(shipped, "demo-moe")
    assert find_model("qwen3-8b", "dummy") == FoundModel(None, "Qwen3-8B")
    with pytest.raises(NoWeightsError, match="is a model card, which has no weights"):
        find_model("qwen3-8b")
    (tmp_path / "shape.json").write_text("{}")
    assert find_model("shape.json", "dummy") == FoundModel(None, "shape.json")
    for name in ("demo-moe", "Qwen3-8B"):
        write(tmp_path / name / "config.json", {})
        assert find_model(name) == FoundModel(Path(name), f"{name}/config.json")


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_the_card_of_a_demo_model_is_its_config(name: str) -> None:
    """So it has the same shape by its name as by its folder."""
    folder = find_model_folder(name)
    by_folder = load_model_spec(str(folder))
    assert replace(load_model_spec(name), name=by_folder.name) == by_folder


def test_a_file_of_a_model_is_not_its_folder(tmp_path: Path) -> None:
    """Whoever names a file in a model's folder is told which folder he meant."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=f"is a file.*did you mean {tmp_path}?"):
        find_model_folder(str(tmp_path / "config.json"))


def test_a_cache_without_the_snapshot_is_explained(tmp_path: Path) -> None:
    """A repository of which only another revision is there lists what is."""
    cached(tmp_path, "Org/Model", "aaaa", main=False)
    with pytest.raises(ModelNotFoundError, match="revision 'main' is not there; snapshots: aaaa"):
        find_model_folder("Org/Model", environment={"HF_HUB_CACHE": str(tmp_path)})


def test_cached_models_of_no_cache_are_none(tmp_path: Path) -> None:
    """A machine that never downloaded anything has an empty list."""
    assert cached_models(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, None, SpecialTokens(1, (2,))),
        ({"bos_token_id": 1, "eos_token_id": [2, 3]}, {}, SpecialTokens(1, (2, 3))),
        (
            {"bos_token_id": 1, "eos_token_id": 2},
            {"eos_token_id": [4, 2]},
            SpecialTokens(1, (4, 2)),
        ),
        ({"eos_token_id": None}, {"bos_token_id": 0}, SpecialTokens(0, ())),
        ({"text_config": {"eos_token_id": 5}}, None, SpecialTokens(None, (5,))),
    ],
)
def test_special_tokens(
    config: dict[str, object], generation: object, expected: SpecialTokens, tmp_path: Path
) -> None:
    """generation_config.json counts key by key before config.json; an end may be a list."""
    write(tmp_path / "config.json", config)
    if generation is not None:
        write(tmp_path / "generation_config.json", generation)
    assert special_tokens(tmp_path) == expected


@pytest.mark.parametrize("value", ["2", -1, True, [1, None], 1.0])
def test_a_token_that_is_no_id_is_an_error(value: object, tmp_path: Path) -> None:
    """The error names file, key and value."""
    write(tmp_path / "config.json", {"eos_token_id": value})
    with pytest.raises(ModelConfigError, match=r"config\.json: `eos_token_id` must be a token id"):
        special_tokens(tmp_path)
