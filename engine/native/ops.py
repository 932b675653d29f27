"""Two ops as torch knows ops: `torch.ops.workbench.add_rms_norm_` and `.silu_mul`.

In C++ and CUDA where they can be built or have been (`build`), else in Python, which a warning says
once; either way they have meta kernels, so `torch.compile` takes them whole. The engine itself
launches Triton's kernels of the same functions (`engine.kernels.rms_norm`, `.silu_mul`). Those
start while the kernel before them still runs and sum the parts of split products; these do not.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

import torch
from torch import library as torch_library

from engine.native.build import (
    OPS_CPU,
    OPS_CUDA,
    Extension,
    NativeUnavailableError,
    build,
)
from engine.native.whole import MENDS, is_whole

NAMESPACE = "workbench"
SCHEMAS = (
    "add_rms_norm_(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
    "silu_mul(Tensor gate_up) -> Tensor",
)
Kind = Literal["native", "python"]
_kept: list[torch_library.Library] = []  # what a Library has registered ends with it


def add_rms_norm_(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add `x` to `residual` in place, and norm the sum (arXiv:1910.07467), in float32 inside.

    Args:
        x: float32 or bfloat16 [..., H], contiguous.
        residual: as `x`; becomes residual + x.
        weight: [H].
        eps: added to the mean square.

    Returns:
        [..., H], of the dtype of `x`.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.
    """
    _load_once()
    out: torch.Tensor = torch.ops.workbench.add_rms_norm_(x, residual, weight, eps)
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (arXiv:2002.05202), in float32 inside.

    Args:
        gate_up: float32 or bfloat16 [..., 2 I], contiguous; gate first.

    Returns:
        [..., I], of the same dtype.

    Raises:
        RuntimeError: the last dimension is odd, or the tensor of another kind.
    """
    _load_once()
    out: torch.Tensor = torch.ops.workbench.silu_mul(gate_up)
    return out


def _add_rms_norm_python(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    _check_norm(x, residual, weight)
    residual.copy_(x.float() + residual)
    wide = residual.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def _silu_mul_python(gate_up: torch.Tensor) -> torch.Tensor:
    _check_gated(gate_up)
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def _check_floating(*tensors: torch.Tensor) -> None:
    if any(tensor.dtype not in (torch.float32, torch.bfloat16) for tensor in tensors):
        raise RuntimeError("the tensors must be float32 or bfloat16")
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise RuntimeError("the tensors must be contiguous")


def _check_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> None:
    _check_floating(x, residual, weight)
    if x.shape != residual.shape or weight.ndim != 1 or x.shape[-1:] != weight.shape:
        raise RuntimeError("x and residual must be [..., H] and weight [H]")
    if not x.dtype == residual.dtype == weight.dtype:
        raise RuntimeError("x, residual and weight must have one dtype")


def _check_gated(gate_up: torch.Tensor) -> None:
    _check_floating(gate_up)
    if not gate_up.ndim:
        raise RuntimeError("gate_up must be [..., 2 I]")
    if gate_up.shape[-1] % 2:
        raise RuntimeError("gate and up must be equally long")


def _add_rms_norm_meta(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    del eps
    _check_norm(x, residual, weight)
    return torch.empty_like(x)


def _silu_mul_meta(gate_up: torch.Tensor) -> torch.Tensor:
    _check_gated(gate_up)
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@cache
def load() -> Kind:
    """Register the ops, once; builds them if need be. Returns what they run as on a CPU."""
    try:
        _load_library(OPS_CPU)
        kind: Kind = "native"
    except (NativeUnavailableError, OSError) as error:
        _warn("the ops run as Python", error)
        _define_in_python()
        kind = "python"
    if kind == "native" and torch.cuda.is_available():
        _load_cuda()
    torch_library.register_fake(f"{NAMESPACE}::add_rms_norm_", _add_rms_norm_meta)
    torch_library.register_fake(f"{NAMESPACE}::silu_mul", _silu_mul_meta)
    return kind


@torch.compiler.assume_constant_result  # so torch.compile runs it, and does not look into it
def _load_once() -> Kind:
    return load()


def _load_library(extension: Extension) -> None:
    library = build(extension)
    if not is_whole(library):
        raise OSError(f"{library} is not whole; {MENDS}")
    torch.ops.load_library(str(library))


def _load_cuda() -> None:
    try:
        _load_library(OPS_CUDA)
    except (NativeUnavailableError, OSError) as error:
        _warn("on a GPU the ops run as Python", error)
        _implement_in_python(torch_library.Library(NAMESPACE, "IMPL"), "CUDA")


def _define_in_python() -> None:
    library = torch_library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    for key in ("CPU", "CUDA"):
        _implement_in_python(library, key)


def _implement_in_python(library: torch_library.Library, key: str) -> None:
    library.impl("add_rms_norm_", _add_rms_norm_python, key)
    library.impl("silu_mul", _silu_mul_python, key)
    _kept.append(library)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(f"{what}: {error}", RuntimeWarning, stacklevel=5)  # of the caller of an op
