"""Reads what `ncu --csv --page raw` prints: counters of the device, kernel by kernel.

The first row after ncu's own talk names the columns, the second their units; each further one is a
kernel. `ncu --csv` without `--page raw` prints a row for each metric instead, by its title where no
metrics were asked for; all of these are read.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.bounded_file import read_bounded
from engine.profiling.op_classes import GROUP_OF
from workbench.profile.kernel_classes import classify
from workbench.profile.trace import DeviceWork, TraceFileError, kernel_name
from workbench.profile.wrong_file import WRONG, checked, in_words

TIME: Final = "gpu__time_duration.sum"
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
WARPS: Final = "sm__warps_active.avg.pct_of_peak_sustained_active"
TENSOR: Final = (
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
)
DRAM: Final = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
METRICS: Final = (TIME, READ, WRITTEN, DRAM, WARPS, *TENSOR, "launch__registers_per_thread")
"""What is asked of ncu; of `TENSOR`, whose names differ from chip to chip, those that exist."""

_UNITS: Final = {
    "ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3,
    "s": 1e6, "second": 1e6, "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip
_TITLED: Final = {
    "Duration": TIME, "DRAM Throughput": DRAM, "Achieved Occupancy": WARPS,
}  # fmt: skip
_TAKEN: Final = frozenset((TIME, READ, WRITTEN, DRAM, WARPS, *TENSOR))
_MOST_BYTES: Final = 1 << 28
_LOOKED_AT_BYTES: Final = 1 << 20
_HEAD_BEGINS, _HEAD_HOLDS = b'"ID",', b'"Kernel Name"'
_TALK: Final = (b"==PROF==", b"==WARNING==", b"==ERROR==")
_FORBIDDEN: Final = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True, slots=True)
class NcuKernel:
    """One kernel.

    Attributes:
        name: of the kernel.
        kind: class of the range that it was launched in; None: of no known one.
        time_us: that it ran, alone on the device and with an empty cache.
        dram_bytes: read from memory and written to it; None: not read.
        warps_active, tensor_active, dram_active: percent of their peaks; None: not read.
    """

    name: str
    kind: str | None
    time_us: float
    dram_bytes: float | None
    warps_active: float | None
    tensor_active: float | None
    dram_active: float | None


def is_ncu(path: Path) -> bool:
    """Whether a file is called a CSV, or begins as what ncu prints. Raises OSError."""
    if path.suffix.lower() == ".csv":
        return True
    with path.open("rb") as file:
        begin = file.read(_LOOKED_AT_BYTES).removeprefix(codecs.BOM_UTF8)
    return any(
        line.startswith(_TALK) or (line.startswith(_HEAD_BEGINS) and _HEAD_HOLDS in line)
        for line in begin.splitlines()
    )


def read_ncu(path: Path) -> list[NcuKernel]:
    """All kernels of a file, in order; at least one.

    Raises:
        TraceFileError: it holds none, or is damaged; says what ncu wrote instead.
    """
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise TraceFileError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    except csv.Error as error:
        raise TraceFileError(f"{path} is no CSV of ncu that can be read: {error}") from None
    if len(rows) < 2 or "Kernel Name" not in rows[0]:
        raise TraceFileError(_nothing(path, text))
    head = rows[0]
    try:
        if "Metric Name" in head:
            kernels = _long(head, rows[1:])
        else:
            kernels = [_kernel(head, rows[1], row) for row in rows[2:]]
    except WRONG as error:
        raise TraceFileError(
            f"{path} is no CSV of ncu that can be read: {in_words(error)}"
        ) from None
    if not kernels:
        raise TraceFileError(_nothing(path, text))
    return kernels


def _nothing(path: Path, text: str) -> str:
    if _FORBIDDEN in text:
        return (
            f"{path}: the driver lets only administrators read the counters; see "
            "https://developer.nvidia.com/ERR_NVGPUCTRPERM, or run ncu as root"
        )
    errors = [line for line in text.splitlines() if line.startswith("==ERROR==")]
    said = f"; ncu says: {errors[0].removeprefix('==ERROR==').strip()}" if errors else ""
    return f"{path} holds no kernel as `ncu --csv --page raw` prints them{said}"


def _kernel(head: Sequence[str], units: Sequence[str], row: Sequence[str]) -> NcuKernel:
    cells = dict(zip(head, row, strict=False))
    scale = {name: _UNITS.get(unit, 1.0) for name, unit in zip(head, units, strict=False)}
    values = {
        name: number
        for name in cells
        if name in _TAKEN and (number := _number(cells, name, name, scale[name])) is not None
    }
    return _made(cells, values)


def _long(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[NcuKernel]:
    """A row a metric."""
    found: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
    for row in rows:
        cells = dict(zip(head, row, strict=False))
        if not cells["ID"]:  # a row of units
            continue
        _, values = found.setdefault(cells["ID"], (cells, {}))
        name = _TITLED.get(cells["Metric Name"], cells["Metric Name"])
        scale = _UNITS.get(cells.get("Metric Unit", ""), 1.0)
        if name in _TAKEN:
            number = _number(cells, "Metric Value", name, scale)
            if number is not None:
                values[name] = number
    return [_made(cells, values) for cells, values in found.values()]


def _made(cells: dict[str, str], values: dict[str, float]) -> NcuKernel:
    if TIME not in values:
        raise ValueError(f"kernel {cells['Kernel Name']} has no {TIME}")
    moved = [values[name] for name in (READ, WRITTEN) if name in values]
    tensor = [values[name] for name in TENSOR if name in values]
    return NcuKernel(
        kernel_name(cells["Kernel Name"]),
        _range(cells),
        values[TIME],
        sum(moved) if moved else None,
        values.get(WARPS),
        tensor[0] if tensor else None,
        values.get(DRAM),
    )


def _range(cells: dict[str, str]) -> str | None:
    """The innermost range of a class that a kernel was launched in."""
    text = " ".join(cell for name, cell in cells.items() if "Range" in name)
    named = [word for word in re.split(r"[^A-Za-z_]+", text) if word in GROUP_OF]
    return named[-1] if named else None


def _number(cells: Mapping[str, str], column: str, metric: str, scale: float) -> float | None:
    """What a kernel's row says of a metric, in base units; None: nothing."""
    try:
        value = float(cells[column].replace(",", ""))
    except ValueError:
        return None
    try:
        return checked(metric, scale * value)
    except ValueError as error:
        raise ValueError(f"kernel {cells.get('ID')}, {cells['Kernel Name']}: {error}") from None


def moved_bytes(kernels: Sequence[NcuKernel]) -> float | None:
    """Of all kernels; None: it was not read of every one."""
    known = [one.dram_bytes for one in kernels if one.dram_bytes is not None]
    return sum(known) if len(known) == len(kernels) else None


def classes_of(kernels: Sequence[NcuKernel]) -> list[str]:
    """Class of each kernel of a step, by its range or else by its place."""
    work = [DeviceWork(one.name, "kernel", at, at, 0, -1) for at, one in enumerate(kernels)]
    by_place = classify(work)
    own = ("norm", "activation")
    return [
        place if one.kind is None or place in own else one.kind
        for one, place in zip(kernels, by_place, strict=True)
    ]
