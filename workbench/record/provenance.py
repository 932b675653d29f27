"""Which code and which files made a result."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from simulator import shipped_profiles
from workbench.record.header import InputFacts
from workbench.scenario.schema import Scenario, TraceWorkload

NOT_INSTALLED = "not installed"
_DISTRIBUTION = "llm-serving-workbench"


def workbench_version() -> str:
    """Version of the workbench, `NOT_INSTALLED` when it runs from a bare source tree."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def input_files(scenario: Scenario) -> dict[str, InputFacts]:
    """The files that a scenario names, by the key that names them, as they are now.

    Raises:
        OSError: one of them cannot be read.
    """
    hardware, model = scenario.hardware, scenario.model
    named = {"model.path": model.path, "hardware.profile": hardware.profile_path}
    if isinstance(scenario.workload, TraceWorkload):
        named["workload.path"] = scenario.workload.path
    return {key: input_file(Path(path)) for key, path in named.items() if path is not None}


def input_file(path: Path) -> InputFacts:
    """A file's place and content. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InputFacts(path=str(path.resolve()), sha256=digest)


def place_now(facts: InputFacts) -> Path:
    """Where a file that a run read is to be looked for.

    Where it was, or, if no file is there, among the shipped profiles: another installation has them
    in another place. Raises OSError if it cannot be told.
    """
    path = Path(facts.path)
    shipped = shipped_profiles.FOLDER / path.name
    return shipped if shipped.is_file() and not path.is_file() else path


def source_commit(source: Path = Path(__file__).parents[2]) -> str | None:
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
