"""Whether what was built is there to its end."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Final

MENDS: Final = "`workbench native` builds it again"
_ELF, _ELF_64 = b"\x7fELF", b"\x7fELF\x02\x01"


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
