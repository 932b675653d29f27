"""Clocks, power and temperature of a GPU while it is measured, as `nvidia-smi` tells them."""

from __future__ import annotations

import subprocess
from statistics import median
from types import TracebackType
from typing import Final, Self

_EVERY_MS: Final = 5000  # whoever asks holds up launches for some ms
_QUERIES: Final = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}


class GpuState:
    """Asks every few seconds while it is entered.

    Args:
        bus_id: of the GPU on the PCI bus, as 0000:3b:00.0; None watches nothing.
    """

    def __init__(self, bus_id: str | None) -> None:
        self._bus_id = bus_id
        self._process: subprocess.Popen[str] | None = None
        self._text = ""

    def __enter__(self) -> Self:
        if self._bus_id is not None:
            command = [
                "nvidia-smi", f"--id={self._bus_id}", f"--query-gpu={','.join(_QUERIES.values())}",
                "--format=csv,noheader,nounits", f"--loop-ms={_EVERY_MS}",
            ]  # fmt: skip
            try:
                self._process = subprocess.Popen(  # noqa: S603 - no shell, no word of a user's
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            except OSError:  # containers may lack it; the state is for the reader alone
                self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._text, _ = self._process.communicate()

    def summary(self) -> dict[str, dict[str, float]]:
        """Quantity -> least, median and greatest value; empty if nothing could be asked."""
        rows = [_numbers(line) for line in self._text.splitlines()]
        complete = [row for row in rows if len(row) == len(_QUERIES)]
        return {
            name: {"min": min(column), "median": median(column), "max": max(column)}
            for name, column in zip(_QUERIES, zip(*complete, strict=True), strict=False)
        }


def _numbers(line: str) -> list[float]:
    """The numbers of a line; none if one of them is not known, or the line was cut off."""
    try:
        return [float(part) for part in line.split(",")]
    except ValueError:
        return []
