"""What a trace says the device and the host did: Chrome's trace format, as torch's profiler has it.

Only complete events are taken in (phase "X"); times are in us on the profiler's clock.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine.core.bounded_file import read_bounded
from engine.profiling.op_classes import RANGE
from simulator.cost_model import UNKNOWN, StepShape
from workbench.profile.ceilings import measured_ceilings
from workbench.profile.traced_model import TORCH_DTYPES
from workbench.profile.wrong_file import WRONG, checked, in_words

_DEVICE: Final = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
_HOST: Final = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
_MOST_BYTES: Final = 1 << 31
_GZIP: Final = b"\x1f\x8b"
_FEWEST_FEATURES: Final = 12  # of a step; older traces have no more


class TraceFileError(ValueError):
    """A file that is no trace; says which, and what would be one."""


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """A kernel, copy or fill.

    Attributes:
        name: of the kernel, without its arguments.
        kind: "kernel" or "copy".
        start_us, end_us: when it ran.
        stream: of the device.
        correlation: number of the call that launched it, -1 if unknown.
    """

    name: str
    kind: str
    start_us: float
    end_us: float
    stream: int
    correlation: int

    @property
    def duration_us(self) -> float:
        """How long it ran."""
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class HostWork:
    """Something that a thread of the host did.

    Attributes:
        name: of an op, a range or a call of CUDA.
        kind: "cpu_op", "user_annotation", "cuda_runtime" or "cuda_driver".
        start_us, end_us: when.
        thread: which.
        correlation: number of a CUDA call, -1 for anything else.
    """

    name: str
    kind: str
    start_us: float
    end_us: float
    thread: str
    correlation: int

    @property
    def duration_us(self) -> float:
        """How long it took, with all that it contains."""
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded piece of time.

    Attributes:
        device: in order of start.
        host: in order of start; of two that start together the longer comes first.
        about: what was recorded, as whoever recorded it said.
    """

    device: tuple[DeviceWork, ...]
    host: tuple[HostWork, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def ranges(self, name: str) -> list[HostWork]:
        """Ranges of the workbench that are called so, in order."""
        wanted = RANGE + name
        return [work for work in self.host if work.name == wanted]

    def during(self, span: HostWork) -> Trace:
        """What began on the device during a range that waits for it, and what the host did."""
        host = tuple(work for work in self.host if _overlaps(span, work))
        device = tuple(
            work for work in self.device if span.start_us <= work.start_us <= span.end_us
        )
        return Trace(device, host, self.about)


def _overlaps(span: HostWork, work: HostWork) -> bool:
    return span.start_us <= work.end_us and work.start_us <= span.end_us


def read_trace(path: Path) -> Trace:
    """Read a trace, compressed or not.

    Raises:
        TraceFileError: it is none, or cannot be read.
    """
    try:
        data = read_bounded(path, _MOST_BYTES)
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        whole = json.loads(data)
    except OSError as error:
        raise TraceFileError(f"cannot read {path}: {error.strerror or error}") from error
    except WRONG as error:
        raise TraceFileError(f"{path} is no trace: {in_words(error)}") from None
    events = whole.get("traceEvents") if isinstance(whole, dict) else whole
    if not isinstance(events, list):
        raise TraceFileError(
            f"{path} has no list `traceEvents`: give a trace of torch's profiler, as "
            "`workbench profile timeline` writes it"
        )
    about = _about(whole, path) if isinstance(whole, dict) else {}
    try:
        return parse_events(events, about)
    except WRONG as error:
        raise TraceFileError(
            f"{path} holds an event that is none of a trace: {in_words(error)}"
        ) from None


def _about(whole: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What whoever recorded a trace said of it; what is calculated with has to be what it is."""
    about = whole.get("workbench")
    if about is None:
        return {}
    if not isinstance(about, dict):
        raise TraceFileError(f"{path} is no trace: `workbench` is no object")
    for name, check in _CHECKS.items():
        try:
            check(about.get(name))
        except WRONG as error:
            raise TraceFileError(f"{path} has damaged `{name}`: {in_words(error)}") from None
    return about


def _check_features(features: Any) -> None:
    """A step as `StepShape` has it; that of an older trace may lack the last ones."""
    if features is None:
        return
    names = StepShape._fields
    if not isinstance(features, list) or not _FEWEST_FEATURES <= len(features) <= len(names):
        raise ValueError(f"it is no list of {len(names)} numbers, those of a step")
    for name, value in zip(names, features, strict=False):
        unknown = name == "active_experts" and value == UNKNOWN
        if not unknown and checked(name, value) != int(value):
            raise ValueError(f"`{name}` is {value!r}, and has to be whole")


def _check_dtype(dtype: Any) -> None:
    if dtype not in (None, *TORCH_DTYPES, *TORCH_DTYPES.values()):
        raise ValueError(f"{dtype!r} is none of {', '.join(TORCH_DTYPES)}")


_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "ceilings": measured_ceilings,
    "features": _check_features,
    "dtype": _check_dtype,
}


def parse_events(
    events: Iterable[Mapping[str, Any]], about: Mapping[str, Any] | None = None
) -> Trace:
    """The trace of these events; such of other categories are left out."""
    device, host = [], []
    for event in events:
        category = event.get("cat")
        if event.get("ph") != "X":
            continue
        if category in _DEVICE:
            device.append(_device_work(event, _DEVICE[category]))
        elif category in _HOST:
            host.append(_host_work(event, category))
    device.sort(key=lambda work: (work.start_us, work.end_us))
    host.sort(key=lambda work: (work.start_us, -work.end_us))
    return Trace(tuple(device), tuple(host), about or {})


def _span(event: Mapping[str, Any]) -> tuple[float, float]:
    """When an event began and ended, in us."""
    start = checked("ts", event["ts"])
    return start, start + checked("dur", event["dur"])


def _device_work(event: Mapping[str, Any], kind: str) -> DeviceWork:
    arguments, (start, end) = event.get("args", {}), _span(event)
    return DeviceWork(
        kernel_name(str(event["name"])),
        kind,
        start,
        end,
        int(arguments.get("stream", 0)),
        int(arguments.get("correlation", -1)),
    )


def _host_work(event: Mapping[str, Any], kind: str) -> HostWork:
    arguments, (start, end) = event.get("args", {}), _span(event)
    return HostWork(
        str(event["name"]),
        kind,
        start,
        end,
        f"{event.get('pid')}/{event.get('tid')}",
        int(arguments.get("correlation", -1)) if kind.startswith("cuda") else -1,
    )


def kernel_name(signature: str) -> str:
    """A C++ kernel's name without return type, namespaces of no interest and arguments."""
    name = signature.removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth -= 1
        elif letter == "(" and depth == 0 and at and not name.startswith("Mem"):
            return name[:at]
    return name
