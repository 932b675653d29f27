"""Which code made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from workbench.record.provenance import source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    return tmp_path


def test_commit_is_what_git_says(repository: Path) -> None:
    """The commit is that of `git rev-parse HEAD`: on a branch, packed, and detached."""
    expected = git(repository, "rev-parse", "HEAD")
    assert source_commit(repository) == expected
    git(repository, "pack-refs", "--all")
    assert source_commit(repository) == expected
    git(repository, "checkout", "-q", "--detach")
    assert source_commit(repository) == expected


def test_commit_of_a_linked_work_tree(repository: Path) -> None:
    """A linked work tree has a commit of its own."""
    linked = repository / "linked"
    git(repository, "worktree", "add", "-q", "-b", "other", str(linked))
    git(linked, "commit", "-q", "--allow-empty", "-m", "two")
    assert source_commit(linked) == git(linked, "rev-parse", "HEAD")
    assert source_commit(linked) != source_commit(repository)


def test_no_repository_has_no_commit(tmp_path: Path) -> None:
    """Outside of git, and before the first commit, there is none."""
    assert source_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert source_commit(tmp_path) is None
