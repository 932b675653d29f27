"""Text to token ids and back, and back again piece by piece while a model generates.

Everything else in the engine works with token ids, so `tokenizers` need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from engine.core.bounded_file import check_size

if TYPE_CHECKING:
    import tokenizers

FILE_NAME: Final = "tokenizer.json"
_MOST_BYTES: Final = 1 << 28  # those of 260,000 tokens take some 35 MB

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"  # what undecodable bytes become
_CHARACTER_BYTES: Final = 4  # the longest UTF-8 character
_WINDOW_TOKENS: Final = 16


class TokenizerError(ValueError):
    """No text can be read or written for this model; token ids still work."""


class Tokenizer:
    """The tokenizer.json of a model."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a model's folder.

        Raises:
            TokenizerError: `tokenizers` is not installed, or tokenizer.json is missing or broken.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            raise TokenizerError(f"{file}: not there; requests must be given as token ids")
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise TokenizerError(
                "to read text the package `tokenizers` must be installed"
                " (pip install -e '.[engine]' in the folder of the workbench); token ids work"
                " without it"
            ) from error
        try:
            check_size(file, _MOST_BYTES)
        except OSError as error:
            raise TokenizerError(f"{file}: cannot be read: {error.strerror}") from error
        try:
            return cls(Backend.from_file(str(file)))
        except Exception as error:  # the Rust code raises no narrower one
            raise TokenizerError(f"{file}: cannot be read: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens (such as a beginning) where the model wants them."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


class Detokenizer:
    """Turns the tokens of one growing text into pieces of it, never into half a character.

    A token need not end where a character ends, and some tokenizers write a token differently at
    the start of a text. So each token is decoded together with those before it, back to the last
    place where all characters were whole: a few tokens, whatever the length of the text.

    The pieces joined are the decoded whole. Only the length of a run of U+FFFD may differ, with
    tokenizers that fall back to bytes: they decode a run of bytes as a whole or not at all.

    Args:
        tokenizer: of the model.
        after: tokens before the first one, such as a prompt; they are not written again.
        skip_special_tokens: special tokens write nothing.
    """

    def __init__(
        self, tokenizer: Tokenizer, after: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = list(after[-_WINDOW_TOKENS // 2 :])
        self._text = self._decode()
        # Characters of the window's text; one that `after` begins belongs to what ends it.
        self._written = len(self._text.rstrip(_REPLACEMENT))
        self._pending = 0  # tokens since all characters were whole

    def push(self, token_id: int) -> str:
        """The text that one more token makes certain; may be empty."""
        self._window.append(token_id)
        text = self._decode()
        undecided = len(text) - len(text.rstrip(_REPLACEMENT))
        if not undecided and text == self._text and self._is_special(token_id):
            self._window.pop()
            return ""
        self._text = text
        self._pending += 1
        if not undecided:
            piece = self._write(len(text))
            self._restart(self._pending)
            return piece
        if self._pending < _CHARACTER_BYTES:  # each of these tokens may hold but one byte
            return ""
        piece = self._write(len(text) - min(undecided, _CHARACTER_BYTES - 1))
        if len(self._window) > _WINDOW_TOKENS:
            self._restart(_WINDOW_TOKENS // 2)
        return piece

    def finish(self) -> str:
        """What is left at the end of the text; a character that stayed half becomes U+FFFD."""
        return self._write(len(self._text))

    def _write(self, end: int) -> str:
        piece = self._text[self._written : end]
        self._written = max(self._written, end)
        return piece

    def _restart(self, num_tokens: int) -> None:
        """Keep only the last tokens as context; what was not written of the text stays so."""
        unwritten = max(len(self._text) - self._written, 0)
        self._window = self._window[-num_tokens:]
        self._text = self._decode()
        self._written = len(self._text) - unwritten
        self._pending = min(self._pending, num_tokens) if unwritten else 0

    def _is_special(self, token_id: int) -> bool:
        """Whether a token wrote nothing because it is special; a first space may not, either."""
        decode = self._tokenizer.decode
        return self._skip and decode([token_id], skip_special_tokens=False) != decode([token_id])

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip)
