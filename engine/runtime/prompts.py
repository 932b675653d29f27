"""The forms in which a prompt may be given."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt


class ParsedPrompt(NamedTuple):
    """A prompt: its text, or its token ids."""

    text: str | None
    token_ids: tuple[int, ...]


def parse_prompt(prompt: Any) -> ParsedPrompt:
    """A prompt in any of its forms.

    Raises:
        TypeError: it has none of them.
        ValueError: a mapping has other keys.
    """
    if isinstance(prompt, str):
        return ParsedPrompt(prompt, ())
    if isinstance(prompt, Mapping):
        if set(prompt) == {"prompt_token_ids"}:
            return ParsedPrompt(None, _token_ids(prompt["prompt_token_ids"]))
        if set(prompt) == {"prompt"} and isinstance(prompt["prompt"], str):
            return ParsedPrompt(prompt["prompt"], ())
        raise ValueError(
            'a prompt given as a mapping must be {"prompt": text} or {"prompt_token_ids": ids}, '
            f"got keys {sorted(map(str, prompt))}"
        )
    return ParsedPrompt(None, _token_ids(prompt))


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list. A sequence that begins with a number is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        return [prompts] if prompts.ndim == 1 else list(prompts)
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a prompt or a list of prompts, got {type(prompts)}")
    if prompts and _is_integer(prompts[0]):
        return [prompts]
    return list(prompts)


def _token_ids(ids: Any) -> tuple[int, ...]:
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu":
        return tuple(ids.tolist())
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
        raise TypeError(f"a prompt must be text, token ids or a mapping, got {type(ids)}")
    for token_id in ids:
        if not _is_integer(token_id):
            raise TypeError(f"token ids must be integers, got {token_id!r}")
    return tuple(map(operator.index, ids))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
