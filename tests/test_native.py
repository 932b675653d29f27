"""The compiled core gives the Python one's results, and is never used when out of date."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from command_line import WORKBENCH

from engine import compiled
from engine.native.build import PREFIX_CACHE
from engine.native.scratch import SCRATCH_PREFIX, alone, lock_of, scratch_folder
from engine.native.whole import damage_of
from workbench import native_build
from workbench.cli.damaged_build import leave_out_damaged_build

ROOT = Path(__file__).parent.parent

RUN = """
import hashlib, sys
sys.path.insert(0, {tests!r})
from native_probe import fingerprint
import engine.core.scheduler
print(engine.core.scheduler.__file__)
print(fingerprint())
"""


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh build of the present sources, which are on PYTHONPATH, too."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_NATIVE_DIR", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))  # mypy must not take them for foreign packages
        native_build.build()
    return folder


def _run(**environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", RUN.format(tests=str(ROOT / "tests"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    return result.stdout.split()


def test_compiled_runs_equal_python_runs(builds: Path) -> None:
    """Every table of random runs is the same, byte for byte, compiled or not."""
    native_file, native = _run(WORKBENCH_NATIVE="1", WORKBENCH_NATIVE_DIR=str(builds))
    python_file, python = _run(WORKBENCH_NATIVE="0")
    assert Path(native_file).is_relative_to(builds)
    assert python_file.endswith("engine/core/scheduler.py")
    assert native == python


def test_build_of_other_sources_is_ignored(builds: Path, tmp_path: Path) -> None:
    """A build whose key is not that of the present sources is not used."""
    stale = tmp_path / "0123456789abcdef"
    shutil.copytree(builds / compiled.build_key(), stale)
    file, _ = _run(WORKBENCH_NATIVE="1", WORKBENCH_NATIVE_DIR=str(tmp_path))
    assert file.endswith("engine/core/scheduler.py")


def test_second_build_is_instant(builds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building again finds the build and compiles nothing."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(builds))
    monkeypatch.setattr(native_build, "_compile", lambda work: pytest.fail("compiled again"))
    assert native_build.build() == builds / compiled.build_key()


def test_failed_compilation_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails gives an error with its last lines, and leaves no build."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "MODULES", ("engine.core.no_such_module",))
    with pytest.raises(native_build.NativeBuildError, match="C compiler"):
        native_build.build()
    assert not any(tmp_path.iterdir())


def test_missing_mypyc_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without mypyc the error names the packages."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setattr(native_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(native_build.NativeBuildError, match="pip install mypy"):
        native_build.build()


def test_remove_leaves_what_is_being_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes; what a process left that was ended goes, and is no build."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    left, young = (tmp_path / f"{SCRATCH_PREFIX}{name}" for name in ("left", "young"))
    for folder in (left, young, tmp_path / "a"):
        folder.mkdir()
    with scratch_folder(tmp_path) as held:
        for folder in (left, held):
            os.utime(folder, (0, 0))
        assert native_build.remove() == 1
        assert {path.name for path in tmp_path.iterdir()} == {held.name, young.name}
    os.utime(young, (0, 0))
    assert native_build.remove() == 0
    assert not any(tmp_path.iterdir())


def test_remove_deletes_all_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`remove` counts and deletes what is there, and nothing when there is nothing."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path / "none"))
    assert native_build.remove() == 0
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert native_build.remove() == 1
    assert not any(tmp_path.iterdir())


def test_remove_says_what_it_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And why; the locks are those that a build holds."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    core, cache = tmp_path / "0123", tmp_path / f"{PREFIX_CACHE.name}-4567"
    other = tmp_path / "workbench_ops_cpu-89ab"
    young = tmp_path / f"{SCRATCH_PREFIX}young"
    for folder in (core, cache, other, young):
        folder.mkdir()
    said: list[str] = []
    with alone(lock_of(core)), alone(lock_of(cache)), scratch_folder(tmp_path) as held:
        assert native_build.remove(said.append) == 1
    assert not other.exists()
    assert sorted(said) == sorted([
        f"{core} is left alone: a process builds or removes it",
        f"{cache} is left alone: a process builds or removes it",
        f"{held} is left alone: a process builds in it",
        f"{young} is left alone: a process may build in it until it is 10 minutes old",
    ])  # fmt: skip
    assert native_build.remove() == 2


# ---- builds that are damaged ---------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build of the present sources whose libraries are all empty."""
    monkeypatch.setenv("WORKBENCH_NATIVE", "1")
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    folder = tmp_path / compiled.build_key()
    folder.mkdir()
    for module in (*compiled.MODULES, "0123__mypyc"):
        (folder / f"{module}{EXTENSION_SUFFIXES[0]}").touch()
    return folder


def _workbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WORKBENCH, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["version", "--version"])
def test_commands_run_as_python_beside_a_damaged_build(damaged: Path, command: str) -> None:
    """They say so once, with what mends it."""
    result = _workbench(command)
    assert result.returncode == 0, result.stderr
    assert "core      Python" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"warning: {damaged} is damaged (")
    assert line.endswith("`workbench native` builds it again")


def test_a_damaged_build_can_be_removed(damaged: Path) -> None:
    """By the command that removes all."""
    assert _workbench("native", "--remove").stdout == "removed 1 builds\n"
    assert not damaged.exists()


def test_what_a_command_starts_leaves_a_damaged_build_out_too(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a word; until it is mended."""
    monkeypatch.setattr(sys, "meta_path", [compiled.NativeFinder(damaged), *sys.meta_path])
    monkeypatch.setattr(native_build, "_make", Path.mkdir)
    leave_out_damaged_build()
    assert compiled.active_build() is None
    leave_out_damaged_build()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert _run()[0].endswith("engine/core/scheduler.py")
    native_build.build()
    assert os.environ.get("WORKBENCH_NATIVE") != "0"


@pytest.mark.parametrize("lacking", ["0123__mypyc", "engine.core.scheduler"])
def test_a_build_that_lacks_a_library_is_damaged(
    damaged: Path, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module, or the one with the code of all."""
    monkeypatch.setattr("engine.native.whole.is_whole", lambda _: True)
    assert damage_of(damaged) == ""
    (damaged / f"{lacking}{EXTENSION_SUFFIXES[0]}").unlink()
    assert damage_of(damaged).endswith("is missing")


@pytest.mark.parametrize(("looks_whole", "why"), [(False, "is not whole"), (True, "ImportError: ")])
def test_a_build_that_does_not_load_is_made_again(
    damaged: Path, looks_whole: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is said which and why."""
    if looks_whole:
        monkeypatch.setattr(native_build, "damage_of", lambda _: "")
    monkeypatch.setattr(native_build, "_make", Path.mkdir)
    said: list[str] = []
    assert native_build.build(said.append) == damaged
    (line,) = said
    assert line.startswith(f"{damaged} does not load (")
    assert why in line
    assert not any(damaged.iterdir())
