"""The lines of a trace file, in blocks of bounded size; gzip, BOM and CRLF are dealt with here."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.core.workload import Int64
from workbench.workload.trace_errors import TraceError

_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 22  # a prompt of 250 million tokens in Mooncake's form
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


class Lines(NamedTuple):
    """Some successive lines of a file that are not blank.

    Attributes:
        numbers: int64[n], line numbers from 1.
        texts: the lines without trailing white space.
    """

    numbers: Int64
    texts: list[bytes]

    def part(self, start: int, stop: int) -> Lines:
        """Lines [start, stop) of these."""
        return Lines(self.numbers[start:stop], self.texts[start:stop])


def read_lines(path: str | os.PathLike[str]) -> Iterator[Lines]:
    """Yield the file's non-blank lines, some thousands at a time, in bounded memory.

    Raises:
        TraceError: the file cannot be read, is not the gzip file that it says it is, or has a line
            longer than any trace would have.
    """
    with _readable(path), Path(path).open("rb") as raw, _decompressed(raw) as file:
        number = 1
        for whole in _whole_lines(path, file):
            texts = [text.rstrip() for text in whole.split(b"\n")]
            lines = _without_blanks(number, texts)
            number += len(texts)
            if lines.texts:
                yield lines


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise TraceError(path, "there is no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(path, f"the gzip file is damaged: {error}") from None
    except OSError as error:
        raise TraceError(path, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a path with a NUL character
        raise TraceError(repr(os.fspath(path)), f"cannot be opened: {error}") from None


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    if raw.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] == _GZIP_MAGIC:
        return io.BufferedReader(gzip.open(raw, "rb"))
    return raw


def _whole_lines(path: str | os.PathLike[str], file: io.BufferedReader) -> Iterator[bytes]:
    """Pieces of the file that end where a line ends, without that last line feed."""
    rest = file.read(len(_BOM)).removeprefix(_BOM)
    while block := file.read(_BLOCK_BYTES):
        head, line_feed, tail = block.rpartition(b"\n")
        if line_feed:
            yield rest + head
            rest = tail
        else:
            rest += tail
        if len(rest) > _MAX_LINE_BYTES:
            raise TraceError(path, f"a line is longer than {_MAX_LINE_BYTES} bytes: not a trace")
    yield rest


def _without_blanks(first_number: int, texts: list[bytes]) -> Lines:
    numbers = np.arange(first_number, first_number + len(texts), dtype=np.int64)
    if b"" not in texts:
        return Lines(numbers, texts)
    kept = [i for i, text in enumerate(texts) if text]
    return Lines(numbers[kept], [texts[i] for i in kept])
