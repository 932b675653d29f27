"""Which code made a result."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

_DISTRIBUTION = "llm-serving-workbench"


def workbench_version() -> str:
    """Version of the installed workbench."""
    return metadata.version(_DISTRIBUTION)


def source_commit(source: Path = Path(__file__).parent.parent) -> str | None:
    """The commit checked out in a source tree, in hex; None where `source` is no git work tree.

    It does not tell whether files have been changed since.
    """
    git = source / ".git"
    try:
        if git.is_file():  # a linked work tree: "gitdir: PATH"
            git = source / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        reference = head.removeprefix("ref: ")
        return head if reference == head else _resolve(common, reference)
    except OSError:
        return None


def _resolve(git: Path, reference: str) -> str | None:
    """The commit of a branch, loose or packed; None before its first commit."""
    loose = git / reference
    if loose.is_file():
        return loose.read_text(encoding="utf-8").strip()
    packed = git / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    commits = (line.split(" ", 1) for line in lines if line.endswith(f" {reference}"))
    return next((commit for commit, _ in commits), None)
