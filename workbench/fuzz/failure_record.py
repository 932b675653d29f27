"""A failing run as an ordinary run record, so that everything that reads runs can show it."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.events import Detail, EventLog
from workbench.fuzz.explore import Failure
from workbench.metrics.latency import MetricsError
from workbench.metrics.run_metrics import summarize
from workbench.record.header import LoadFacts, ReplicaFacts, RunHeader
from workbench.record.provenance import source_commit, workbench_version
from workbench.record.run_record import RunWriter


def record_failure(failure: Failure, runs_directory: Path) -> Path | None:
    """Repeat a failing run and record it; None if its machine keeps no events.

    The record says "failed", with the violation as its reason. What the failing step itself did
    stands in it as far as it had come.

    Raises:
        RunRecordError: it cannot be written.
    """
    configs: tuple[SchedulerConfig, ...] = getattr(failure.setup, "configs", None) or (
        (failure.setup.config,) if hasattr(failure.setup, "config") else ()
    )
    if not configs:
        return None
    log = EventLog(Detail.PAGES)
    trial = failure.machine.open(failure.seed, failure.setup, log)
    with suppress(Exception):  # the violation, again
        for operation in failure.operations:
            trial.apply(operation)
        trial.finish()
    trial.write_unfinished()
    header = _header(failure, configs)
    writer = RunWriter(runs_directory, header.name, header)
    tables = log.tables()
    writer.write_segment(tables)
    reason = f"{type(failure.error).__name__}: {failure.error}"
    summary = None
    with suppress(MetricsError):
        summary = summarize(tables, header, reason)
    writer.failed(reason, summary)
    return writer.path


def _header(failure: Failure, configs: tuple[SchedulerConfig, ...]) -> RunHeader:
    where = "at rest, after the last operation" if failure.at_rest else "in the last operation"
    return RunHeader(
        name=f"fuzz-{failure.machine.name}-{failure.seed}",
        kind="simulation",
        detail="pages",
        seed=failure.seed,
        model="tokens that are a hash of their prefix",
        gpu="a device that checks what it reads",
        cost_model="1 ms per operation",
        replicas=tuple(
            ReplicaFacts(
                num_pages=config.num_pages,
                page_size=config.page_size,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_running_requests=config.max_running_requests,
                max_model_len=config.max_model_len,
            )
            for config in configs
        ),
        load=LoadFacts(kind="fuzz"),
        commit=source_commit(),
        version=workbench_version(),
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        notes=(f"{failure.error}", f"{len(failure.operations)} operations; found {where}"),
    )
