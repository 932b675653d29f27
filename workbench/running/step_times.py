"""Who says how long steps take: a profile of the very model, kernel tables, or the analytic model.

A profile speaks of one model on one GPU (`profile_match`). Kernel tables speak of any model of the
GPU's kernels, whatever its size and its number of GPUs, with an error that their name tells. The
analytic model knows the GPU's data sheet alone.
"""

from __future__ import annotations

from pathlib import Path

from simulator.calibrated import CalibratedCostModel
from simulator.composition.composed import ComposedCostModel
from simulator.composition.kernel_file import (
    KernelFile,
    KernelIdentity,
    is_kernel_file,
    read_kernel_file,
)
from simulator.cost_model import CostModel
from simulator.profile import CPU, Profile, ProfileError
from simulator.profile_file import read_profile
from simulator.shipped_profiles import read_kernel_identity, shipped_kernels
from workbench.running.profile_match import OtherProfileError, Wanted, is_gpu, refuse_other

Measured = Profile | KernelFile


def read_measured(path: Path) -> Measured:
    """The profile or the kernel tables in a file.

    Raises:
        ProfileError: it is neither, or damaged.
    """
    return read_kernel_file(path) if is_kernel_file(path) else read_profile(path)


def find_kernels(wanted: Wanted) -> Path | None:
    """Shipped kernel tables from which what is wanted can be composed, or None.

    Raises:
        ProfileError: a shipped file holds no kernel tables.
    """
    for path in shipped_kernels():
        if not _differences(read_kernel_identity(path), wanted):
            return path
    return None


def measured_cost_model(measured: Measured, wanted: Wanted) -> CostModel:
    """What a file says of a model on some GPUs.

    Raises:
        OtherProfileError: it is of something else.
        TensorParallelError: the model does not divide over that many GPUs.
    """
    if isinstance(measured, Profile):
        refuse_other(measured, wanted)
        return CalibratedCostModel(measured)
    wrong = _differences(measured.identity, wanted)
    if wrong:
        raise OtherProfileError(f"{measured.name} holds kernels of {'; of '.join(wrong)}")
    try:
        return ComposedCostModel(
            measured, wanted.model, wanted.gpu, tensor_parallel_size=wanted.tensor_parallel_size
        )
    except ProfileError as error:
        raise OtherProfileError(f"{measured.name}: {error}") from None


def _differences(own: KernelIdentity, wanted: Wanted) -> list[str]:
    """What was measured instead of what is to run, each as "A, not B"."""
    wrong = []
    if own.gpu != CPU and not is_gpu(wanted.gpu.name, own.gpu):
        wrong.append(f"{own.gpu}, not {wanted.gpu.name}")
    if own.gpu != CPU and set(wanted.dtypes) != {own.dtype}:
        wrong.append(f"{own.dtype} weights and KV, not {' and '.join(wanted.dtypes)}")
    if own.page_size != wanted.page_size:
        wrong.append(f"pages of {own.page_size} tokens, not {wanted.page_size}")
    if wanted.model.mla is not None:
        wrong.append(f"attention over keys and values, not over latents as {wanted.model.name} has")
    return wrong
