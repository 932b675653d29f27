"""Whether what was built is there to its end, and how a process does without a core that is not.

To load a library that was cut off, by a full disk say, can end the process.
"""

from __future__ import annotations

import fnmatch
import os
import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from engine.compiled import MODULES, NativeFinder

MENDS: Final = "`workbench native` builds it again"
_ELF, _ELF_64 = b"\x7fELF", b"\x7fELF\x02\x01"
_left_out: set[Path] = set()


def is_whole(library: Path) -> bool:
    """Whether a library is there to its end; to load one that was cut off can end the process."""
    with library.open("rb") as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if not sys.platform.startswith("linux"):
        return size > 0
    if len(head) < 64 or not head.startswith(_ELF_64):
        return head.startswith(_ELF) and len(head) == 64
    (table,) = struct.unpack_from("<Q", head, 40)  # of sections, which is the last of a file
    entry_bytes, entries = struct.unpack_from("<HH", head, 58)
    return bool(table + entry_bytes * entries <= size)


def damage_of(core: Path) -> str:
    """What is not whole of a build of `engine.compiled`, or not there; "" if all is."""
    suffix = EXTENSION_SUFFIXES[0]
    found = {file.name: file for file in core.glob(f"*{suffix}")}
    for module in (*MODULES, "*__mypyc"):  # the last holds the code of all
        if not fnmatch.filter(found, f"{module}{suffix}"):
            return f"{module}{suffix} is missing"
    for name, file in found.items():
        try:
            if not is_whole(file):
                return f"{name} is not whole"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def leave_out(core: Path) -> None:
    """Have this process, which has loaded nothing of a build, and those it starts run as Python."""
    for finder in list(sys.meta_path):
        if isinstance(finder, NativeFinder) and finder.folder == core:
            sys.meta_path.remove(finder)
            os.environ["WORKBENCH_NATIVE"] = "0"
            _left_out.add(core)


def take_back(core: Path) -> None:
    """Have processes that are started from now on use a build that was left out and is mended."""
    if core in _left_out:
        _left_out.remove(core)
        os.environ.pop("WORKBENCH_NATIVE", None)
