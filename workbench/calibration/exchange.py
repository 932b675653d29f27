"""From a machine with several GPUs to tables of what they take to exchange sums and parts."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.runtime.executor import EngineError
from simulator.composition.kernel_exchange import (
    PREFIX,
    SCHEMA,
    ExchangeSeries,
    ExchangeTables,
    encode_exchange,
    read_exchange,
)
from workbench.calibration.gpu_file_name import gpu_file_name
from workbench.record.atomic_file import write_atomic
from workbench.record.provenance import source_commit, workbench_version
from workbench.record.result_folder import make_folder

if TYPE_CHECKING:
    from engine.profiling.exchange import ExchangeCase

Times = Mapping["ExchangeCase", Sequence[float]]
_CPU_PROCESSES: Final = 2
_CPU_SIZES: Final = (1 << 12, 1 << 16, 1 << 20)
_NO_MULTICAST: Final = "NCCL_NVLS_ENABLE"


def calibrate_exchange(
    device_name: str,
    folder: Path,
    *,
    say: Callable[[str], object] = lambda _: None,
    now: Callable[[], float] = time.time,
) -> Path:
    """Measure exchange between all GPUs of this machine and write `exchange-<gpu>.json`.

    Args:
        device_name: "cuda", or "cpu" for processes instead of GPUs, to try it out.
        folder: of the tables; made if it is not there.
        say: told what is going on.
        now: s since 1970, for the record.

    Raises:
        EngineError: there is one GPU or none, or measuring failed.
        RunRecordError: nothing can be written to the folder.
    """
    torch, exchange = _modules()
    on_cpu = device_name == "cpu"
    gpus = _CPU_PROCESSES if on_cpu else torch.cuda.device_count()
    if gpus < 2:
        raise EngineError(f"exchange needs two GPUs at least; torch sees {gpus} here")
    make_folder(folder)
    name = "cpu" if on_cpu else torch.cuda.get_device_name(0)
    sizes = _CPU_SIZES if on_cpu else exchange.SIZES
    cases = exchange.design_exchange(gpus, sizes)
    say(f"exchange between {gpus} of {name}: {len(cases)} cases")
    began = now()
    times = exchange.measure_exchange(gpus, cases, on_cpu=on_cpu)
    versions = {"torch": str(torch.__version__)}
    if not on_cpu:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        versions |= {"cuda": str(torch.version.cuda), "nccl": nccl}
    conditions = {
        "began_unix_s": round(began), "seconds": round(now() - began), "gpus": gpus,
        _NO_MULTICAST: os.environ.get(_NO_MULTICAST),
    }  # fmt: skip
    tables = ExchangeTables(
        schema=SCHEMA, gpu=name, engine_version=workbench_version(), commit=source_commit(),
        versions=versions, series=series_of(times), conditions=conditions,
    )  # fmt: skip
    path = folder / f"{gpu_file_name(PREFIX, name)}.json"
    write_atomic(path, encode_exchange(tables))
    return path


def several_gpus() -> bool:
    """Whether there is exchange to measure here; no where torch is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return False
    return bool(torch.cuda.is_available() and torch.cuda.device_count() > 1)


def series_of(times: Times) -> tuple[ExchangeSeries, ...]:
    """Medians and their spread, by kind and number of GPUs."""
    kinds = sorted({(case.op, case.gpus) for case in times})
    return tuple(_series(op, gpus, times) for op, gpus in kinds)


def _series(op: str, gpus: int, times: Times) -> ExchangeSeries:
    own = sorted((case.size, each) for case, each in times.items() if case[:2] == (op, gpus))
    medians = [statistics.median(each) for _, each in own]
    spreads = [
        statistics.median(abs(ns - median) for ns in each)
        for (_, each), median in zip(own, medians, strict=True)
    ]
    return ExchangeSeries(
        op=op,
        gpus=gpus,
        bytes=tuple(size for size, _ in own),
        ns=tuple(round(ns, 1) for ns in medians),
        spread_ns=tuple(round(ns, 1) for ns in spreads),
    )


def exchange_beside(folder: Path) -> list[ExchangeTables]:
    """The tables in a folder.

    Raises:
        ProfileError: one of them cannot be read.
    """
    return [read_exchange(path) for path in sorted(folder.glob(f"{PREFIX}*.json"))]


def _modules() -> tuple[Any, Any]:
    """torch and what measures. Raises EngineError if torch is not installed."""
    try:
        return importlib.import_module("torch"), importlib.import_module(
            "engine.profiling.exchange"
        )
    except ModuleNotFoundError as error:
        raise EngineError(
            f"measuring exchange needs {error.name}, which is not installed: "
            "pip install -e '.[engine]' in the folder of the workbench"
        ) from None
