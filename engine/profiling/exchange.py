"""What GPUs take to send each other sums and parts: NCCL, one process a GPU, in CUDA Graphs.

An engine on several GPUs adds up what each has of a layer's result (`all_reduce`, of the step's
rows), and puts the logits of all shards side by side (`all_gather`). Many of one kind and size run
in one graph, each on another buffer than the one before, as in a step. GPUs wait for each other, so
the slowest one's time counts.

On machines without GPUs the same runs over gloo and is timed one by one: to test it, not to
predict anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import torch
import torch.distributed as dist

from engine.runtime.executor import EngineError
from engine.runtime.graph_capture import GraphSpace

OPS: Final = ("all_reduce", "all_gather")
SIZES: Final = tuple(1 << power for power in range(12, 27))  # bytes: 4 KiB to 64 MiB
GROUPS: Final = (2, 4, 8)
_REPLAYS: Final = 7
_BUFFERS: Final = 8
_LEAST_SECONDS: Final = 1e-3  # of a replay
_BUSY_CYCLES: Final = 60_000_000  # some 30 ms
_BYTES_PER_SECOND, _START_SECONDS = 2e11, 1e-5  # about
_TINY: Final = 1e-30  # sums of sums of sums stay numbers
_PATIENCE: Final = timedelta(seconds=60)


class ExchangeCase(NamedTuple):
    """One thing to measure.

    Attributes:
        op: of `OPS`.
        gpus: that take part.
        size: bytes of the result, on each of them.
    """

    op: str
    gpus: int
    size: int


def design_exchange(gpus: int, sizes: tuple[int, ...] = SIZES) -> list[ExchangeCase]:
    """What is measured on a machine with so many GPUs: all groups that it can make."""
    return [
        ExchangeCase(op, group, size)
        for group in GROUPS
        if group <= gpus
        for op in OPS
        for size in sizes
    ]


def measure_exchange(
    gpus: int, cases: list[ExchangeCase], *, on_cpu: bool = False, limit_s: float = 120.0
) -> dict[ExchangeCase, list[float]]:
    """ns of each case, several times.

    Args:
        gpus: of this machine; with `on_cpu` processes.
        cases: none of more GPUs than these.
        on_cpu: over gloo.
        limit_s: after which a group of processes is given up.

    Raises:
        EngineError: a process failed, or they did not come to an end; with what it said last.
    """
    found: dict[ExchangeCase, list[float]] = {}
    for group in sorted({case.gpus for case in cases}):
        if group > gpus:
            raise EngineError(f"there are {gpus} GPUs, not {group}")
        own = [case for case in cases if case.gpus == group]
        found |= dict(zip(own, _run_group(group, own, on_cpu, limit_s), strict=True))
    return found


def _run_group(
    group: int, cases: list[ExchangeCase], on_cpu: bool, limit_s: float
) -> list[list[float]]:
    """Times of all cases of one number of processes, which are started here and end here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cases.json").write_text(json.dumps(cases))
        command = [sys.executable, "-m", __name__, name, str(group), str(int(on_cpu))]
        logs = [(folder / f"{rank}.log").open("wb") for rank in range(group)]
        processes = [
            subprocess.Popen(  # noqa: S603 - this very module
                [*command, str(rank)], stdout=log, stderr=log, env=_environment()
            )
            for rank, log in enumerate(logs)
        ]
        try:
            _wait(processes, limit_s, folder)
        finally:
            for process, log in zip(processes, logs, strict=True):
                process.kill()
                process.wait()
                log.close()
        times: list[list[float]] = json.loads((folder / "times.json").read_text())
        return times


