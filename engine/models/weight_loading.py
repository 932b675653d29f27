"""Fills the engine's weights from a checkpoint: checks everything first, then streams it in.

Host memory stays at a few buffers however large the model is. On a CPU the bytes are read into the
weights themselves; towards a GPU each thread reads a piece into a pinned buffer, whose copy then
runs while the next piece is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

import torch

from engine.core.model_spec import ModelSpec
from engine.models.checkpoint import (
    READABLE_DTYPES,
    CheckpointError,
    StoredTensor,
    raise_problems,
    read_bytes,
    read_checkpoint,
)
from engine.models.weight_names import Part, is_ignored, parts
from engine.models.weights import Weights, empty_weights

_PIECE_BYTES: Final = 16 << 20
_NUM_THREADS: Final = 8


def load_weights(
    folder: Path, spec: ModelSpec, device: torch.device | str, dtype: torch.dtype
) -> Weights:
    """The weights of a checkpoint, converted to `dtype` where they are stored in another.

    Args:
        folder: see `read_checkpoint`.
        spec: of the model, from the folder's config.json.
        device: where the weights shall be.
        dtype: bfloat16, float16 or float32.

    Raises:
        CheckpointError: a file is broken; or tensors are missing, unknown, misshapen or of a dtype
            that cannot be read. All of that is found, and reported at once, before any is loaded.
        UnsupportedModelError: see `empty_weights`.
    """
    if spec.weight_dtype not in ("bf16", "fp16", "fp32"):
        raise CheckpointError(f"{folder}: {spec.weight_dtype} checkpoints cannot be loaded")
    stored = read_checkpoint(folder)
    _check(folder, stored, spec)
    weights = empty_weights(spec, device, dtype)
    pieces = [
        piece
        for part in parts(weights, spec, stored)
        for piece in _pieces(stored[part.name], part.target)
    ]
    _read(sorted(pieces, key=lambda piece: (piece.file, piece.offset)), weights.embed.device)
    return weights


def _check(folder: Path, stored: Mapping[str, StoredTensor], spec: ModelSpec) -> None:
    """Raise unless the checkpoint holds exactly the tensors of the model."""
    shapes = empty_weights(spec, "meta", torch.bfloat16)
    expected = list(parts(shapes, spec, stored))
    problems = [problem for part in expected for problem in _part_problems(part, stored, folder)]
    names = {part.name for part in expected}
    problems += [
        f"{tensor.file}: {name} {list(tensor.shape)} is unknown to a model of family {spec.family}"
        for name, tensor in stored.items()
        if name not in names and not is_ignored(name, tensor.shape, shapes)
    ]
    raise_problems(folder, problems)


def _part_problems(part: Part, stored: Mapping[str, StoredTensor], folder: Path) -> Iterator[str]:
    tensor, shape = stored.get(part.name), list(part.target.shape)
    if tensor is None:
        yield f"{folder}: {part.name} {shape} is missing"
        return
    if list(tensor.shape) != shape:
        yield (
            f"{tensor.file}: {part.name} has shape {list(tensor.shape)};"
            f" the model's config.json asks for {shape}"
        )
    if tensor.dtype not in READABLE_DTYPES:
        yield (
            f"{tensor.file}: {part.name} is of dtype {tensor.dtype};"
            f" only {', '.join(READABLE_DTYPES)} can be loaded"
        )


class _Piece(NamedTuple):
    """A range of a file and the elements that it becomes, both flat."""

    file: Path
    offset: int
    num_bytes: int
    dtype: torch.dtype
    target: torch.Tensor


def _pieces(stored: StoredTensor, target: torch.Tensor) -> Iterator[_Piece]:
    dtype = READABLE_DTYPES[stored.dtype]
    flat, offset = target.view(-1), stored.offset
    for elements in flat.split(_PIECE_BYTES // dtype.itemsize):
        num_bytes = elements.numel() * dtype.itemsize
        yield _Piece(stored.file, offset, num_bytes, dtype, elements)
        offset += num_bytes


def _read(pieces: list[_Piece], device: torch.device) -> None:
    """Read all pieces with several threads; the first error ends it."""
    with ExitStack() as stack:
        descriptors = {}
        for file in {piece.file for piece in pieces}:
            descriptors[file] = os.open(file, os.O_RDONLY)
            stack.callback(os.close, descriptors[file])
        executor = stack.enter_context(ThreadPoolExecutor(_NUM_THREADS))
        reader = _GpuReader(pieces, device) if device.type == "cuda" else _read_to_cpu
        # The iterator raises what a thread raised, and cancels what has not begun.
        for _ in executor.map(lambda piece: reader(piece, descriptors[piece.file]), pieces):
            pass
        if isinstance(reader, _GpuReader):
            torch.cuda.synchronize(device)


def _read_to_cpu(piece: _Piece, descriptor: int) -> None:
    """Read into the weights themselves, or convert on the way."""
    if piece.target.dtype == piece.dtype:
        read_bytes(descriptor, piece.offset, _memory(piece.target), piece.file)
        return
    elements = torch.empty_like(piece.target, dtype=piece.dtype)
    read_bytes(descriptor, piece.offset, _memory(elements), piece.file)
    piece.target.copy_(elements)


class _GpuReader:
    """Reads pieces into pinned buffers, each of which has a stream that carries it to the GPU."""

    def __init__(self, pieces: list[_Piece], device: torch.device) -> None:
        # The weights' memory may have been freed by work that still runs on another stream.
        torch.cuda.synchronize(device)
        size = max(piece.num_bytes for piece in pieces)
        self.free: SimpleQueue[tuple[torch.Tensor, torch.cuda.Stream]] = SimpleQueue()
        for _ in range(min(2 * _NUM_THREADS, len(pieces))):
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self.free.put((buffer, torch.cuda.Stream(device)))

    def __call__(self, piece: _Piece, descriptor: int) -> None:
        """Read one piece and start its copy. The buffer used longest ago comes next."""
        buffer, stream = self.free.get()
        stream.synchronize()
        source = buffer[: piece.num_bytes]
        read_bytes(descriptor, piece.offset, _memory(source), piece.file)
        with torch.cuda.stream(stream):
            elements = source.view(piece.dtype)
            if piece.dtype != piece.target.dtype:  # converted there, not here
                elements = elements.to(piece.target.device, non_blocking=True)
            piece.target.copy_(elements, non_blocking=True)
        self.free.put((buffer, stream))


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a flat tensor in host memory."""
    return memoryview(tensor.view(torch.uint8).numpy())
