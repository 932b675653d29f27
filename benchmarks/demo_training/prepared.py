"""The prepared data on disk: token ids, tokenizer, held-out text, and the list of files."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_training.corpus import Corpus, Document, choose
from demo_training.export import write_json
from demo_training.notices import notices
from demo_training.shapes import CONTEXT_TOKENS
from demo_training.sources import fetch, read_sources

_FACTS: Final = "data.json"
_XZ_PRESET: Final = 6
_EXCERPT_BYTES: Final = 200_000


def prepare(output: Path, archives: Path) -> dict[str, Any]:
    """Fetch, choose, train the tokenizer and encode; what was made, as JSON data.

    Args:
        output: folder for the results.
        archives: folder for what is downloaded; used again if it is there.
    """
    from demo_training.bpe import encode, save_tokenizer, train_tokenizer

    sources = read_sources()
    fetch(sources, archives)
    corpus = choose(sources, archives)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus.train)
    save_tokenizer(tokenizer, output, CONTEXT_TOKENS)
    facts: dict[str, Any] = {"dropped": dict(corpus.dropped.most_common())}
    for name, documents in (("train", corpus.train), ("held_out", corpus.held_out)):
        tokens = encode(tokenizer, documents)
        _write_xz(output / f"{name}.tokens.xz", tokens.tobytes())
        text = "".join(piece for document in documents for piece in document.pieces())
        facts[name] = {
            "files": len(documents),
            "bytes": len(text.encode()),
            "tokens": len(tokens),
            "sha256_of_tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
        }
        if name == "held_out":
            (output / "held_out.txt").write_text(text, encoding="utf-8")
    (output / "NOTICE.txt").write_text(notices(sources, archives), encoding="utf-8")
    (output / "excerpt.txt").write_text(_excerpt(corpus.held_out), encoding="utf-8")
    (output / "files.tsv").write_text(_file_list(corpus), encoding="utf-8")
    write_json(output / _FACTS, facts)
    return facts


def read_tokens(folder: Path, name: str) -> NDArray[np.uint16]:
    """Tokens of "train" or "held_out". Raises ValueError if the file is another than prepared."""
    content = lzma.decompress((folder / f"{name}.tokens.xz").read_bytes())
    wanted = read_facts(folder)[name]["sha256_of_tokens"]
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError(f"{folder / name}.tokens.xz does not hold what {_FACTS} says")
    return np.frombuffer(content, np.uint16)


def read_facts(folder: Path) -> dict[str, Any]:
    """What `prepare` returned."""
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    return facts


def _excerpt(held_out: list[Document]) -> str:
    """Beginnings of the held-out files of CPython, for the tests and as prompts."""
    own = [d for d in held_out if "python3.11" in d.source]
    share = _EXCERPT_BYTES // len(own)
    parts = []
    for document in own:
        text = ""
        for piece in document.pieces():
            if len(text) + len(piece) > share:
                break
            text += piece + "\n"
        parts.append(text)
    return "\n".join(part for part in parts if part)


def _file_list(corpus: Corpus) -> str:
    """Split, SHA-256 (its first 16 digits), package and path of each file."""
    rows = [("split", "sha256", "package", "path")]
    for split, documents in (("train", corpus.train), ("held_out", corpus.held_out)):
        rows += [(split, d.sha256[:16], d.source, d.path) for d in documents]
    head, *rest = rows
    return "".join("\t".join(row) + "\n" for row in (head, *sorted(rest, key=lambda r: r[2:])))


def _write_xz(path: Path, content: bytes) -> None:
    path.write_bytes(lzma.compress(content, preset=_XZ_PRESET))
