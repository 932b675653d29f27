"""Measured ladders as a file, and what follows from it: rates, shares of the ceilings, gains.

Free of torch. Results that ship with the workbench were measured on one GPU, which they name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from engine.core.bounded_file import read_bounded
from engine.kernels.lab.rungs import Ceiling

FORMAT = "kernel_lab/v1"
SHIPPED = Path(__file__).with_name("measured_h200.json")
TOLERANCE = 1e-2  # relative error of bfloat16 operands
CEILINGS = ("copy_tb_s", "product_tflop_s")
Positive = Annotated[float, msgspec.Meta(gt=0)]  # msgspec holds what it reads to this
Count = Annotated[int, msgspec.Meta(ge=0)]
STEADY = 1.2  # times the fastest call: a median beyond is of calls that something else held up


@dataclass(frozen=True, slots=True)
class RungResult:
    """One rung at one size.

    Attributes:
        name: of the rung.
        median_us: of single calls with a cold L2 cache; None if it did not run.
        relative_error: against float64.
        best_us: the fastest call.
        calls: that were timed.
        note: why it did not run.
    """

    name: str
    median_us: Positive | None = None
    relative_error: float | None = None
    best_us: Positive | None = None
    calls: Count = 0
    note: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it ran and its result was right."""
        return self.relative_error is not None and self.relative_error < TOLERANCE

    @property
    def is_steady(self) -> bool:
        """Whether calls took about as long as the fastest; True where none was timed."""
        if self.median_us is None or self.best_us is None:
            return True
        return self.median_us <= STEADY * self.best_us


@dataclass(frozen=True, slots=True)
class SizeResult:
    """All rungs at one size.

    Attributes:
        size: what was computed.
        moved_bytes, flops: the least work.
        rungs: in the ladder's order.
    """

    size: dict[str, int]
    moved_bytes: Count
    flops: Count
    rungs: tuple[RungResult, ...]

    @property
    def label(self) -> str:
        """As the tables name it."""
        return ", ".join(f"{name} {value:,}" for name, value in self.size.items())

    def rung(self, name: str) -> RungResult | None:
        """One of them."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    def rate(self, rung: RungResult, ceiling: Ceiling) -> float | None:
        """GB/s or TFLOP/s, of the least work; None if the rung did not run."""
        if rung.median_us is None:
            return None
        if ceiling == "bandwidth":
            return self.moved_bytes / rung.median_us / 1e3
        return self.flops / rung.median_us / 1e6


@dataclass(frozen=True, slots=True)
class LabResults:
    """Ladders measured on one GPU.

    Attributes:
        gpu: its name; "" on a CPU.
        multiprocessors: of it.
        versions: torch, triton, cuda, driver, nvrtc; of a CPU torch, triton and threads.
        commit: of the sources.
        time_utc: when.
        ceilings: copy_tb_s and product_tflop_s as measured just before; empty on a CPU.
        ladders: op -> sizes.
        format: of the file.
    """

    gpu: str
    multiprocessors: int
    versions: dict[str, str]
    commit: str
    time_utc: str
    ceilings: dict[str, Positive]
    ladders: dict[str, tuple[SizeResult, ...]]
    format: str = field(default=FORMAT)

    def ceiling(self, kind: Ceiling) -> float | None:
        """GB/s or TFLOP/s that this GPU was measured to reach at best; None of a CPU."""
        if not self.ceilings:
            return None
        if kind == "bandwidth":
            return 1e3 * self.ceilings["copy_tb_s"]
        return self.ceilings["product_tflop_s"]


def read_results(path: Path) -> LabResults:
    """Results from a file.

    Raises:
        ValueError: the file is of another format, or damaged; names the file.
        OSError: it cannot be read.
    """
    try:
        results = msgspec.json.decode(read_bounded(path), type=LabResults)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: no results of the kernel lab: {error}") from error
    if results.format != FORMAT:
        raise ValueError(f"{path}: format {results.format!r}, wanted {FORMAT!r}")
    missing = [name for name in CEILINGS if name not in results.ceilings]
    if results.ceilings and missing:
        raise ValueError(f"{path}: no results of the kernel lab: `ceilings` lack {missing[0]}")
    return results


def shipped_results() -> LabResults | None:
    """The results that ship with the workbench; None if none do.

    Raises:
        ValueError: the file is of another format.
    """
    return read_results(SHIPPED) if SHIPPED.is_file() else None


def to_json(results: LabResults) -> str:
    """The text of the file, one line per rung at most."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1).decode() + "\n"