def _environment() -> dict[str, str]:
    """That of this process; modules are found where this one finds them."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _wait(processes: list[subprocess.Popen[bytes]], limit_s: float, folder: Path) -> None:
    """Until all have ended well. Raises EngineError if one has not."""
    deadline = time.monotonic() + limit_s
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        if time.monotonic() > deadline:
            raise EngineError(f"exchange between GPUs was not measured within {limit_s:.0f} s")
        time.sleep(0.02)
    for rank, process in enumerate(processes):
        if process.poll():
            said = (folder / f"{rank}.log").read_text(errors="replace").strip()[-2000:]
            raise EngineError(f"measuring exchange between GPUs failed on GPU {rank}:\n{said}")


class _Rank:
    """One of the processes.

    Args:
        rank, group: which, of how many.
        on_cpu: over gloo.
        folder: where they meet.
    """

    def __init__(self, rank: int, group: int, on_cpu: bool, folder: Path) -> None:
        self.rank, self.group, self._on_cpu = rank, group, on_cpu
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", rank)
        if not on_cpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "gloo" if on_cpu else "nccl", init_method=f"file://{folder}/meeting",
            rank=rank, world_size=group, timeout=_PATIENCE,
            device_id=None if on_cpu else self.device,
        )  # fmt: skip
        self._dtype = torch.float32 if on_cpu else torch.bfloat16
        self._space: GraphSpace | None = None
        if not on_cpu:
            self._space = GraphSpace(self.device)
            # A graph that stays holds the memory that all share.
            self._kept = self._space.capture(lambda: torch.zeros(1, device=self.device))
        self.check()

    def check(self) -> None:
        """Sums must be sums: a link that does not work would be a fast one."""
        ones = torch.full((1024,), float(self.rank + 1), device=self.device)
        dist.all_reduce(ones)
        if not torch.all(ones == self.group * (self.group + 1) / 2):
            raise RuntimeError(f"the sum of {self.group} GPUs is wrong: {ones[:4].tolist()}")

    def times(self, case: ExchangeCase) -> list[float]:
        """ns of one exchange, of each replay but the first; of this process."""
        launch = self._launch(case)
        for time_ in range(_BUFFERS):
            launch(time_)
        dist.barrier()
        if self._space is None:
            return list(_one_by_one(launch))
        count = _launches(case)
        self._space.rehearse(lambda: launch(0))
        graph, _ = self._space.capture(lambda: [launch(time_) for time_ in range(count)])
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(_REPLAYS)]
        graph.replay()
        # While GPUs are kept busy all replays are launched, and clocks recover.
        torch.cuda._sleep(_BUSY_CYCLES)  # type: ignore[no-untyped-call]  # noqa: SLF001
        for mark in marks:
            # Of a graph with NCCL's small messages every second replay took two thirds longer.
            graph.replay()
            graph.replay()
            mark.record()
        marks[-1].synchronize()
        return [1e6 * begin.elapsed_time(end) / (2 * count) for begin, end in pairwise(marks)]

    def _launch(self, case: ExchangeCase) -> Callable[[int], object]:
        elements = case.size // torch.finfo(self._dtype).bits * 8
        whole = [self._random(elements) for _ in range(_BUFFERS)]
        if case.op == "all_reduce":
            return lambda time_: dist.all_reduce(whole[time_ % _BUFFERS])
        parts = [self._random(elements // self.group) for _ in range(_BUFFERS)]
        return lambda time_: dist.all_gather_into_tensor(
            whole[time_ % _BUFFERS], parts[time_ % _BUFFERS]
        )

    def _random(self, elements: int) -> torch.Tensor:
        drawn = torch.empty(elements, dtype=self._dtype, device=self.device)
        return drawn.uniform_(-_TINY, _TINY)

    def slowest(self, times: list[float]) -> list[float]:
        """The longest of all processes, of each time."""
        told = torch.tensor(times, dtype=torch.float64, device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        longest: list[float] = told.tolist()
        return longest


def _one_by_one(launch: Callable[[int], object]) -> Iterator[float]:
    for time_ in range(_REPLAYS - 1):
        begin = time.perf_counter_ns()
        launch(time_)
        yield float(time.perf_counter_ns() - begin)


def _launches(case: ExchangeCase) -> int:
    return max(4, min(64, round(_LEAST_SECONDS / _seconds(case))))


def _seconds(case: ExchangeCase) -> float:
    return _START_SECONDS + case.size / _BYTES_PER_SECOND


def _main(name: str, group: str, on_cpu: str, rank: str) -> None:
    """One process; the first one writes what all of them measured."""
    folder = Path(name)
    own = _Rank(int(rank), int(group), bool(int(on_cpu)), folder)
    cases = [ExchangeCase(*case) for case in json.loads((folder / "cases.json").read_text())]
    found = [own.slowest(own.times(case)) for case in cases]
    if own.rank == 0:
        (folder / "times.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
