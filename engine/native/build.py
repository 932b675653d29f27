"""Compiles the sources of this package with ninja, once, into the folder of native builds.

A build is found by a hash of its sources, its compiler's flags and, where it is bound to one, its
interpreter; so one that is out of date is never used, and a library that uses only torch's stable
ABI serves every torch. A wheel may bring builds along (`bundled`).
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from engine.compiled import builds_dir
from engine.native.scratch import alone, lock_of, scratch_folder, sweep

FOLDER = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
HINT = "pip install 'llm-serving-workbench[native]', and g++ (CUDA: nvcc)"


class NativeUnavailableError(RuntimeError):
    """There is no build and none can be made here; says what is missing or what failed."""


@dataclass(frozen=True, slots=True)
class Extension:
    """One shared library.

    Attributes:
        name: of the file, without suffix.
        source: its one translation unit, in this package.
        headers: what that includes from this package.
        compiler: "g++" or "nvcc".
        flags: for the compiler, which links, too.
        needs: Python packages whose headers it includes.
        binds_python: whether it is of use to this very interpreter only.
    """

    name: str
    source: str
    headers: tuple[str, ...]
    compiler: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    binds_python: bool = False

    @property
    def file_name(self) -> str:
        """Of the library."""
        return self.name + (EXTENSION_SUFFIXES[0] if self.binds_python else ".so")


OPS_CPU = Extension(
    "workbench_ops_cpu", "ops_cpu.cpp", ("ops.h",), "g++",
    ("-O3", "-std=c++20", "-fPIC", "-shared", STABLE_ABI), ("torch",),
)  # fmt: skip
OPS_CUDA = Extension(
    "workbench_ops_cuda", "ops_cuda.cu", ("ops.h",), "nvcc",
    (
        "-O3", "-std=c++20", "-Xcompiler=-fPIC", "-shared", STABLE_ABI,
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ),
    ("torch",),
)  # fmt: skip
PREFIX_CACHE = Extension(
    "prefix_cache_native", "prefix_cache.cpp",
    ("prefix_cache.h", "prefix_node.h", "prefix_tree.h", "prefix_walk.h"), "g++",
    ("-O3", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden"), ("pybind11",),
    binds_python=True,
)  # fmt: skip
EXTENSIONS = (OPS_CPU, OPS_CUDA, PREFIX_CACHE)


def key_of(extension: Extension) -> str:
    """Names the one build that fits."""
    facts = [platform.machine(), extension.name, extension.compiler, *extension.flags]
    if extension.binds_python:
        facts += [sys.version, EXTENSION_SUFFIXES[0]]
    digest = hashlib.sha256("\0".join(facts).encode())
    for name in (extension.source, *extension.headers):
        digest.update(b"\0" + (FOLDER / name).read_bytes())
    return digest.hexdigest()[:24]


def bundled(extension: Extension) -> Path:
    """Where a wheel that was built with compilers has the library."""
    return FOLDER / "built" / f"{key_of(extension)}-{extension.file_name}"


def _target(extension: Extension) -> Path:
    return builds_dir() / f"{extension.name}-{key_of(extension)}" / extension.file_name


def existing(extension: Extension) -> Path | None:
    """The library, if it has been built."""
    return next((p for p in (bundled(extension), _target(extension)) if p.is_file()), None)


def build(extension: Extension) -> Path:
    """The library, compiled now if need be: 3 to 30 seconds, once.

    Raises:
        NativeUnavailableError: a tool is missing, or the compiler failed; the message says which
            and ends with the compiler's last lines.
    """
    found = existing(extension)
    return _built(extension, None) if found is None else found


@dataclass(frozen=True, slots=True)
class Sighting:
    """A library as it was found, which tells whether it has been replaced since.

    Attributes:
        path: where.
        state: inode, time of the last change and size; None: it is not there.
    """

    path: Path
    state: tuple[int, int, int] | None

    @classmethod
    def of(cls, library: Path) -> Sighting:
        """How it is found now."""
        try:
            found = library.stat()
        except FileNotFoundError:
            return cls(library, None)
        return cls(library, (found.st_ino, found.st_mtime_ns, found.st_size))


def build_again(extension: Extension, broken: Sighting) -> Path:
    """The library, compiled now in place of a broken one, unless another process has done so.

    Raises:
        NativeUnavailableError: as `build`.
        OSError: the broken one cannot be replaced.
    """
    return _built(extension, broken)


def _built(extension: Extension, broken: Sighting | None) -> Path:
    target = _target(extension)
    root = target.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    with alone(lock_of(target.parent)):
        sweep(root)
        mended = broken is None or broken != Sighting.of(broken.path)
        if target.is_file() and mended:  # another process has built it meanwhile
            return target
        with scratch_folder(root) as scratch:
            _put(compile_into(extension, scratch), target)
        if broken is not None and broken.path != target:  # a wheel brought it
            broken.path.unlink(missing_ok=True)
    return target


def _put(library: Path, target: Path) -> None:
    """Put a library into place, with its folder if that is missing."""
    if target.parent.is_dir():
        library.replace(target)
        return
    complete = library.parent / "complete"
    complete.mkdir()
    library.rename(complete / target.name)
    complete.rename(target.parent)


def compile_into(extension: Extension, folder: Path) -> Path:
    """Compile the library in a folder; returns its path.

    Raises:
        NativeUnavailableError: as `build`.
    """
    ninja, compiler = _ninja(), shutil.which(extension.compiler)
    if compiler is None:
        raise NativeUnavailableError(f"{extension.compiler} is not installed; it takes {HINT}")
    command = [compiler, *extension.flags, *_headers_of(extension), "$in", "-o", "$out"]
    libraries = _libraries_of(extension)
    (folder / "build.ninja").write_text(
        f"rule compile\n  command = {_line([*command, *libraries])}\n"
        f"build {extension.file_name}: compile {_escaped(str(FOLDER / extension.source))}\n",
        encoding="utf-8",
    )
    done = subprocess.run(  # noqa: S603 - our own build file
        [ninja, "-C", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise NativeUnavailableError(f"{extension.source} did not compile:\n{last}")
    return folder / extension.file_name


def _ninja() -> str:
    if find_spec("ninja") is not None:
        import ninja

        beside = Path(ninja.BIN_DIR) / "ninja"
        if beside.is_file():
            return str(beside)
    found = shutil.which("ninja")
    if found is None:
        raise NativeUnavailableError(f"ninja is not installed; it takes {HINT}")
    return found


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    # Where a wheel is built pip hides what is installed; headers are of use all the same.
    installed = Path(sysconfig.get_path("purelib")) / name
    if (installed / "include").is_dir():
        return installed
    raise NativeUnavailableError(f"{name} is not installed; it takes {HINT}")


def _headers_of(extension: Extension) -> list[str]:
    folders = [str(_package(name) / "include") for name in extension.needs]
    if extension.binds_python:
        folders.append(sysconfig.get_path("include"))
    return [part for folder in folders for part in ("-isystem", folder)]


def _libraries_of(extension: Extension) -> list[str]:
    if "torch" not in extension.needs:
        return []
    return [f"-L{_package('torch') / 'lib'}", "-ltorch_cpu", "-ldl"]


def _escaped(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _line(parts: list[str]) -> str:
    """A command for a ninja file, which gives it to a shell; ninja itself fills in $in and $out."""
    return " ".join(p if p in ("$in", "$out") else shlex.quote(p).replace("$", "$$") for p in parts)
