"""Finds a model on this machine: a folder, or `org/name` in the local Hugging Face cache.

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
from typing import Final

from engine.core.dtypes import did_you_mean
from engine.core.hf_config import HfConfig, read_json_object, text_model

_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFoundError(ValueError):
    """No such model on this machine. The message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens with a meaning to the one who generates.

    Attributes:
        bos: begins a text, or None.
        eos: each of them ends a text; empty if the model has none.
    """

    bos: int | None
    eos: tuple[int, ...]


def find_model_folder(
    name_or_path: str, revision: str = "main", environment: Mapping[str, str] | None = None
) -> Path:
    """The folder that holds a model's config.json, weights and tokenizer.

    Args:
        name_or_path: a folder, or `org/name` in the Hugging Face cache.
        revision: branch, tag or commit, for the cache.
        environment: variables that say where the cache is; None is the process's own.

    Raises:
        ModelNotFoundError: neither is there, or it has no config.json.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _with_config(folder)
    if folder.exists():
        is_inside = (folder.parent / "config.json").is_file()
        hint = f"; did you mean {folder.parent}?" if is_inside else ""
        raise ModelNotFoundError(f"{name_or_path}: is a file, not the folder of a model{hint}")
    cache = hugging_face_cache(os.environ if environment is None else environment)
    if not _REPOSITORY.fullmatch(name_or_path):
        raise ModelNotFoundError(
            f"{name_or_path}: no such folder, and no org/name of a model in {cache}"
        )
    repository = cache / f"models--{name_or_path.replace('/', '--')}"
    if not repository.is_dir():
        cached = cached_models(cache)
        known = f"; it holds {', '.join(cached[:8])}" if cached else ""
        raise ModelNotFoundError(
            f"{name_or_path}: no such folder, and not in the Hugging Face cache {cache}"
            f"{did_you_mean(name_or_path, cached)}{known}\nmodels are not downloaded:"
            f" fetch it with `hf download {name_or_path}`, or give a folder"
        )
    return _with_config(_snapshot(repository, revision))


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


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder}: the folder holds no config.json")
    return folder
