"""Measures ladders of the kernel lab on this machine's GPU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence

import torch

from engine.kernels.lab.case import label
from engine.kernels.lab.labs import LABS
from engine.kernels.lab.measuring import measure_size
from engine.kernels.lab.results import LabResults
from engine.kernels.nvrtc import nvrtc_version
from engine.runtime.ceilings import measure_ceilings

ON_CPU = ("torch-naive", "library")  # rungs that run without a GPU


class NoGpuError(RuntimeError):
    """There is no GPU to measure on; says what to do instead."""


def measure(
    ops: Sequence[str],
    *,
    device: str = "cuda",
    commit: str = "",
    on_size: Callable[[str], None] = lambda _: None,
) -> LabResults:
    """Time the ladders of some ops, and the GPU's ceilings before.

    Args:
        ops: names of ladders.
        device: "cuda", or "cpu" for the rungs that run there, at small sizes.
        commit: of the sources, if it is known.
        on_size: called with what is measured next.

    Raises:
        NoGpuError: a GPU is wanted and there is none.
    """
    on_gpu = device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise NoGpuError(
            "torch sees no NVIDIA GPU to measure on. `workbench kernels explain OP` shows what was "
            "measured on an H200; `--device cpu` times the rungs that run on a CPU"
        )
    torch.manual_seed(0)
    where = torch.device(device)
    ceilings = measure_ceilings(where) if on_gpu else {}
    ladders = {}
    for op in ops:
        lab = LABS[op]
        rows = []
        for size in lab.sizes if on_gpu else lab.small_sizes:
            on_size(f"{op}: {label(size)}")
            rows.append(measure_size(lab, size, where, None if on_gpu else ON_CPU))
        ladders[op] = tuple(rows)
    properties = torch.cuda.get_device_properties(where) if on_gpu else None
    return LabResults(
        gpu=properties.name if properties else "",
        multiprocessors=properties.multi_processor_count if properties else 0,
        versions=_versions(on_gpu=on_gpu),
        commit=commit,
        time_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ceilings=ceilings,
        ladders=ladders,
    )


def _versions(*, on_gpu: bool) -> dict[str, str]:
    import triton

    versions = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
    if on_gpu:
        versions |= {"cuda": str(torch.version.cuda), "nvrtc": nvrtc_version(), "driver": _driver()}
    return versions


def _driver() -> str:
    """The driver's version, "" where nvidia-smi is not installed."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n", 1)[0].strip()
