"""What there is to open: shipped scenarios, those of the working directory, recorded runs.

What is slow to import is imported where it is used, in a thread, so that the interface opens first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from workbench.record.header import RunHeader

Kind = Literal["shipped", "file", "run"]

GROUPS: Final[dict[Kind, str]] = {
    "shipped": "shipped scenarios",
    "file": "in this folder",
    "run": "recorded runs",
}
_SUFFIXES: Final = {".yaml", ".yml"}
_HEAD_BYTES: Final = 4096  # of a file, in which the line with its schema stands
_MOST_RUNS: Final = 500  # that are listed, newest first


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list.

    Attributes:
        kind: what it is.
        name: what the command line calls it: a shipped name, or a path.
        title: what the list calls it.
        note: a sentence about it.
        path: the file or directory; None for a shipped scenario.
        run: facts of a recorded run, else None.
        unreadable: whether it is a recorded run that cannot be read; `note` says why.
        stands_for: the shipped scenario in whose place it is listed, as it has another text.
    """

    kind: Kind
    name: str
    title: str
    note: str = ""
    path: Path | None = None
    run: RunFacts | None = None
    unreadable: bool = False
    stands_for: str = ""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the list says of a recorded run.

    Attributes:
        header: of its record.
        summary: its metrics, or None.
        ended_s: when its record was last written, in s of the system's clock.
    """

    header: RunHeader
    summary: dict[str, Any] | None
    ended_s: float

    @property
    def outcome(self) -> str:
        """In a few letters how it went: its SLO attainment, or how it broke off."""
        if self.header.status != "complete":
            return self.header.status
        summary = self.summary or {}
        attained = summary.get("slo_attainment_percent")
        if attained is not None and self.header.slo.given():
            return f"{attained:.1f}% slo"
        throughput = summary.get("output_throughput")
        return "complete" if throughput is None else f"{throughput:,.0f} tok/s"

    def age(self) -> str:
        """How long ago it ended, in a few letters."""
        seconds = max(0.0, time.time() - self.ended_s)
        for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
            if seconds >= size:
                return f"{seconds / size:.0f}{unit}"
        return f"{seconds:.0f}s"


def scenario_entries(folder: Path, named: str = "") -> list[Entry]:
    """Shipped scenarios and scenario files of a folder, each scenario once.

    A file that is called like a shipped scenario is that one if it has its text; with another text
    it stands in its place.

    Args:
        folder: of the files.
        named: a file that is listed in any case, wherever it is.
    """
    shipped = {entry.name: entry for entry in shipped_entries()}
    files: list[Entry] = []
    replaced: set[str] = set()
    for entry in file_entries(folder):
        twin = Path(entry.name).stem
        if twin not in shipped:
            files.append(entry)
        elif not _is_shipped_text(Path(entry.name), twin):
            files.append(replace(entry, stands_for=twin))
            replaced.add(twin)
        elif entry.name == named:
            files.append(entry)
            replaced.add(twin)
    if named not in {entry.name for entry in files}:
        files = [*named_entry(named), *files]
    return [*(entry for name, entry in shipped.items() if name not in replaced), *files]


def listed_as(entries: Iterable[Entry], name: str) -> str:
    """The name under which a scenario is listed: its own, or that of the file in its place."""
    return next((entry.name for entry in entries if entry.stands_for == name), name)


def shipped_entries() -> list[Entry]:
    """The shipped scenarios, by name."""
    from workbench.scenario.source import shipped_scenarios

    return [Entry("shipped", name, name, lesson) for name, lesson in shipped_scenarios()]


def file_entries(folder: Path) -> list[Entry]:
    """Scenario files of a folder and of `scenarios` in it, by name."""
    return [
        Entry("file", str(path), path.name, _first_comment(path), path)
        for place in (folder, folder / "scenarios")
        for path in sorted(_scenario_files(place))
    ]


def named_entry(name: str) -> list[Entry]:
    """The scenario file of that name, wherever it is; nothing if there is none."""
    path = Path(name)
    if path.suffix not in _SUFFIXES or not path.is_file():
        return []
    return [Entry("file", name, name, _first_comment(path), path)]


def _is_shipped_text(path: Path, name: str) -> bool:
    from workbench.scenario.source import shipped_text

    text = shipped_text(name).encode()
    try:
        return path.stat().st_size == len(text) and path.read_bytes() == text
    except OSError:
        return False


def _scenario_files(folder: Path) -> Iterator[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.suffix in _SUFFIXES and b"workbench/scenario/" in _head(path):
            yield path


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _first_comment(path: Path) -> str:
    line = _head(path).decode("utf-8", "replace").partition("\n")[0]
    return line.lstrip("# ").rstrip(".") if line.startswith("#") else ""


class RunShelf:
    """The recorded runs of a directory; what has not changed since is not read again.

    Args:
        directory: of the runs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, tuple[float, Entry]] = {}

    def entries(self) -> list[Entry]:
        """Recorded runs, the newest first; what has no header is no run and is passed over."""
        try:
            found = [(_written_s(path), path) for path in self._directory.iterdir()]
        except OSError:
            return []
        newest = sorted((item for item in found if item[0] > 0), reverse=True)[:_MOST_RUNS]
        for written_s, path in newest:
            if path not in self._read or self._read[path][0] != written_s:
                self._read[path] = (written_s, _run_entry(path))
        return [self._read[path][1] for _, path in newest]


def _run_entry(path: Path) -> Entry:
    from workbench.record.errors import RunRecordError
    from workbench.record.run_record import RunReader

    try:
        reader = RunReader(path)
    except RunRecordError as error:
        return Entry("run", str(path), path.name, str(error), path, unreadable=True)
    try:
        summary: dict[str, Any] | None = reader.summary
    except RunRecordError:
        summary = None
    facts = RunFacts(reader.header, summary, _written_s(path))
    return Entry("run", str(path), path.name, _about(reader.header), path, facts)


def _about(header: RunHeader) -> str:
    by = "simulated" if header.kind == "simulation" else "engine"
    model = header.model.rpartition("/")[2].removesuffix(".json")  # it may be a file's
    return f"{by}: {model} on {header.gpu}, detail {header.detail}, seed {header.seed}"


def _written_s(path: Path) -> float:
    try:
        return (path / "header.json").stat().st_mtime
    except OSError:
        return 0.0
