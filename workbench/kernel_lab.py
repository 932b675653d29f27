"""Measures ladders of the kernel lab on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from engine.kernels.lab.results import LabResults
from workbench.record.provenance import source_commit

_PACKAGES = ("torch", "triton")


class LabNotInstalledError(RuntimeError):
    """A package that only measuring needs is missing."""


def measure_ladders(
    ops: Sequence[str], device: str, on_size: Callable[[str], None] = lambda _: None
) -> LabResults:
    """Time the ladders of some ops; on a GPU after measuring its ceilings.

    Args:
        ops: names of ladders.
        device: "cuda", or "cpu" for the rungs that run there.
        on_size: called with what is measured next.

    Raises:
        LabNotInstalledError: torch or triton is not installed.
        NoGpuError: a GPU is wanted and there is none.
    """
    try:
        # By name: mypy, which checks this package, does not have the types of torch.
        session = importlib.import_module("engine.kernels.lab.session")
        torch = importlib.import_module("torch")
        ceilings = importlib.import_module("engine.runtime.ceilings")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise LabNotInstalledError(
            f"measuring kernels needs {error.name}, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None
    if device == "cpu":
        where, found = torch.device("cpu"), {}
    else:
        where = session.require_gpu()
        found = ceilings.measure_ceilings(where)
    results: LabResults = session.measure(
        ops, where, found, commit=source_commit() or "", on_size=on_size
    )
    return results
