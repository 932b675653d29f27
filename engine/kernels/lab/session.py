"""One session of measuring: some ladders on this machine, and the facts that times depend on."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import triton

from engine.kernels.lab.case import label
from engine.kernels.lab.labs import LABS
from engine.kernels.lab.measuring import measure_size
from engine.kernels.lab.results import LabResults, SizeResult
from engine.kernels.nvrtc import nvrtc_version

ON_CPU = ("torch-naive", "library")  # rungs that run without a GPU


class NoGpuError(RuntimeError):
    """There is no GPU to measure on; says what to do instead."""


def require_gpu() -> torch.device:
    """The GPU to measure on.

    Raises:
        NoGpuError: torch sees none.
    """
    if not torch.cuda.is_available():
        raise NoGpuError(
            "torch sees no NVIDIA GPU to measure on. `workbench kernels explain OP` tells what "
            "there is to measure; `--device cpu` times the rungs that run on a CPU"
        )
    return torch.device("cuda")


def measure(
    ops: Sequence[str],
    device: torch.device,
    ceilings: Mapping[str, float],
    *,
    commit: str = "",
    on_size: Callable[[str], None] = lambda _: None,
) -> LabResults:
    """Time the ladders of some ops.

    Args:
        ops: names of ladders.
        device: a GPU, or the CPU for the rungs that run there, at small sizes and on one thread.
        ceilings: copy_tb_s and product_tflop_s of the GPU, measured just before; none of a CPU.
        commit: of the sources, if it is known.
        on_size: called with what is measured next.
    """
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    with contextlib.nullcontext() if on_gpu else _one_thread():
        ladders = {op: _ladder(op, device, on_size) for op in ops}
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    return LabResults(
        gpu=properties.name if properties else "",
        multiprocessors=properties.multi_processor_count if properties else 0,
        versions=_versions(on_gpu=on_gpu),
        commit=commit,
        time_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ceilings=dict(ceilings),
        ladders=ladders,
    )


def _ladder(
    op: str, device: torch.device, on_size: Callable[[str], None]
) -> tuple[SizeResult, ...]:
    lab, on_gpu = LABS[op], device.type == "cuda"
    rows = []
    for size in lab.sizes if on_gpu else lab.small_sizes:
        on_size(f"{op}: {label(size)}")
        rows.append(measure_size(lab, size, device, None if on_gpu else ON_CPU))
    return tuple(rows)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """torch's threads wait for each other: where others work, too, for longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions(*, on_gpu: bool) -> dict[str, str]:
    versions = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
    if on_gpu:
        return versions | {
            "cuda": str(torch.version.cuda), "nvrtc": nvrtc_version(), "driver": _driver()
        }  # fmt: skip
    return versions | {"threads": "1"}


def _driver() -> str:
    """The driver's version, "" where nvidia-smi is not installed."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n", 1)[0].strip()
