"""The device whose kernels are measured: what it is called, what there is room for, how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import triton

from engine.kernels.launching import compile_only
from engine.profiling.host_work import HostWork
from engine.profiling.kernel_bench import KernelBench
from engine.profiling.kernel_cases import COPIES, HOST_WORK, PAGE_SIZE, KernelCase, KernelLimits
from engine.profiling.kernel_timing import GraphTimer, LaunchTimer
from engine.runtime.executor import EngineError

_WEIGHT_BYTES: Final = 9 << 29  # two of the largest product's weights of a model of 70B
_KV_BYTES: Final = 4 << 30  # of a layer
_SHARE: Final = 6  # of the free memory at most, for weights
_KV_SHARE: Final = 0.5  # of the free memory, for keys and values of all layers
_MOST_TOKENS: Final = 8192
_CPU_LIMITS: Final = KernelLimits(weight_bytes=16 << 20, kv_bytes=4 << 20, tokens=256)
_FORMATS: Final = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_COMPILED_ROWS: Final = 512  # products of more rows are a library's
_PRODUCTS: Final = (
    "norm_linear", "residual_linear", "norm_gated_linear", "lm_head", "linear", "projections",
    "mlp",
)  # fmt: skip


class KernelDevice:
    """Measures kernels of one device; implements `KernelMeter`.

    Args:
        device: a GPU or a CPU.
        limits: what there is room for.
    """

    page_size = PAGE_SIZE

    def __init__(self, device: torch.device, limits: KernelLimits) -> None:
        self.limits, self._device = limits, device
        self._on_gpu = device.type == "cuda"
        self._dtype = torch.bfloat16 if self._on_gpu else torch.float32
        self._bench = KernelBench(device, self._dtype, limits)
        self._host = HostWork()
        self._timer = GraphTimer(device) if self._on_gpu else LaunchTimer()

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self._device) if self._on_gpu else "cpu"

    @property
    def number_format(self) -> str:
        return _FORMATS[self._dtype]

    @property
    def bus_id(self) -> str | None:
        if not self._on_gpu:
            return None
        facts = torch.cuda.get_device_properties(self._device)
        return f"{facts.pci_domain_id:08x}:{facts.pci_bus_id:02x}:{facts.pci_device_id:02x}.0"

    @property
    def versions(self) -> Mapping[str, str]:
        found = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
        return found | ({"cuda": str(torch.version.cuda)} if torch.version.cuda else {})

    @property
    def implementations(self) -> Mapping[str, str]:
        return self._bench.ops.chosen

    def compile(self, cases: Sequence[KernelCase]) -> None:
        """Compile what cases need side by side; on a CPU there is nothing to compile."""
        if not self._on_gpu:
            return
        with torch.inference_mode(), compile_only(self._device):
            for case in cases:
                if case.op in COPIES or case.op in HOST_WORK:
                    continue
                if case.op not in _PRODUCTS or case.point[0] <= _COMPILED_ROWS:
                    self._bench.work(case).launch(0)

    def times(self, case: KernelCase) -> list[float]:
        if case.op in HOST_WORK:
            return self._host.times(case.op, *case.point)
        with torch.inference_mode():
            return self._timer.times(self._bench.work(case))


def kernel_device(name: str) -> KernelDevice:
    """The device of a name as torch writes it: "cuda", "cuda:1", "cpu".

    Raises:
        EngineError: there is no such device.
    """
    if name == "cpu":
        torch.set_num_threads(1)  # as the engine has it: more of them wait for each other
        return KernelDevice(torch.device("cpu"), _CPU_LIMITS)
    if not torch.cuda.is_available():
        raise EngineError(f"there is no GPU that torch can use, so {name!r} cannot be measured")
    device = torch.device(name)
    if device.index is None:  # not all of CUDA's functions know a device without a number
        device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    free, _ = torch.cuda.mem_get_info(device)
    kv_bytes = min(_KV_BYTES, free // _SHARE)
    limits = KernelLimits(
        weight_bytes=min(_WEIGHT_BYTES, free // _SHARE),
        kv_bytes=kv_bytes,
        tokens=_MOST_TOKENS,
        kv_layers=max(1, int(_KV_SHARE * free) // kv_bytes),
    )
    return KernelDevice(device, limits)
