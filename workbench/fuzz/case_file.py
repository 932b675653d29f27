"""A run as a file: settings, requests and operations, to be repeated anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine.core.bounded_file import read_bounded
from workbench.fuzz.explore import Failure, repeat
from workbench.fuzz.machine import Machine, Operation
from workbench.record.atomic_file import write_atomic

FORMAT: Final = 1
_LONGEST_FILE_BYTES: Final = 1 << 24
_LARGEST_NUMBER: Final = (1 << 24) - 1  # no machine draws more bits


class CaseFileError(ValueError):
    """A file holds no case; the message names the file and what is wrong."""


def write_case(path: Path, failure: Failure, commit: str | None) -> None:
    """Write a failing run.

    Raises:
        RunRecordError: the file cannot be written.
    """
    head = {
        "format": FORMAT,
        "machine": failure.machine.name,
        "seed": failure.seed,
        "commit": commit,
        "violation": f"{type(failure.error).__name__}: {failure.error}",
        "setup": failure.machine.encode(failure.setup),
    }
    rows = ",\n".join(f"    {json.dumps(operation)}" for operation in failure.operations)
    text = json.dumps(head, indent=2).removesuffix("\n}")
    write_atomic(path, f'{text},\n  "operations": [\n{rows}\n  ]\n}}\n'.encode())


def repeat_file(path: Path, machines: Mapping[str, Machine]) -> Failure | None:
    """Repeat the run of a file; the violation, or None.

    Raises:
        CaseFileError: it cannot be read, or holds no case.
    """
    case = _read(path)
    name = case.get("machine")
    machine = machines.get(name) if isinstance(name, str) else None
    if machine is None:
        raise CaseFileError(f"{path}: machine is {name!r}; there are {', '.join(machines)}")
    try:
        every = case["setup"].get("every", 1)
        if type(every) is not int or every < 1:
            raise ValueError(f"every is {every!r}, not a whole number from 1 on")
        setup = machine.decode(case["setup"])
        seed, operations = int(case["seed"]), _operations(machine, case["operations"])
        machine.open(seed, setup)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CaseFileError(f"{path} does not fit the machine {machine.name}: {what}") from error
    return repeat(machine, seed, setup, operations)


def _operations(machine: Machine, rows: list[Any]) -> list[Operation]:
    return [_operation(machine, number, row) for number, row in enumerate(rows, 1)]


def _operation(machine: Machine, number: int, row: Any) -> Operation:
    """A name that the machine knows and as many numbers as it takes."""
    name, *numbers = row if isinstance(row, list) and row else [None]
    count = machine.takes.get(name) if isinstance(name, str) else None
    if count is None:
        known = ", ".join(sorted(machine.takes))
        raise ValueError(f"operation {number} is {row!r}; there are {known}")
    whole = all(type(value) is int and 0 <= value <= _LARGEST_NUMBER for value in numbers)
    if len(numbers) != count or not whole:
        raise ValueError(
            f"operation {number} is {row!r}; {name} takes {count or 'no'} whole number"
            f"{'' if count == 1 else 's'} from 0 to {_LARGEST_NUMBER:,}"
        )
    return name, *numbers


def _read(path: Path) -> dict[str, Any]:
    try:
        case = json.loads(read_bounded(path, _LONGEST_FILE_BYTES))
    except OSError as error:
        raise CaseFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CaseFileError(f"{path} is no JSON: {error}") from error
    if not isinstance(case, dict) or case.get("format") != FORMAT:
        raise CaseFileError(f'{path} is no case of this version: it lacks "format": {FORMAT}')
    return case
