"""What the name of a model means on this machine; everything that takes one asks `find_model`.

Nothing is ever downloaded. The cache's layout is `models--org--name/snapshots/COMMIT/`, with
`refs/REVISION` holding the commit that a branch or tag stood for (Hugging Face Hub documentation,
"Understand caching").
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engine.core.dtypes import did_you_mean
from engine.core.hf_config import HfConfig, read_json_object, text_model
from engine.core.model_spec import model_card_names
from engine.demo import DEMO_MODELS, demo_model_folder

_SHOWN: Final = 8  # names of cached models in a message
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFoundError(ValueError):
    """No such model on this machine. The message says where it was looked for."""


class UnknownNameError(ModelNotFoundError):
    """A bare name that no model has. The message lists what would be accepted.

    Attributes:
        known: names that would have been taken.
    """

    def __init__(self, name: str, known: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.name, self.known = name, known


class NoWeightsError(ModelNotFoundError):
    """A model card, of which there is only the shape."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a name stands for.

    Attributes:
        folder: holds config.json, weights and tokenizer; None: there is only a shape, which takes
            random weights.
        shape: what `engine.core.model_spec.load_model_spec` reads: a config's path, or a card.
    """

    folder: Path | None
    shape: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens with a meaning to the one who generates.

    Attributes:
        bos: begins a text, or None.
        eos: each of them ends a text; empty if the model has none.
    """

    bos: int | None
    eos: tuple[int, ...]


def find_model(
    name: str,
    load_format: Literal["auto", "dummy"] = "auto",
    revision: str = "main",
    environment: Mapping[str, str] | None = None,
) -> FoundModel:
    """The model of that name: the first of these that there is.

    A folder of that path, a demo model (any case), a model card (any case; "dummy" only), a file
    with a config (likewise), and `org/name` in the Hugging Face cache.

    Args:
        name: as a person gave it.
        load_format: "dummy" makes random weights, for which a shape will do.
        revision: branch, tag or commit, for the cache.
        environment: variables that say where the cache is; None is the process's own.

    Raises:
        UnknownNameError: it is none of these, and no path either.
        NoWeightsError: it is a card, and weights are wanted.
        ModelNotFoundError: a file where a folder must be, a folder without config.json, or not in
            the cache.
    """
    environment = os.environ if environment is None else environment
    folder = here_or_shipped(name)
    if folder is not None and folder != demo_model_folder(name):
        return _in_folder(folder)
    card = {card.casefold(): card for card in model_card_names()}.get(name.casefold())
    if folder is not None and card is not None:
        return FoundModel(folder, card)
    if card is not None and load_format != "dummy":
        raise NoWeightsError(
            f"{name} is a model card, which has no weights: give the folder of a checkpoint, or ask"
            ' for random weights with load_format="dummy"'
        )
    if card is not None:
        return FoundModel(None, card)
    path = Path(name).expanduser()
    if name.strip() and path.exists():
        if load_format == "dummy":
            return FoundModel(None, str(path))
        is_inside = (path.parent / "config.json").is_file()
        hint = f"; did you mean {path.parent}?" if is_inside else ""
        raise ModelNotFoundError(f"{name}: is a file, not the folder of a model{hint}")
    if "/" not in name:
        raise _unknown(name, load_format, hugging_face_cache(environment))
    return _in_folder(_cached(name, revision, hugging_face_cache(environment)))


def here_or_shipped(name: str) -> Path | None:
    """The folder of that path, or else of the demo model of that name; None: neither is there."""
    folder = Path(name).expanduser()
    return folder if name.strip() and folder.is_dir() else demo_model_folder(name)


def find_model_folder(
    name: str, revision: str = "main", environment: Mapping[str, str] | None = None
) -> Path:
    """The folder that holds a model's config.json, weights and tokenizer; see `find_model`."""
    folder = find_model(name, "auto", revision, environment).folder
    if folder is None:
        raise NoWeightsError(f"{name} has no weights")
    return folder


