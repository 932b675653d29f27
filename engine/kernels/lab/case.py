"""What every op of the lab offers: sizes, fresh inputs, rungs to run, an exact result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Work:
    """The least that any implementation must do.

    Attributes:
        moved_bytes: each input read once, each output written once.
        flops: multiplications and additions of the products.
    """

    moved_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Lab:
    """One op of the lab.

    Attributes:
        sizes: what is timed, as keyword arguments of `make`.
        small_sizes: odd ones for checks; also what a CPU can do.
        make: (device, **size) -> fresh random inputs, a NamedTuple.
        rungs: name -> inputs -> result.
        error: (inputs, result) -> relative error against float64, over sampled rows.
        work: inputs -> the least work.
    """

    sizes: tuple[Mapping[str, int], ...]
    small_sizes: tuple[Mapping[str, int], ...]
    make: Callable[..., Any]
    rungs: Mapping[str, Callable[[Any], torch.Tensor]]
    error: Callable[[Any, torch.Tensor], float]
    work: Callable[[Any], Work]


def label(size: Mapping[str, int]) -> str:
    """A size as the tables name it: rows 8192, columns 4096."""
    return ", ".join(f"{name} {value}" for name, value in size.items())


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """‖out - exact‖ / ‖exact‖ in float64; a NaN anywhere makes it NaN."""
    difference = (out.double() - exact).norm().item()
    return difference / (exact.norm().item() or 1.0)


def sampled(count: int, most: int, device: torch.device) -> torch.Tensor:
    """Up to `most` of the indices 0..count-1, first and last among them."""
    if count <= most:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, most, device=device).round().long()
