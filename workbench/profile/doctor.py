"""What of profiling works on this machine, and what is missing for the rest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from engine.native.cache_choice import described_choices
from workbench.profile.ncu_report import READ, read_ncu
from workbench.profile.nsight import Command, ToolError, find_tool, run_tool
from workbench.profile.trace import TraceFileError
from workbench.record.provenance import source_commit, workbench_version

GOOD, MISSING, INFO = "works", "missing", "is"
_PACKAGES: Final = ("torch", "triton", "nvtx", "tokenizers")
_LIBRARIES: Final = {"cuBLAS": "cublas", "cuDNN": "cudnn", "NCCL": "nccl"}
_NCU_LIMIT_S: Final = 90.0
_PROBE: Final = (
    "import torch; x = torch.ones(1 << 20, device='cuda'); torch.cuda.synchronize(); "
    "torch.cuda.cudart().cudaProfilerStart(); y = x + 1; torch.cuda.synchronize(); "
    "torch.cuda.cudart().cudaProfilerStop()"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        state: GOOD, MISSING or INFO.
        text: what there is, or what is missing and what would help.
    """

    name: str
    state: str
    text: str


def examine(*, counters: bool = True, ceilings: bool = True) -> Iterator[Finding]:
    """Look at everything, one after the other.

    Args:
        counters: try to read the GPU's counters, which starts ncu.
        ceilings: measure them, which takes up to 10 s.
    """
    commit = source_commit()
    version = f"{workbench_version()}{f', commit {commit[:7]}' if commit else ''}"
    yield Finding("workbench", INFO, version)
    yield Finding("Python", INFO, f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        yield _package(package)
    for line in described_choices():
        yield Finding("prefix cache", INFO, line)
    if importlib.util.find_spec("torch") is None:
        yield Finding("GPU", MISSING, "torch, which would see it: pip install -e '.[engine]'")
        yield from _tools(gpu=False, counters=False)
        return
    torch = importlib.import_module("torch")
    gpu = bool(torch.cuda.is_available())
    yield _gpu(torch) if gpu else _no_gpu(torch)
    if gpu:
        yield Finding("driver", INFO, _driver())
    yield from _kernels(torch, gpu=gpu)
    yield _profiler(torch, gpu=gpu)
    yield from _tools(gpu=gpu, counters=counters)
    if gpu and ceilings:
        yield _ceilings(torch)


def _package(name: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, MISSING, "pip install -e '.[engine]' in the folder of the workbench")
    return Finding(name, GOOD, metadata.version(name))


def _gpu(torch: Any) -> Finding:
    facts = torch.cuda.get_device_properties(0)
    text = (
        f"{facts.name}, {facts.multi_processor_count} multiprocessors, "
        f"{facts.total_memory / (1 << 30):,.0f} GiB, compute capability "
        f"{facts.major}.{facts.minor}, CUDA {torch.version.cuda}"
    )
    return Finding("GPU", GOOD, text)


def _no_gpu(torch: Any) -> Finding:
    return Finding(
        "GPU", MISSING,
        f"torch {torch.__version__} sees none: `timeline` is of the CPU engine, without kernels "
        "and gaps; `roofline --gpu h200` predicts, `gaps --from` shows what was measured elsewhere",
    )  # fmt: skip


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not answer"
    return done.stdout.split("\n", 1)[0].strip()


def _kernels(torch: Any, *, gpu: bool) -> Iterator[Finding]:
    registry = importlib.import_module("engine.kernels.registry")
    chosen = registry.select_kernels(torch.device("cuda" if gpu else "cpu")).chosen
    kinds = sorted(set(chosen.values()))
    by_kind = [f"{kind}: {', '.join(op for op in chosen if chosen[op] == kind)}" for kind in kinds]
    yield Finding("kernels", INFO, "; ".join(by_kind))
    yield Finding("libraries", INFO, _libraries(torch, gpu=gpu))
    if gpu:
        nvrtc = importlib.import_module("engine.kernels.nvrtc")
        try:
            yield Finding("NVRTC", GOOD, f"{nvrtc.nvrtc_version()}, compiles the engine's CUDA C++")
        except nvrtc.NvrtcError as error:
            yield Finding("NVRTC", MISSING, str(error))


def _libraries(torch: Any, *, gpu: bool) -> str:
    """What multiplies where no kernel of the engine does, and what else torch brings along."""
    if not gpu:
        names = [name for name in ("mkl", "mkldnn") if getattr(torch.backends, name).is_available()]
        brought = " and ".join({"mkl": "MKL", "mkldnn": "oneDNN"}[name] for name in names)
        by = f"torch with {brought or 'neither MKL nor oneDNN'}"
        return f"products by {by}, on {torch.get_num_threads()} threads, of small models on one"
    found = {title: _nvidia_version(name) for title, name in _LIBRARIES.items()}
    cublas = found.pop("cuBLAS") or "of torch"
    others = ", ".join(f"{title} {version}" for title, version in found.items() if version)
    return f"products of many rows by cuBLAS {cublas}" + (f"; also {others}" if others else "")


def _nvidia_version(name: str) -> str | None:
    """Of a package that torch requires; None: torch was built otherwise."""
    for package in (f"nvidia-{name}", f"nvidia-{name}-cu13", f"nvidia-{name}-cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _profiler(torch: Any, *, gpu: bool) -> Finding:
    traced = importlib.import_module("engine.profiling.traced_steps")
    tracer = traced.Tracer()
    tracer.start()
    torch.ones(8, device="cuda" if gpu else "cpu").add_(1)
    tracer.stop()
    kernels = sum(event.get("cat") == "kernel" for event in tracer.events)
    if gpu and not kernels:
        return Finding("torch.profiler", MISSING, "it saw no kernel: CUPTI does not work here")
    text = f"it saw {kernels} kernels of a probe" if gpu else "of the CPU: ranges and ops"
    return Finding("torch.profiler", GOOD, text)


def _tools(*, gpu: bool, counters: bool) -> Iterator[Finding]:
    for name, what in (("nsys", "Nsight Systems"), ("ncu", "Nsight Compute")):
        path = find_tool(name)
        if path is None:
            text = f"{what} is not installed; `--{name}` prints the command to run where it is"
            yield Finding(name, MISSING, text)
        else:
            yield Finding(name, GOOD, f"{path} {_version(path)}")
    ncu = find_tool("ncu")
    if gpu and counters and ncu is not None:
        yield _counters(ncu)


def _version(path: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a tool that was found
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "(does not tell its version)"
    lines = [line for line in done.stdout.splitlines() if "ersion" in line]
    return lines[0].strip() if lines else ""


def _counters(ncu: str) -> Finding:
    """Whether a counter of a small kernel can be read."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "probe.csv"
        words = (
            ncu, "--clock-control", "none", "--profile-from-start", "off",
            "--metrics", f"{READ},gpu__time_duration.sum", "--csv", "--page", "raw",
            "--log-file", str(log), sys.executable, "-c", _PROBE,
        )  # fmt: skip
        try:
            run_tool(Command(words), _NCU_LIMIT_S)
            kernel = read_ncu(log)[0]
        except (ToolError, TraceFileError) as error:
            return Finding("counters", MISSING, str(error))
    if kernel.dram_bytes is None:
        return Finding("counters", MISSING, f"ncu runs, and does not read {READ} on this GPU")
    wanted = 4 << 20
    return Finding(
        "counters", GOOD,
        f"readable: a kernel that reads {wanted:,} bytes read {kernel.dram_bytes:,.0f} from memory",
    )  # fmt: skip


def _ceilings(torch: Any) -> Finding:
    module = importlib.import_module("engine.runtime.ceilings")
    found = module.measure_ceilings(torch.device("cuda", 0))
    ridge = found["product_tflop_s"] / found["copy_tb_s"]
    text = (
        f"copy {found['copy_tb_s']:.2f} TB/s, bf16 product {found['product_tflop_s']:,.0f} "
        f"TFLOP/s; ridge at {ridge:,.0f} FLOP/byte"
    )
    return Finding("ceilings", GOOD, text)


def finding_text(finding: Finding) -> str:
    """One line, or more where there is much to say."""
    mark = {GOOD: "✓", MISSING: "✗", INFO: "·"}[finding.state]
    return f"{mark} {finding.name:<15}{finding.text}"


def findings_json(findings: list[Finding]) -> dict[str, Any]:
    """As JSON data."""
    return {
        "schema": "profile_doctor/v1",
        "cpus": os.cpu_count(),
        "findings": [asdict(finding) for finding in findings],
    }
