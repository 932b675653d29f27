"""Writes the licences of all sources into one file, which ships with the models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from demo_training.archives import files_in
from demo_training.sources import Source

_LICENCE_FILE: Final = re.compile(
    r"^[^/]*\.dist-info/(licenses/)?(LICEN[CS]E|COPYING|NOTICE)[^/]*$"
    r"|doc/libpython3\.11-minimal/copyright$",
    re.IGNORECASE,
)
_APACHE: Final = re.compile(r"Apache License\s+Version 2\.0, January 2004")
_HEAD: Final = """\
Notices for the demo models

The weights, the tokenizer and held_out.txt in this folder were made from the source code and
documentation of the projects below, by benchmarks/train_demo.py. Whether the weights of a language
model are a derivative work of its training text is not settled. So all of that text is under
permissive licences, all of which are here; the models can be made again by anybody; and the models
themselves are under the Apache License 2.0, like the rest of this program. held_out.txt is text of
CPython under the PSF licence.

The text of the Apache License 2.0 is in the file LICENSE of this program and is not repeated.
"""


def notices(sources: tuple[Source, ...], archives: Path) -> str:
    """All licence and notice files of the sources."""
    parts = [_HEAD]
    for source in sources:
        texts = _licence_texts(source, archives)
        parts.append(f"{'=' * 78}\n{source.name} {source.version}: {source.licence}\n{'=' * 78}\n")
        parts += [f"{text}\n" for text in texts]
    return "\n".join(parts)


def _licence_texts(source: Source, archives: Path) -> list[str]:
    texts = []
    for path, content in files_in(archives / source.file, ("",)):
        text = content.decode("utf-8", "replace").strip()
        is_apache = "Apache" in source.licence and _APACHE.search(text)
        if _LICENCE_FILE.search(path) and not is_apache:
            texts.append("\n".join(line.rstrip() for line in text.splitlines()))
    return texts
