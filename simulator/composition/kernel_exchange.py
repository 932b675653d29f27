"""What GPUs were measured to take to exchange sums and parts, by how many and how many bytes.

`workbench calibrate --kernels` measures it where there are several GPUs and writes
`exchange-<gpu>.json`; kernel tables hold a copy of what lies beside them. It may be of another GPU
than the kernels, as links differ less than GPUs do; then whoever predicts with it says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from engine.core.bounded_file import read_bounded
from simulator.profile import ProfileError
from simulator.samples import Positive

SCHEMA: Final = "exchange/v1"
PREFIX: Final = "exchange-"  # of the file's name
OPS: Final = ("all_reduce", "all_gather")

Time = Annotated[float, msgspec.Meta(gt=0)]


class ExchangeSeries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times of one kind of exchange among some GPUs, launched in a CUDA Graph.

    Attributes:
        op: of `OPS`.
        gpus: that take part.
        bytes: of the result on each of them, ascending.
        ns: median time at each, of the slowest GPU.
        spread_ns: median absolute deviation from it.
    """

    op: str
    gpus: Positive
    bytes: tuple[Positive, ...]
    ns: tuple[Time, ...]
    spread_ns: tuple[float, ...]


class ExchangeTables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured on one machine.

    Attributes:
        gpu: as the driver names it, or "cpu".
        engine_version: of the package; commit: of the tree, or None.
        versions: of torch, cuda, nccl, as far as known.
        conditions: when and how; for the reader.
    """

    schema: str
    gpu: str
    engine_version: str
    series: tuple[ExchangeSeries, ...]
    commit: str | None = None
    versions: dict[str, str] = {}
    conditions: dict[str, Any] = {}


def read_exchange(path: Path) -> ExchangeTables:
    """The tables in a file.

    Raises:
        ProfileError: it is not there, holds none, or contradicts itself.
    """
    try:
        tables = msgspec.json.decode(read_bounded(path), type=ExchangeTables)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} holds no exchange between GPUs: {error}") from None
    problem = exchange_problem(tables)
    if problem:
        raise ProfileError(f"{path}: {problem}")
    return tables


def encode_exchange(tables: ExchangeTables) -> bytes:
    """The tables as JSON, indented. Raises ProfileError if they could not be read again."""
    problem = exchange_problem(tables)
    if problem:
        raise ProfileError(f"exchange of {tables.gpu}: {problem}")
    return msgspec.json.format(msgspec.json.encode(tables), indent=1) + b"\n"


def exchange_problem(tables: ExchangeTables) -> str | None:
    """What keeps tables from being read as curves, if anything does."""
    if tables.schema != SCHEMA:
        return f"it is {tables.schema!r}, this version reads {SCHEMA!r}: measure again"
    names = [(each.op, each.gpus) for each in tables.series]
    for each in tables.series:
        where = f"the series of {each.op} on {each.gpus} GPUs"
        if each.op not in OPS:
            return f"{where}: no such op; ops: {', '.join(OPS)}"
        if len({len(each.bytes), len(each.ns), len(each.spread_ns)}) > 1:
            return f"{where} has columns of different lengths"
        if len(each.bytes) < 2:
            return f"{where} has fewer than two points, hence no slope"
        if np.any(np.diff(each.bytes) <= 0):
            return f"{where} has bytes that do not ascend"
        if names.count((each.op, each.gpus)) > 1:
            return f"{where} is there twice"
    return None


def likeliest(found: Iterable[ExchangeTables], gpu: str) -> ExchangeTables | None:
    """Of the same GPU if there are any, else of another; None: there are none."""
    ordered = sorted(found, key=lambda tables: (tables.gpu != gpu, tables.gpu))
    return ordered[0] if ordered else None
