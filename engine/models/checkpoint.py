"""Reads a folder of safetensors files: which tensors there are, and their bytes.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes with the length of a header, the
header as JSON (name -> dtype, shape, begin and end of the data), then the data. Ranges of a file
are read with `pread`, straight into where they are wanted, so that many threads can read one file
and no more host memory is used than the buffers they bring.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from engine.core.bounded_file import read_bounded

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

# What the engine can turn into its weights; quantized formats need their scales too.
READABLE_DTYPES: Final[dict[str, torch.dtype]] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}

_MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
_MAX_DIMENSIONS: Final = 64  # torch's own limit
_MAX_SIZE: Final = 1 << 63
_DTYPE_BITS: Final[dict[str, int]] = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16,
    "F16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8,
    "BOOL": 8, "F4": 4,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is broken, or not the model's. The message names files and tensors."""


class StoredTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        dtype: as the format spells it, such as "BF16".
        shape: of the tensor.
        offset: first byte of its data, from the start of the file.
        num_bytes: length of its data.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its name; reads the headers, not the data.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Raises:
        CheckpointError: a file is missing, broken or shorter than its header says; an index and
            its shards disagree. All that is wrong with the files is reported at once.
    """
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _read_shards(folder, _weight_map(index))
    others = sorted(path.name for path in folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES)
    found = f"; it holds {', '.join(others[:5])}" if others else ""
    raise CheckpointError(f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there{found}")


_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def _read_shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    problems: list[str] = []
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name in sorted(set(weight_map.values())):
        try:
            shards[name] = read_header(folder / name)
        except CheckpointError as error:
            problems.append(str(error))
    tensors: dict[str, StoredTensor] = {}
    for shard, stored in shards.items():
        for name, tensor in stored.items():
            if name in tensors:
                problems.append(f"{name} is both in {tensors[name].file.name} and in {shard}")
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if shard in shards and name not in shards[shard]:
            problems.append(f"{folder / shard}: {name} is not in it, but {INDEX_NAME} says so")
    raise_problems(folder, problems)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        values = json.loads(read_bounded(index))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read: {error}") from error
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no `weight_map`")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {name} is in {shard!r}, which is no file's name")
    return weight_map


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises CheckpointError that names the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise CheckpointError(f"{file}: is a Git LFS pointer; the weights were not fetched")
            if len(start) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: is no safetensors file, or it is cut off")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _stored(file, name, entry, 8 + length, size) for name, entry in header.items()}


def _stored(file: Path, name: str, entry: Any, data: int, file_size: int) -> StoredTensor:
    """One entry of a header, checked. `data` is where the data of the file begins."""
    try:
        dtype, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: the header's entry of {name} is malformed") from error
    sizes_fit = len(shape) <= _MAX_DIMENSIONS and all(0 <= size < _MAX_SIZE for size in shape)
    if not (0 <= begin <= end and sizes_fit and isinstance(dtype, str)):
        raise CheckpointError(f"{file}: the header's entry of {name} is malformed")
    if data + end > file_size:
        raise CheckpointError(
            f"{file}: is cut off: {name} ends at byte {data + end}, the file at {file_size}"
        )
    bits = _DTYPE_BITS.get(dtype)
    if bits is not None and (end - begin) * 8 != math.prod(shape) * bits:
        raise CheckpointError(
            f"{file}: {name} of shape {list(shape)} and dtype {dtype} cannot be {end - begin} bytes"
        )
    return StoredTensor(file, dtype, shape, data + begin, end - begin)


def read_bytes(descriptor: int, offset: int, into: memoryview, file: Path) -> None:
    """Fill `into` from a file at `offset`; `file` stands in the error if it ends too soon."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"{file}: ends at byte {offset + done} while it is read")
        done += count


def raise_problems(source: Path, problems: list[str]) -> None:
    """Raise one CheckpointError that lists the first problems and counts the rest."""
    if not problems:
        return
    shown, rest = problems[:_MAX_PROBLEMS], len(problems) - _MAX_PROBLEMS
    if len(problems) == 1:
        raise CheckpointError(shown[0])
    more = [f"and {rest} more"] if rest > 0 else []
    lines = "".join(f"\n  {line}" for line in shown + more)
    raise CheckpointError(f"{source}: {len(problems)} problems{lines}")


_MAX_PROBLEMS: Final = 20
