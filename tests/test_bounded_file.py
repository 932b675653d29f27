"""A wrong path costs an error that names file, size and limit, and never the memory of the file."""

from __future__ import annotations

import importlib
import os
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.core.bounded_file import MOST_JSON_BYTES, FileTooLargeError, read_bounded
from engine.core.model_spec import load_model_spec
from workbench.cli import app
from workbench.record.run_record import RunReader

SIZE = 1 << 40  # of a sparse file
MOST_TAKEN_BYTES = 1 << 20  # by refusing it


def giant(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def imported(name: str) -> Callable[..., object]:
    """A function that may lack its libraries here."""
    module, _, function = name.rpartition(".")
    if module.startswith("engine.models"):
        pytest.importorskip("torch")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


def tokenizer(folder: Path) -> object:
    pytest.importorskip("tokenizers")
    from engine.runtime.tokenizer import Tokenizer

    return Tokenizer.from_folder(folder)


def special_tokens(folder: Path) -> object:
    return imported("engine.models.model_folder.special_tokens")(folder)


def reads(name: str) -> Callable[[Path], object]:
    return lambda folder: imported(name)(folder / "it.json")


def checkpoint(folder: Path) -> object:
    return imported("engine.models.checkpoint.read_checkpoint")(folder)


def case(folder: Path) -> object:
    return imported("workbench.fuzz.case_file.repeat_file")(folder / "it.json", {})


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("config.json", lambda folder: load_model_spec(str(folder))),
    "shape": ("it.json", lambda folder: load_model_spec(str(folder / "it.json"))),
    "generation config": ("generation_config.json", special_tokens),
    "index": ("model.safetensors.index.json", checkpoint),
    "tokenizer": ("tokenizer.json", tokenizer),
    "profile": ("it.json", reads("simulator.profile_file.read_profile")),
    "identity": ("it.json", reads("simulator.shipped_profiles.read_identity")),
    "kernel tables": ("it.json", reads("simulator.composition.kernel_file.read_kernel_file")),
    "exchange": ("it.json", reads("simulator.composition.kernel_exchange.read_exchange")),
    "their identity": ("it.json", reads("simulator.shipped_profiles.read_kernel_identity")),
    "kernel lab": ("it.json", reads("engine.kernels.lab.results.read_results")),
    "gaps": ("it.json", reads("workbench.profile.gap_story.read_stories")),
    "trace": ("it.json", reads("workbench.profile.trace.read_trace")),
    "counters": ("it.json", reads("workbench.profile.ncu_report.read_ncu")),
    "case": ("it.json", case),
    "suite": ("it.json", reads("workbench.fidelity.suite.read_json")),
    "run": ("header.json", RunReader),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_giant_file_is_refused_unread(kind: str, tmp_path: Path) -> None:
    """Of whatever kind it should have been: name, size and limit, and next to no memory."""
    name, read = READERS[kind]
    path = giant(tmp_path / name)
    with pytest.raises(Exception, match="bytes") as caught:
        read(tmp_path)  # imports what it takes
    tracemalloc.start()
    try:
        with pytest.raises(type(caught.value)):
            read(tmp_path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, MemoryError)
    assert taken < MOST_TAKEN_BYTES
    message = str(caught.value)
    assert str(path) in message
    assert f"{SIZE:,} bytes" in message
    assert re.search(r"at most [\d,]+", message)


def test_a_giant_profile_is_a_usage_error(tmp_path: Path) -> None:
    """Of the command, too: one message, no traceback."""
    path = giant(tmp_path / "model.safetensors")
    for setting in (f"hardware.profile={path}", f"model={{path: {path}}}"):
        result = CliRunner().invoke(app, ["simulate", "quickstart", "--set", setting])
        assert result.exit_code == 2, result.output
        assert f"{SIZE:,} bytes" in result.output.replace("\n", " ")


def test_a_file_of_the_limit_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed, one byte more is not."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bounded(path, 100) == b"x" * 100
    with pytest.raises(FileTooLargeError, match="has 100 bytes, and a file of its kind at most 99"):
        read_bounded(path, 99)
    assert MOST_JSON_BYTES > 10_000_000  # an index of 100,000 tensors


def test_what_has_no_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """A pipe that never ends is given up at the limit."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write(count: int) -> None:
        with path.open("wb") as pipe:
            pipe.write(b"x" * count)

    for count in (100, 101):
        writer = threading.Thread(target=write, args=(count,))
        writer.start()
        if count == 100:
            assert read_bounded(path, 100) == b"x" * 100
        else:
            with pytest.raises(FileTooLargeError, match="has more than 100 bytes"):
                read_bounded(path, 100)
        writer.join()
