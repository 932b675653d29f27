"""Cells: what the engine did under a load, as two files.

`<load>.json` says what was measured and how it went, `<load>.steps.npz` holds all steps. A cell
grows by one run at a time: the steps are written first, the text last, so that an interruption
loses the run that it hits and no other.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

import engine
from engine.core.events import Columns
from engine.core.workload import Workload
from simulator.cost_model import StepFeatures
from workbench.fidelity.errors import DamagedError
from workbench.fidelity.loads import Load
from workbench.fidelity.suite import read_json
from workbench.record.atomic_file import open_atomic, write_atomic
from workbench.record.columns import narrow

SCHEMA: Final = "fidelity-cell/v2"
_UNREADABLE: Final = (
    OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError,
    NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
OTHER_SOURCES: Final = "other sources of the engine"
_SUFFIXES: Final = (".py", ".cu")
# Columns of steps without which a cell cannot be judged.
_ASKED: Final = (
    *(each.name for each in fields(StepFeatures) if each.name != "active_experts"),
    "plan_ns", "start_ns", "gpu_ns",
)  # fmt: skip
# What calibrates an engine, or stands beside it, is no part of one that serves; nor are the doors
# by which Python programs come in, as loads come by another.
_NOT_SERVING: Final = (
    "profiling", "demo", "native", "kernels/lab", "models/dit.py",
    "runtime/llm.py", "runtime/async_llm.py", "runtime/local_engine.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """What makes two measurements of a load the same.

    Attributes:
        scenario: that is varied.
        settings: all of them, with the rate; the place of a trace window is left open.
        requests_sha256: of all requests, see `requests_digest`.
        engine: facts of `suite.identity_facts`.
        engine_digest: of the engine's sources, see `engine_digest`.
    """

    scenario: str
    settings: tuple[str, ...]
    requests_sha256: str
    engine: dict[str, Any]
    engine_digest: str


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of the engine.

    Attributes:
        summary: numbers of its summary, by name.
        wall_s: that it took, with its preparation.
        steps: the columns of its steps that a cost model is asked for, and their times.
    """

    summary: dict[str, float | None]
    wall_s: float
    steps: Columns


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured of a load.

    Attributes:
        load: its name.
        key: of what.
        runs: in order.
        parity: whether all decisions of the first run are the simulator's.
        about: the engine's identity with versions, pages, commit, for a reader.
    """

    load: str
    key: Key
    runs: tuple[MeasuredRun, ...] = ()
    parity: str = ""
    about: dict[str, Any] = field(default_factory=dict)


def engine_digest(folder: Path = Path(engine.__path__[0])) -> str:
    """A hash of the engine's sources: paths and contents of what can change how it serves."""
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if not any(name == part or name.startswith(part + "/") for part in _NOT_SERVING):
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def requests_digest(workload: Workload) -> str:
    """A hash of how many tokens come and go, and when."""
    digest = hashlib.sha256()
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "max_tokens"):
        digest.update(np.ascontiguousarray(getattr(workload, name), np.int64).tobytes())
    return digest.hexdigest()


def cell_files(folder: Path, load: Load) -> tuple[Path, Path]:
    """The text and the steps of a load's cell."""
    return folder / f"{load.stem}.json", folder / f"{load.stem}.steps.npz"


def read_cell(folder: Path, load: Load) -> Cell | None:
    """The cell of a load, of whatever engine it is; None if there is none.

    Raises:
        DamagedError: it cannot be read, or its two files are not of the same runs.
    """
    path, steps_path = cell_files(folder, load)
    if not path.exists():
        return None
    text = read_json(path)
    if text.get("schema") != SCHEMA:
        return None
    try:
        return _cell(text, steps_path)
    except _UNREADABLE as error:
        raise DamagedError(
            f"{path} and {steps_path} cannot be read ({type(error).__name__}: {error}): "
            "delete them, and without --judge-only the load is measured again"
        ) from None


