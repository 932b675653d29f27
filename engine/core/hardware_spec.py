"""Named GPUs: what the data sheet promises, and which fraction of it programs reach.

Data-sheet figures are dense (no 2:4 sparsity). `memory_bytes` is the total that CUDA reports to a
program, which is less than the name on the box and less than `nvidia-smi` shows.

Achievable fractions were measured on one H200 only (torch 2.11.0+cu130, triton 3.6.0, 2026-11-22).
For every other GPU the same fractions are an *assumption*: `Achievable.measured` is False there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from engine.core.dtypes import did_you_mean, dtype_bytes

_MIB: Final = 1 << 20
_TERA: Final = 1e12
_GIGA: Final = 1e9


class UnknownGpuError(ValueError):
    """A GPU that has no entry here."""


class UnsupportedGpuDtypeError(ValueError):
    """A number format in which this GPU's matrix units do not compute."""


@dataclass(frozen=True, slots=True)
class Achievable:
    """Which part of the data sheet real kernels reach, and what each kernel costs besides.

    Attributes:
        copy: fraction of memory bandwidth that a large copy reaches (read + write).
        weight_stream: fraction of memory bandwidth at which a GEMM with few rows reads weights.
        gemm: fraction of the dense peak that a large GEMM reaches, per dtype.
        attention: fraction of the dense bf16 peak that causal prefill attention reaches.
        link: fraction of one direction of the GPU-to-GPU link that a large transfer reaches.
        graph_node_ns: gap before each kernel of a CUDA Graph, or of a full stream.
        eager_launch_ns: CPU time to launch one kernel from eager torch.
        all_reduce_ns: latency of one small all-reduce.
        measured: whether all of this was measured on this very GPU.
        source: where the figures come from.
    """

    copy: float
    weight_stream: float
    gemm: Mapping[str, float]
    attention: float
    link: float
    graph_node_ns: int
    eager_launch_ns: int
    all_reduce_ns: int
    measured: bool
    source: str


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """One GPU model.

    Attributes:
        name: short name, e.g. "h200".
        title: the vendor's name.
        memory_bytes: total memory as CUDA reports it.
        bandwidth: memory, bytes per second.
        peak_flops: dense FLOP/s of the matrix units (fp32: of the plain units), per dtype.
        link_bandwidth: bytes per second to the other GPUs, one direction.
        link: what carries it.
        achievable: fractions and overheads.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth: float
    peak_flops: Mapping[str, float]
    link_bandwidth: float
    link: str
    achievable: Achievable

    @property
    def copy_bandwidth(self) -> float:
        """Achievable bytes per second of kernels that only move data."""
        return self.bandwidth * self.achievable.copy

    @property
    def weight_bandwidth(self) -> float:
        """Achievable bytes per second of weights through a GEMM with few rows."""
        return self.bandwidth * self.achievable.weight_stream

    @property
    def attention_flops(self) -> float:
        """Achievable FLOP/s of attention."""
        return self.peak_flops["bf16"] * self.achievable.attention

    @property
    def all_reduce_bandwidth(self) -> float:
        """Achievable bytes per second to the other GPUs, one direction."""
        return self.link_bandwidth * self.achievable.link

    def gemm_flops(self, dtype: str) -> float:
        """Achievable FLOP/s of large GEMMs. Raises UnsupportedGpuDtypeError."""
        dtype_bytes(dtype)
        peak = self.peak_flops.get(dtype)
        if peak is None:
            raise UnsupportedGpuDtypeError(
                f"{self.title} does not compute in {dtype}; it does in {', '.join(self.peak_flops)}"
            )
        return peak * self.achievable.gemm[dtype]


_H200_PEAKS: Final = {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9, "fp8": 1978.9, "int8": 1978.9}

_ON_H200: Final = Achievable(
    copy=4.25 / 4.8,
    # 16 layers of Llama-3.1-8B GEMVs through cuBLAS in one CUDA Graph took 119.5 us a layer, i.e.
    # per layer 436.2 MB in four GEMMs, of which the four graph nodes took 1.19 us each: 3.80 TB/s.
    weight_stream=436.2e6 / (119.5e-6 - 4 * 1.19e-6) / 4.8e12,
    gemm=MappingProxyType(
        {
            "bf16": 700 / _H200_PEAKS["bf16"],  # 690 (8192^3) to 730 (4096^3) TFLOP/s
            "fp16": 700 / _H200_PEAKS["fp16"],  # assumed as bf16: the same units at the same rate
            "fp32": 700 / _H200_PEAKS["bf16"],  # assumed as bf16, not measured
            "fp8": 1204 / _H200_PEAKS["fp8"],  # row-wise scales
            "int8": 923 / _H200_PEAKS["int8"],
        }
    ),
    attention=545 / _H200_PEAKS["bf16"],  # cuDNN SDPA, causal, head_dim 128, 8k tokens
    link=357 / 450,  # send/recv of 256 MiB between two GPUs
    graph_node_ns=1_190,
    eager_launch_ns=8_400,
    all_reduce_ns=6_000,  # one-shot, two GPUs, 4 KiB; NCCL: 10.7 us
    measured=True,
    source="measured on an H200, torch 2.11.0+cu130, triton 3.6.0, 2026-11-22",
)

# The one assumption for every GPU that nobody measured yet.
_SAME_AS_H200: Final = replace(
    _ON_H200, measured=False, source="assumed: the fractions and overheads measured on an H200"
)
# PCIe: NCCL's latency over NVLink is the best figure at hand, so this is a lower bound.
_SAME_AS_H200_PCIE: Final = replace(_SAME_AS_H200, all_reduce_ns=13_000)


def _gpu(
    name: str,
    title: str,
    memory_mib: int,
    bandwidth_gb_s: float,
    peak_tflops: dict[str, float],
    link: tuple[str, float],
    achievable: Achievable,
) -> HardwareSpec:
    return HardwareSpec(
        name=name,
        title=title,
        memory_bytes=memory_mib * _MIB,
        bandwidth=bandwidth_gb_s * _GIGA,
        peak_flops=MappingProxyType({k: v * _TERA for k, v in peak_tflops.items()}),
        link_bandwidth=link[1] * _GIGA,
        link=link[0],
        achievable=achievable,
    )


# Memory: `total_memory` of torch.cuda.get_device_properties as printed in public logs (A100: 79.2
# GiB, L4: 22.03 GiB and RTX 4090: 23.64 GiB as in torch's out-of-memory messages).
# Bandwidth, peaks, links: NVIDIA data sheets and architecture white papers of each product.
_GPUS: Final = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            # A100 80GB SXM data sheet: 2,039 GB/s; 312 TFLOP/s bf16; 624 TOPS int8; NVLink 600 GB/s
            _gpu(
                "a100",
                "NVIDIA A100 80GB SXM",
                81_101,
                2_039,
                {"bf16": 312, "fp16": 312, "fp32": 19.5, "int8": 624},
                ("NVLink 3", 300),
                _SAME_AS_H200,
            ),
            # H100 SXM data sheet: 3.35 TB/s; 1,979 TFLOP/s bf16 with sparsity; NVLink 900 GB/s
            _gpu(
                "h100",
                "NVIDIA H100 80GB SXM",
                81_090,
                3_350,
                _H200_PEAKS,
                ("NVLink 4", 450),
                _SAME_AS_H200,
            ),
            # H200 SXM data sheet: 4.8 TB/s; the compute of an H100 SXM; NVLink 900 GB/s
            _gpu(
                "h200",
                "NVIDIA H200 141GB SXM",
                143_156,
                4_800,
                _H200_PEAKS,
                ("NVLink 4", 450),
                _ON_H200,
            ),
            # HGX B200 (1,000 W) in the Blackwell architecture brief: 2.25 PFLOP/s bf16, 4.5 fp8 and
            # int8, 80 TFLOP/s fp32; 8 TB/s (7.67 by bus width and clock); NVLink 1.8 TB/s
            _gpu(
                "b200",
                "NVIDIA B200 180GB SXM",
                182_631,
                7_670,
                {"bf16": 2_250, "fp16": 2_250, "fp32": 80, "fp8": 4_500, "int8": 4_500},
                ("NVLink 5", 900),
                _SAME_AS_H200,
            ),
            # L4 data sheet: 300 GB/s; 242 TFLOP/s bf16, 485 fp8 and int8, all with sparsity
            _gpu(
                "l4",
                "NVIDIA L4 24GB",
                22_559,
                300,
                {"bf16": 121, "fp16": 121, "fp32": 30.3, "fp8": 242.5, "int8": 242.5},
                ("PCIe 4.0 x16", 32),
                _SAME_AS_H200_PCIE,
            ),
            # Ada GPU architecture white paper, appendix A: tensor rates with fp32 accumulation
            _gpu(
                "rtx4090",
                "NVIDIA GeForce RTX 4090",
                24_207,
                1_008,
                {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6, "fp8": 330.3, "int8": 660.6},
                ("PCIe 4.0 x16", 32),
                _SAME_AS_H200_PCIE,
            ),
        )
    }
)


def gpu_names() -> tuple[str, ...]:
    """Names of all GPUs known here."""
    return tuple(_GPUS)


def load_hardware_spec(name: str) -> HardwareSpec:
    """The GPU of that name, in any case. Raises UnknownGpuError."""
    gpu = _GPUS.get(name.casefold())
    if gpu is None:
        names = gpu_names()
        raise UnknownGpuError(
            f"unknown GPU {name!r}{did_you_mean(name, names)}; known: {', '.join(names)}"
        )
    return gpu
