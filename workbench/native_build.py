"""Builds the machine code that `engine.compiled` finds. Needs mypy (for mypyc) and a C compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from engine import compiled
from engine.native.scratch import SCRATCH_PREFIX, alone, lock_of, scratch_folder, sweep
from engine.native.whole import damage_of, leave_out, take_back

INSTALL_HINT = "`pip install mypy setuptools` and a C compiler (gcc, clang or Xcode's tools)"


class NativeBuildError(RuntimeError):
    """The build failed; the message says what to do, with the compiler's last lines."""


def build(say: Callable[[str], object] = lambda _: None) -> Path:
    """Compile the present sources; returns the folder of the build, at once if it is there.

    Args:
        say: told of a build that does not load, which is made again.

    Raises:
        NativeBuildError: mypyc or a C compiler is missing, or the compilation failed.
    """
    target = compiled.builds_dir() / compiled.build_key()
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(lock_of(target)):
        if target.is_dir():
            why = _why_not(target)
            if not why:
                return target
            say(f"{target} does not load ({why}): building it again")
            leave_out(target)
            shutil.rmtree(target)
        _make(target)
    take_back(target)
    return target


def _make(target: Path) -> None:
    if importlib.util.find_spec("mypyc") is None:
        raise NativeBuildError(f"mypyc is not installed; it takes {INSTALL_HINT}")
    with tempfile.TemporaryDirectory(prefix="workbench-native-") as scratch:
        work = Path(scratch)
        _copy_sources(work)
        _compile(work)
        _store(work, target)
    _check(target)


def remove(say: Callable[[str], object] = lambda _: None) -> int:
    """Delete all builds, and what was left of unfinished ones; returns how many builds there were.

    Args:
        say: told of what is left alone, and why: another process is building it.
    """
    root = compiled.builds_dir()
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    builds = [path for path in folders if not path.name.startswith(SCRATCH_PREFIX)]
    removed = sum(_remove(path, say) for path in builds)
    for line in sweep(root):
        say(line)
    return removed


def _remove(path: Path, say: Callable[[str], object]) -> bool:
    with alone(lock_of(path), wait=False) as unused:
        if not path.is_dir():
            return False
        if not unused:
            say(f"{path} is left alone: a process builds or removes it")
            return False
        shutil.rmtree(path)
    return True


def _copy_sources(work: Path) -> None:
    for path in compiled.source_files():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(compiled.ROOT / path, work / path)


def _compile(work: Path) -> None:
    files = [name.replace(".", "/") + ".py" for name in compiled.MODULES]
    result = subprocess.run(  # noqa: S603 - our own interpreter on our own sources
        [sys.executable, "-m", "mypyc", *files],
        cwd=work,
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    if result.returncode != 0:
        last = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise NativeBuildError(f"the compilation failed; it takes {INSTALL_HINT}\n{last}")


def _environment() -> dict[str, str]:
    """Without our own sources on the path: mypy takes what it finds there for foreign packages."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [folder for folder in path if folder and Path(folder).resolve() != compiled.ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(others), "WORKBENCH_NATIVE": "0"}


def _store(work: Path, target: Path) -> None:
    """Put the extension modules into place, named by module, all at once."""
    suffix = EXTENSION_SUFFIXES[0]
    sweep(target.parent)
    with scratch_folder(target.parent) as fresh:
        complete = fresh / "build"
        complete.mkdir()
        for file in work.glob(f"*{suffix}"):
            shutil.copy(file, complete / file.name)
        for module in compiled.MODULES:
            file = work / (module.replace(".", "/") + suffix)
            shutil.copy(file, complete / f"{module}{suffix}")
        try:
            complete.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _check(target: Path) -> None:
    """The build must load in a fresh interpreter; one that does not is deleted."""
    if why := _why_not(target):
        shutil.rmtree(target, ignore_errors=True)
        raise NativeBuildError(f"the build does not load:\n{why}")


def _why_not(target: Path) -> str:
    """Why a build does not load in a fresh interpreter; "" if it does."""
    if damage := damage_of(target):
        return damage
    code = "import engine.core.scheduler as s, simulator.world; print(s.__file__)"
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=compiled.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "WORKBENCH_NATIVE": "1"},
        check=False,
    )
    if result.returncode == 0:
        return "" if str(target) in result.stdout else "an interpreter does not find it"
    said = result.stderr.strip().splitlines()
    return said[-1] if said else f"the interpreter ended with {result.returncode}"