def _cell(text: dict[str, Any], steps_path: Path) -> Cell:
    """A cell from its text and the file of its steps."""
    facts = {each.name: text[each.name] for each in fields(Key)}
    key = Key(**facts | {"settings": tuple(facts["settings"])})
    with steps_path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        steps = [_columns(arrays, number) for number in range(len(text["runs"]))]
    runs = []
    for number, (run, columns) in enumerate(zip(text["runs"], steps, strict=True), 1):
        if problem := _problem(run["summary"], run["wall_s"], columns):
            raise ValueError(f"run {number} {problem}")
        runs.append(MeasuredRun(run["summary"], run["wall_s"], columns))
    if not isinstance(text["about"].get("commit"), str | None):
        raise ValueError("its commit is no text")
    return Cell(text["load"], key, tuple(runs), text["parity"], text["about"])


def _problem(summary: dict[str, Any], wall_s: Any, steps: Columns) -> str | None:
    """What keeps a run from being judged, if anything does.

    A summary leaves out steps that began after the last request had ended.
    """
    for name, value in (*summary.items(), ("wall_s", wall_s)):
        if not isinstance(value, int | float | None) or not math.isfinite(value or 0):
            return f"has {name} {value!r}, which is no number"
    if len({column.shape for column in steps.values()}) > 1 or steps["gpu_ns"].ndim != 1:
        return "has columns of different lengths"
    count, mean_ms = summary["steps"] or 0, summary["mean_step_ms"] or 0.0
    if summary["completed"] is None or not 0 <= count <= len(steps["gpu_ns"]):
        return f"has {len(steps['gpu_ns']):,} steps, and a summary of {count:,}"
    if not math.isclose(int(steps["gpu_ns"][:count].sum()) / 1e6, count * mean_ms):
        return f"has other steps than its summary, whose {count:,} took {mean_ms:.3f} ms on average"
    return None


def write_cell(folder: Path, load: Load, cell: Cell) -> None:
    """Keep a cell.

    Raises:
        RunRecordError: it cannot be written.
    """
    path, steps_path = cell_files(folder, load)
    if len(cell.runs) <= 1:
        path.unlink(missing_ok=True)  # a text never stands beside the steps of another cell
    arrays = {
        f"run{number}.{name}": narrow(column)
        for number, run in enumerate(cell.runs)
        for name, column in run.steps.items()
    }
    with open_atomic(steps_path) as file:
        # numpy's stubs take the names of arrays for those of its options
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    runs = [{"wall_s": run.wall_s, "summary": run.summary} for run in cell.runs]
    text = {"schema": SCHEMA, "load": cell.load, **asdict(cell.key), "about": cell.about,
            "parity": cell.parity, "runs": runs}  # fmt: skip
    write_atomic(path, json.dumps(text, indent=1).encode() + b"\n")


def step_columns(steps: Columns) -> Columns:
    """Those columns of a `steps` table that a cell keeps."""
    times = ["plan_ns", "start_ns", "end_ns", "gpu_ns", "host_ns"]
    wanted = [each.name for each in fields(StepFeatures)] + times
    return {name: steps[name] for name in wanted if name in steps}


def what_differs(cell: Cell, key: Key) -> str:
    """Why a cell is not of `key`; empty if it is."""
    other = [
        each.name for each in fields(Key) if getattr(cell.key, each.name) != getattr(key, each.name)
    ]
    said = {"engine_digest": OTHER_SOURCES, "engine": "another engine",
            "requests_sha256": "other requests"}  # fmt: skip
    return ", ".join(said.get(name, f"other {name}") for name in other)


def _columns(arrays: Any, number: int) -> Columns:
    prefix = f"run{number}."
    kept = {name.removeprefix(prefix): arrays[name]
            for name in arrays.files if name.startswith(prefix)}  # fmt: skip
    odd = [name for name, column in kept.items() if column.dtype.kind != "i"]
    if odd:
        raise TypeError(f"{odd[0]} of run {number + 1} holds no integers")
    found = {name: column.astype(np.int64) for name, column in kept.items()}
    lacking = [name for name in _ASKED if name not in found]
    if lacking:
        raise KeyError(f"no {lacking[0]} of run {number + 1}")
    return found
