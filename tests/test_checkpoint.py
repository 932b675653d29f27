"""Reading safetensors folders, whole and broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.models.checkpoint import (
    INDEX_NAME,
    SINGLE_NAME,
    CheckpointError,
    raise_problems,
    read_bytes,
    read_checkpoint,
    read_header,
)

SHARDS = {
    "model-00001-of-00002.safetensors": {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).to(torch.bfloat16),
    },
    "model-00002-of-00002.safetensors": {
        "c": torch.randn(2, 2, 2).to(torch.float16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
    },
}


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]] = SHARDS) -> None:
    """A sharded checkpoint with its index."""
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    write_index(folder, {name: shard for shard, tensors in shards.items() for name in tensors})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def content(stored) -> torch.Tensor:
    """The bytes of a stored tensor."""
    buffer = bytearray(stored.num_bytes)
    descriptor = os.open(stored.file, os.O_RDONLY)
    read_bytes(descriptor, stored.offset, memoryview(buffer), stored.file)
    os.close(descriptor)
    return bytes(buffer)


@pytest.mark.parametrize("sharded", [True, False])
def test_every_tensor_is_found_with_its_bytes(sharded: bool, tmp_path: Path) -> None:
    """Names, shapes, dtypes and contents are those that safetensors wrote, in one file or two."""
    everything = {name: t for tensors in SHARDS.values() for name, t in tensors.items()}
    if sharded:
        write_shards(tmp_path)
    else:
        save_file(everything, tmp_path / SINGLE_NAME)
    stored = read_checkpoint(tmp_path)
    assert set(stored) == set(everything)
    dtypes = {"a": "F32", "b": "BF16", "c": "F16", "scalar": "I64", "empty": "F32"}
    for name, tensor in everything.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert stored[name].dtype == dtypes[name]
        assert content(stored[name]) == bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    """Whichever part of a file is missing, header or data, the error names the file."""
    file = tmp_path / SINGLE_NAME
    save_file(SHARDS["model-00001-of-00002.safetensors"], file)
    whole = file.read_bytes()
    for length in (0, 7, 8, 50, len(whole) - 68, len(whole) - 9, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is .*cut off"):
            read_checkpoint(tmp_path)


def header_file(file: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "its header is not JSON"),
        ([], "its header is not a JSON object"),
        ({"a": 3}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "cannot be 8 bytes"),
    ],
)
def test_a_broken_header_is_explained(header: object, message: str, tmp_path: Path) -> None:
    """Each inconsistency of a header names file and tensor."""
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{message}"):
        read_header(header_file(tmp_path / "x.safetensors", header, bytes(8)))


def test_files_that_are_something_else_are_told_apart(tmp_path: Path) -> None:
    """A Git LFS pointer, a random file, a folder and a missing file each say what they are."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read_header(file)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_header(file)
    for path, reason in ((tmp_path, "directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(CheckpointError, match=f"cannot be read: .*{reason}"):
            read_header(path)


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    """A missing shard, a tensor that is not where it should be and one that is twice: all told."""
    write_shards(tmp_path)
    first, second = SHARDS
    write_index(tmp_path, {"a": first, "b": first, "c": second, "d": second, "e": "gone.x"})
    save_file({"a": torch.zeros(1), "c": torch.zeros(1)}, tmp_path / second)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    message = str(caught.value)
    assert "3 problems" in message
    assert "gone.x: cannot be read: No such file" in message
    assert f"{second}: d is not in it" in message
    assert f"a is both in {first} and in {second}" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has no `weight_map`"),
        ('{"weight_map": {}}', "has no `weight_map`"),
        ('{"weight_map": {"a": "../x"}}', "a is in '../x', which is no file's name"),
        ('{"weight_map": {"a": 1}}', "a is in 1, which is no file's name"),
    ],
)
def test_a_broken_index_is_explained(text: str, message: str, tmp_path: Path) -> None:
    """The error names the index file."""
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=rf"index\.json: {message}"):
        read_checkpoint(tmp_path)


def test_a_folder_of_other_formats_says_what_it_holds(tmp_path: Path) -> None:
    """A checkpoint in PyTorch's own format is not silently taken for none."""
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"is there; it holds pytorch_model\.bin"):
        read_checkpoint(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """Bytes that are no longer there are an error, never zeros."""
    file = tmp_path / "x"
    file.write_bytes(b"123")
    with file.open("rb") as stream, pytest.raises(CheckpointError, match="ends at byte 3"):
        read_bytes(stream.fileno(), 1, memoryview(bytearray(5)), file)


def test_many_problems_are_counted_not_all_listed() -> None:
    """A wrong folder gives a message that a person can read."""
    with pytest.raises(CheckpointError) as caught:
        raise_problems(Path("folder"), [f"problem {i}" for i in range(1000)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "folder: 1000 problems"
    assert (len(lines), lines[-1].strip()) == (22, "and 980 more")
