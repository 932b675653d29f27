"""The device whose kernels are measured: what it is called, and what there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton

from engine.profiling.kernel_cases import KernelLimits
from engine.runtime.executor import EngineError

_WEIGHT_BYTES: Final = 9 << 29  # two of the largest product's weights of a model of 70B
_KV_BYTES: Final = 8 << 30
_SHARE: Final = 6  # of the free memory at most, for weights; twice as much for keys and values
_MOST_TOKENS: Final = 8192
_CPU_LIMITS: Final = KernelLimits(weight_bytes=16 << 20, kv_bytes=4 << 20, tokens=64)
_FORMATS: Final = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class KernelDevice:
    """Where kernels are measured.

    Attributes:
        device: as torch knows it.
        dtype: of weights and activations; bfloat16, and float32 on a CPU.
        name: as the driver names it, or "cpu".
        limits: what there is room for.
    """

    device: torch.device
    dtype: torch.dtype
    name: str
    limits: KernelLimits

    @property
    def format(self) -> str:
        """Short name of the dtype."""
        return _FORMATS[self.dtype]

    @property
    def bus_id(self) -> str | None:
        """Of a GPU on the PCI bus, as `nvidia-smi` names it."""
        if self.device.type != "cuda":
            return None
        facts = torch.cuda.get_device_properties(self.device)
        return f"{facts.pci_domain_id:08x}:{facts.pci_bus_id:02x}:{facts.pci_device_id:02x}.0"

    @property
    def versions(self) -> dict[str, str]:
        """Of what compiles and runs kernels."""
        found = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
        return found | ({"cuda": str(torch.version.cuda)} if torch.version.cuda else {})


def kernel_device(name: str) -> KernelDevice:
    """The device of a name as torch writes it: "cuda", "cuda:1", "cpu".

    Raises:
        EngineError: there is no such device.
    """
    if name == "cpu":
        return KernelDevice(torch.device("cpu"), torch.float32, "cpu", _CPU_LIMITS)
    if not torch.cuda.is_available():
        raise EngineError(f"there is no GPU that torch can use, so {name!r} cannot be measured")
    device = torch.device(name)
    torch.cuda.set_device(device)
    free, _ = torch.cuda.mem_get_info(device)
    limits = KernelLimits(
        weight_bytes=min(_WEIGHT_BYTES, free // _SHARE),
        kv_bytes=min(_KV_BYTES, 2 * free // _SHARE),
        tokens=_MOST_TOKENS,
    )
    return KernelDevice(device, torch.bfloat16, torch.cuda.get_device_name(device), limits)
