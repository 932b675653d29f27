"""Text to ids and back, and the streaming of text in whole characters."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import tiny_models
from hypothesis import example, given
from hypothesis import strategies as st

from engine.runtime.tokenizer import Detokenizer, Tokenizer, TokenizerError

tokenizers = pytest.importorskip("tokenizers")

texts = st.text(
    st.one_of(
        st.sampled_from("ab ,ÄßЖ你好世界🦊🐶"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"),
    )
)


def byte_level() -> Tokenizer:
    """Byte-level BPE, as of Llama 3 and Qwen; a token may end in the middle of a character."""
    return Tokenizer(tokenizers.Tokenizer.from_str(tiny_models._tokenizer_json()))


def byte_fallback() -> Tokenizer:
    """As of Llama 2 and Mistral: the first word loses its space, rare characters become bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b"]
    words += ["▁a", "▁b", "ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    vocabulary = {word: index for index, word in enumerate(words)}
    model = tokenizers.models.BPE(
        vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


KINDS = {"byte level": byte_level(), "byte fallback": byte_fallback()}
kinds = st.sampled_from(sorted(KINDS)).map(KINDS.__getitem__)


class Spy(Tokenizer):
    """Remembers the longest decode."""

    longest = 0

    def decode(self, token_ids, *, skip_special_tokens=True):
        self.longest = max(self.longest, len(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@given(kinds, texts)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    """decode(encode(text)) is the text, and every id is in the vocabulary."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@example(KINDS["byte fallback"], " ")
@given(kinds, texts)
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    """After each token exactly the characters that are complete have been written."""
    ids, stream, written = tokenizer.encode(text), Detokenizer(tokenizer), ""
    for count, token_id in enumerate(ids, 1):
        written += stream.push(token_id)
        assert "\ufffd" not in written
        whole = tokenizer.decode(ids[:count])
        if not whole.endswith("\ufffd"):
            assert written == whole
    assert written + stream.finish() == text


def test_replacement_characters_in_the_text_itself_are_written() -> None:
    """U+FFFD may be meant: it is held back for a few tokens, then written, and never lost."""
    single, run = "a\ufffdb 你\ufffd c\ufffd", "a\ufffdb" + "\ufffd" * 50 + "c\ufffd"
    for kind, text in (("byte level", run), ("byte level", single), ("byte fallback", single)):
        tokenizer = KINDS[kind]
        stream = Detokenizer(tokenizer)
        pieces = [stream.push(token_id) for token_id in tokenizer.encode(text)]
        assert "".join(pieces) + stream.finish() == text


@given(st.lists(st.integers(3, 319), max_size=80))
def test_any_tokens_of_a_byte_level_vocabulary_stream_as_they_decode(ids: list[int]) -> None:
    """Also what is no UTF-8 at all joins to the decoded whole: random weights write such texts."""
    tokenizer = KINDS["byte level"]
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_the_same_however_long_the_text(kind: str) -> None:
    """No push decodes more than a short window, not even of a text that never becomes valid."""
    tokenizer = Spy(KINDS[kind]._backend)
    broken = next(i for i in range(3, 300) if "\ufffd" in tokenizer.decode([i]))
    chance = random.Random(7)
    garbage = [chance.randrange(tokenizer.vocab_size) for _ in range(2000)]
    for ids in ([broken] * 500, garbage, tokenizer.encode(tiny_models.TEXT * 5)):
        tokenizer.longest = 0
        stream = Detokenizer(tokenizer, after=ids)
        pieces = [stream.push(token_id) for token_id in ids]
        assert tokenizer.longest <= 20
        assert sum(map(len, pieces)) > len(ids) // 4, "held back for ever"


def test_special_tokens_write_nothing_and_break_nothing() -> None:
    """Skipped tokens between others leave the text, and its spaces, as they are."""
    for tokenizer in KINDS.values():
        ids = tokenizer.encode("a b 你 a")
        mixed = [2, *(token for token_id in ids for token in (token_id, 1, 2))]
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, mixed)) + stream.finish() == "a b 你 a"
    stream = Detokenizer(KINDS["byte level"], skip_special_tokens=False)
    assert [stream.push(2), stream.push(1)] == ["</s>", "<s>"]


def test_a_half_character_at_the_end_is_written_by_finish() -> None:
    """What a text ends with is never dropped, even if it is only half of something."""
    tokenizer = KINDS["byte fallback"]
    ids = tokenizer.encode("a你")[:-1]
    stream = Detokenizer(tokenizer)
    assert "".join(map(stream.push, ids)) == "a"
    assert stream.finish() == tokenizer.decode(ids)[1:] == "\ufffd\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_text_after_a_prompt_continues_it(kind: str) -> None:
    """The first word after a prompt keeps its space, and a character begun in it is completed."""
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a b a b a b a b ab 你 a")
    for cut in range(1, len(ids)):
        stream = Detokenizer(tokenizer, after=ids[:cut])
        rest = "".join(map(stream.push, ids[cut:])) + stream.finish()
        before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert before + rest == "a b a b a b a b ab 你 a"


def test_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    """tokenizer.json of a model's folder is read; its vocabulary counts added tokens."""
    tiny_models.save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode(tiny_models.TEXT)) == tiny_models.TEXT
    assert tokenizer.vocab_size == 320
    assert tokenizer.encode("</s>") == [2]


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a broken file and no package are each told apart, in a line."""
    with pytest.raises(TokenizerError, match="must be given as token ids"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.from_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match="package `tokenizers` must be installed"):
        Tokenizer.from_folder(tmp_path)