def _unknown(name: str, load_format: str, cache: Path) -> UnknownNameError:
    cached = cached_models(cache)
    cards = tuple(card for card in model_card_names() if card not in DEMO_MODELS)
    known = (*DEMO_MODELS, *cached, *(cards if load_format == "dummy" else ()))
    held = f", which holds {_listed(cached)}" if cached else ", which holds none"
    said = f"no model is called {name!r}" if name.strip() else "the name of the model is empty"
    return UnknownNameError(
        name,
        known,
        f"{said}{did_you_mean(name, known)}\n"
        f"accepted: a demo model ({', '.join(DEMO_MODELS)}); the folder of a checkpoint; org/name"
        f' of one in the Hugging Face cache {cache}{held}; with load_format="dummy" (random'
        f" weights) also a config.json or a model card ({', '.join(cards)})",
    )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cached(name: str, revision: str, cache: Path) -> Path:
    """The snapshot of `org/name` in a Hugging Face cache."""
    if not _REPOSITORY.fullmatch(name):
        raise ModelNotFoundError(f"{name}: no such folder, and no org/name of a model in {cache}")
    repository = cache / f"models--{name.replace('/', '--')}"
    if not repository.is_dir():
        cached = cached_models(cache)
        known = f"; it holds {_listed(cached)}" if cached else ""
        raise ModelNotFoundError(
            f"{name}: no such folder, and not in the Hugging Face cache {cache}"
            f"{did_you_mean(name, cached)}{known}\nmodels are not downloaded:"
            f" fetch it with `hf download {name}`, or give a folder"
        )
    return _snapshot(repository, revision)


def hugging_face_cache(environment: Mapping[str, str]) -> Path:
    """Where Hugging Face libraries keep downloaded repositories, by their own variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return Path(environment[variable]).expanduser()
    home = environment.get("HF_HOME")
    if not home:
        home = f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def cached_models(cache: Path) -> tuple[str, ...]:
    """Every `org/name` in the cache, sorted."""
    folders = cache.glob("models--*") if cache.is_dir() else ()
    return tuple(sorted(f.name.removeprefix("models--").replace("--", "/", 1) for f in folders))


def special_tokens(folder: Path) -> SpecialTokens:
    """Beginning and end of text, from generation_config.json or else from config.json.

    Each key counts where it is first found in that order: the former is what the authors generate
    with, and often has more ends than the latter.

    Raises:
        ModelConfigError: a file that is no JSON object, or an id that is no integer >= 0.
    """
    configs = []
    generation = folder / "generation_config.json"
    if generation.is_file():
        configs.append(HfConfig(read_json_object(generation), str(generation)))
    config = folder / "config.json"
    configs.append(text_model(HfConfig(read_json_object(config), str(config)))[0])
    bos = _token_ids(configs, "bos_token_id")
    return SpecialTokens(bos=bos[0] if bos else None, eos=_token_ids(configs, "eos_token_id"))


def _token_ids(configs: list[HfConfig], key: str) -> tuple[int, ...]:
    for config in configs:
        value = config.values.get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int and item >= 0 for item in ids):
            raise config.error(f"`{key}` must be a token id or a list of them, got {value!r}")
        return tuple(dict.fromkeys(ids))
    return ()


def _snapshot(repository: Path, revision: str) -> Path:
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    if snapshot.is_dir():
        return snapshot
    snapshots = repository / "snapshots"
    present = sorted(folder.name for folder in snapshots.glob("*")) if snapshots.is_dir() else []
    raise ModelNotFoundError(
        f"{repository}: revision {revision!r} is not there; snapshots: {', '.join(present) or '-'}"
    )


def _in_folder(folder: Path) -> FoundModel:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelNotFoundError(f"{folder}: the folder holds no config.json")
    return FoundModel(folder, str(config))
