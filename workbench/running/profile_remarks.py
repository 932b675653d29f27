"""What a reader has to know of measured step times: that not all was measured, or not with this."""

from __future__ import annotations

from typing import Final

from simulator.composition.kernel_file import KernelFile
from simulator.profile import CPU
from workbench.record.provenance import NOT_INSTALLED, workbench_version
from workbench.running.step_times import Measured

_TINY_MODEL: Final = "tiny_model"  # what `calibrate --cpu` measures


def remarks(measured: Measured) -> tuple[str, ...]:
    """What restricts a profile or kernel tables; () if nothing does."""
    return (*_not_complete(measured), *_other_version(measured))


def _not_complete(measured: Measured) -> list[str]:
    if measured.conditions.get("complete") is not False:
        return []
    command = f"`workbench calibrate {_options(measured)}`"
    return [f"calibration not complete{_counts(measured)}; the same {command} goes on"]


def _counts(measured: Measured) -> str:
    """How many steps were measured, where that is known."""
    designed = measured.conditions.get("designed_steps")
    if isinstance(measured, KernelFile) or not isinstance(designed, int):
        return ""
    found = len(measured.samples)
    seldom = ", not all of them three times" if found >= designed else ""
    return f": {found:,} of {designed:,} steps measured{seldom}"


def _options(measured: Measured) -> str:
    """With which `workbench calibrate` measures this."""
    on_cpu = measured.identity.gpu == CPU
    if isinstance(measured, KernelFile):
        return "--kernels --cpu" if on_cpu else "--kernels"
    if on_cpu and measured.identity.model == _TINY_MODEL:
        return "--cpu"
    return f"--model {measured.identity.model}{' --device cpu' if on_cpu else ''}"


def _other_version(measured: Measured) -> list[str]:
    own, here = measured.identity.engine_version, workbench_version()
    if own in (NOT_INSTALLED, here):
        return []
    again = f"`workbench calibrate {_options(measured)}` measures anew"
    return [f"measured with version {own} of the engine (here: {here}); {again}"]
