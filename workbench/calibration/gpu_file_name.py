"""Names of files that hold what was measured of a GPU."""

from __future__ import annotations

import re


def gpu_file_name(prefix: str, gpu: str) -> str:
    """`<prefix><gpu>`, of letters that every file system takes."""
    return prefix + re.sub(r"[^a-z0-9.]+", "-", gpu.casefold()).strip("-")
