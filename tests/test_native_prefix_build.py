"""The prefix cache in C++ is timed on equal answers, and says what it takes to build it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import invoke

from engine.native import build, prefix_cache
from engine.native.build import PREFIX_CACHE, Extension, NativeUnavailableError
from engine.native.cache_speed import measure_cache_speed
from engine.native.gil import GilMeasurement
from engine.native.prefix_cache import native_cache
from engine.native.repair import repair, why_not
from engine.native.scratch import SCRATCH_PREFIX
from workbench import native_build

pytestmark = pytest.mark.usefixtures("prefix_cache_builds")


def test_both_caches_are_timed_on_the_same_answers() -> None:
    """The comparison that decides has both caches give equal answers, in some time."""
    speed = measure_cache_speed()
    assert speed.equal
    assert min(speed.python_us, speed.native_us) > 0


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be built the error names what is missing."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NativeUnavailableError, match=r"g\+\+ is not installed; it takes pip"):
        native_cache(16)


@pytest.fixture
def good(prefix_cache_builds: Path) -> Path:
    """The library as it was built."""
    found = build.existing(PREFIX_CACHE)
    assert found is not None
    return found


@pytest.fixture
def broken(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that is half there, in a folder of its own; compiling it takes no time."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))

    def compile_into(_: Extension, folder: Path) -> Path:
        return Path(shutil.copy(good, folder))

    monkeypatch.setattr(build, "compile_into", compile_into)
    library = tmp_path / f"{PREFIX_CACHE.name}-{build.key_of(PREFIX_CACHE)}" / good.name
    library.parent.mkdir()
    library.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    return library


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: b"", "it is empty"),
        (lambda whole: whole[:40], "it is not whole"),
        (lambda whole: whole[:-1], "it is not whole"),
        (lambda whole: b"no library", "it is not whole"),
        (lambda whole: whole.replace(b"PyInit_prefix", b"PyInit_suffix"), "ImportError: "),
    ],
)
def test_a_library_that_does_not_load_is_built_again(
    broken: Path, good: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    """And it is said which and why; one that loads stays."""
    broken.write_bytes(damage(good.read_bytes()))
    (line,) = repair(PREFIX_CACHE)
    assert line.startswith(f"{broken} does not load ({said}")
    assert broken.read_bytes() == good.read_bytes()
    assert why_not(PREFIX_CACHE, broken) == ""
    assert list(repair(PREFIX_CACHE)) == []


def test_what_a_wheel_brought_is_replaced_too(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own library would be found before any other."""
    brought = tmp_path / "wheel" / broken.name
    brought.parent.mkdir()
    broken.rename(brought)
    monkeypatch.setattr(build, "bundled", lambda _: brought)
    assert build.existing(PREFIX_CACHE) == brought
    assert len(list(repair(PREFIX_CACHE))) == 1
    assert build.existing(PREFIX_CACHE) == broken


def test_a_library_that_cannot_be_replaced_is_named(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do: where nothing can be compiled, and where what is compiled does not load."""
    whole = build.compile_into
    monkeypatch.setattr(build, "compile_into", lambda _, folder: Path(shutil.copy(broken, folder)))
    with pytest.raises(NativeUnavailableError, match=rf"{broken} does not load, .*; delete it"):
        list(repair(PREFIX_CACHE))

    def fail(*_: object) -> Path:
        raise NativeUnavailableError("g++ is not installed")

    monkeypatch.setattr(build, "compile_into", fail)
    with pytest.raises(NativeUnavailableError, match=rf"{broken} .*; delete it. g\+\+ is not"):
        list(repair(PREFIX_CACHE))
    monkeypatch.setattr(build, "compile_into", whole)
    broken.unlink()
    assert build.build(PREFIX_CACHE) == broken


def test_a_library_that_was_cut_off_is_not_loaded(broken: Path) -> None:
    """It would end the process; a scheduler keeps Python's cache."""
    with pytest.raises(ImportError, match="is not whole"):
        native_cache(16)


@pytest.mark.parametrize("brought", [False, True])
def test_what_another_process_has_built_again_is_not_built_twice(
    broken: Path, good: Path, brought: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was broken when it was looked at; so where a wheel brought it."""
    found = tmp_path / "wheel" / broken.name if brought else broken
    if brought:
        found.parent.mkdir()
        broken.rename(found)
        monkeypatch.setattr(build, "bundled", lambda _: found)

    def why_not_then_mended(extension: Extension, library: Path) -> str:
        why = why_not(extension, library)
        if why:
            found.unlink()
            shutil.copy(good, broken)
        return why

    monkeypatch.setattr("engine.native.repair.why_not", why_not_then_mended)
    monkeypatch.setattr(build, "compile_into", lambda *_: pytest.fail("compiled twice"))
    assert len(list(repair(PREFIX_CACHE))) == 1
    assert build.existing(PREFIX_CACHE) == broken


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_a_library_that_cannot_be_read_does_not_load(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the one that callers know, with what mends it."""
    library = tmp_path / "library.so"
    make(library)
    monkeypatch.setattr(prefix_cache, "build", lambda _: library)
    with pytest.raises(ImportError, match=rf"{library} does not load .*`workbench native` builds"):
        native_cache(16)


def test_building_and_removing_at_once_is_safe(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is being built is lost, and neither fails over what the other has removed."""
    done, failures = threading.Event(), list[BaseException]()

    def compile_into(extension: Extension, folder: Path) -> Path:
        library = folder / extension.file_name
        library.touch()
        return library

    def remove_all() -> None:
        try:
            while not done.is_set():
                native_build.remove()
        except OSError as error:
            failures.append(error)

    monkeypatch.setattr(build, "compile_into", compile_into)
    removers = [threading.Thread(target=remove_all) for _ in range(2)]
    for thread in removers:
        thread.start()
    try:
        for _ in range(200):
            assert build.build(PREFIX_CACHE) == broken
    finally:
        done.set()
        for thread in removers:
            thread.join()
    assert failures == []


def test_a_build_sweeps_what_was_left_behind(broken: Path, tmp_path: Path) -> None:
    """A process that was ended amid a compilation leaves its folder."""
    left, young = (tmp_path / f"{SCRATCH_PREFIX}{name}" for name in ("left", "young"))
    for folder in (left, young):
        folder.mkdir()
    os.utime(left, (0, 0))
    broken.unlink()
    build.build(PREFIX_CACHE)
    assert young.is_dir()
    assert not left.exists()


@pytest.mark.parametrize("command", [("kernels", "gil"), ("native", "--extensions-only")])
def test_commands_build_again_what_does_not_load(
    broken: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they use it or say that it is built."""
    monkeypatch.setattr("engine.native.gil.measure_gil", lambda: GilMeasurement(1, 1.0, ()))
    monkeypatch.setattr("workbench.native_extensions.EXTENSIONS", (PREFIX_CACHE,))
    monkeypatch.setattr("workbench.native_extensions._measure", lambda: None)
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert f"{broken} does not load (it is not whole): building it again\n" in result.output
    assert why_not(PREFIX_CACHE, broken) == ""
