"""Kernel classes of a step on the roofline: what they have to do, and how fast they did it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from engine.core.model_spec import ModelSpec
from engine.profiling.op_classes import COMMUNICATION, GROUP_OF, REST
from simulator.cost_model import StepShape
from workbench.profile.ceilings import LINK, Ceilings, in_words, reached
from workbench.profile.counted_work import ELEMENTWISE, ELEMENTWISE_CLASSES, Work, counted_work
from workbench.profile.ncu_report import NcuKernel, moved_bytes
from workbench.profile.timeline import Timeline
from workbench.profile.traced_model import model_title

COUNTED, COUNTERS = "counted", "ncu"
GAPS: Final = "gaps"


@dataclass(frozen=True, slots=True)
class Point:
    """A class of kernels on the roofline.

    Attributes:
        kind, group: the class and its range.
        num_bytes, flops: that it moved and did in a step.
        time_us: that it took of a step.
        tb_s, tflop_s: at which rates.
        fraction: of the ceiling above it.
        bound: "memory", "compute", "latency", or "link" of an exchange between GPUs.
        words: a sentence on it.
        source: COUNTED, or COUNTERS where the bytes were read from the device's counters.
        counted_bytes: what the count says, where counters say something else beside it.
        warps_active, tensor_active: percent of their peaks, by counters; None: not read.
    """

    kind: str
    group: str
    num_bytes: float
    flops: float
    time_us: float
    tb_s: float
    tflop_s: float
    fraction: float
    bound: str
    words: str
    source: str = COUNTED
    counted_bytes: float | None = None
    warps_active: float | None = None
    tensor_active: float | None = None

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Roofline:
    """All classes of one step.

    Attributes:
        title: what ran, on what.
        step_us: of the whole step.
        rest_us: of classes that nothing is counted for, and of launches and gaps.
        ceilings: of the device.
        points: the class that takes longest first.
    """

    title: str
    step_us: float
    rest_us: float
    ceilings: Ceilings
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"schema": "profile_roofline/v1", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Roofline:
        """The roofline of what `to_json` gave. Raises KeyError, TypeError: it is something else."""
        return cls(
            data["title"], data["step_us"], data["rest_us"], Ceilings(**data["ceilings"]),
            tuple(Point(**point) for point in data["points"]),
        )  # fmt: skip


def place(
    title: str, times_us: Mapping[str, float], step_us: float, work: Mapping[str, Work],
    ceilings: Ceilings,
) -> Roofline:  # fmt: skip
    """Place classes on the roofline.

    Args:
        title: what ran, on what.
        times_us: class -> time of a step that it takes; as `merged`.
        step_us: of the whole step.
        work: class -> what it has to do, as `counted_work`.
        ceilings: of the device.
    """
    points = [
        _point(kind, work[kind], us, ceilings) if kind in work else _exchange(kind, us)
        for kind, us in times_us.items()
        if us > 0 and (kind in work or GROUP_OF.get(kind) == COMMUNICATION)
    ]
    points.sort(key=lambda point: -point.time_us)
    placed = sum(point.time_us for point in points)
    return Roofline(title, step_us, max(0.0, step_us - placed), ceilings, tuple(points))


def _point(kind: str, work: Work, us: float, ceilings: Ceilings) -> Point:
    found = reached(work, us, ceilings.of(kind))
    return Point(
        kind, GROUP_OF.get(kind, REST), work.num_bytes, work.flops, us, found.tb_s, found.tflop_s,
        found.fraction, found.bound, in_words(kind, work, us, found),
    )  # fmt: skip


def _exchange(kind: str, us: float) -> Point:
    """Between GPUs: the link's rate is no ceiling of this roofline, so only its time is told."""
    words = f"{kind} takes {us:,.1f} us: GPUs exchange data over their link, which has no roof here"
    return Point(kind, COMMUNICATION, 0.0, 0.0, us, 0.0, 0.0, 0.0, LINK, words)


def merged(times_us: Mapping[str, float]) -> dict[str, float]:
    """Times by class; those of kernels that only move data as one, as their bytes are counted."""
    found: dict[str, float] = {}
    for kind, us in times_us.items():
        name = ELEMENTWISE if kind in ELEMENTWISE_CLASSES else kind
        found[name] = found.get(name, 0.0) + us
    return found


def measured_roofline(
    found: Timeline, model: ModelSpec, shape: StepShape, ceilings: Ceilings
) -> Roofline:
    """The roofline of a step that was traced."""
    about = found.about
    title = f"{model_title(about)}, {about.get('step')}, {about.get('device')}"
    times = merged({one.kind: one.us for one in found.classes})
    return place(title, times, found.step_us, counted_work(model, shape), ceilings)


def with_counters(
    roofline: Roofline, kernels: Sequence[tuple[str, NcuKernel]], scale: float = 1.0
) -> Roofline:
    """The same with bytes, times and activity as the device's counters have them.

    Args:
        roofline: as counted; classes without counters, or without any time, stay as they are.
        kernels: (class, what the counters say of one kernel), of one step.
        scale: of the step, by the kernels that were read; above 1 if they are of fewer layers.
    """
    by_kind: dict[str, list[NcuKernel]] = {}
    for kind, kernel in kernels:
        name = ELEMENTWISE if kind in ELEMENTWISE_CLASSES else kind
        by_kind.setdefault(name, []).append(kernel)
    points = []
    for point in roofline.points:
        own = by_kind.get(point.kind, [])
        timed = any(kernel.time_us for kernel in own)
        points.append(_read(point, own, roofline.ceilings, scale) if timed else point)
    return replace(roofline, points=tuple(points))


def _read(point: Point, own: Sequence[NcuKernel], ceilings: Ceilings, scale: float) -> Point:
    read = moved_bytes(own)
    moved = point.num_bytes if read is None else scale * read
    us = scale * sum(kernel.time_us for kernel in own)
    made = _point(point.kind, Work(moved, point.flops), us, ceilings)
    return replace(
        made,
        source=COUNTERS,
        counted_bytes=point.num_bytes,
        warps_active=_weighted([(kernel.warps_active, kernel.time_us) for kernel in own]),
        tensor_active=_weighted([(kernel.tensor_active, kernel.time_us) for kernel in own]),
    )


def _weighted(values: Sequence[tuple[float | None, float]]) -> float | None:
    """Mean weighted by time, of those that are known."""
    known = [(value, time) for value, time in values if value is not None]
    total = sum(time for _, time in known)
    return sum(value * time for value, time in known) / total if total else None
