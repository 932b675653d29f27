"""The analysis of a trace of steps: busy and idle time, time by range, by class and by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from engine.core.model_spec import ModelSpec
from engine.profiling.op_classes import GROUP_OF, GROUPS, LABELLED, MEASURED, RANGE, STEP
from simulator.cost_model import StepShape
from workbench.profile.ceilings import Ceilings, reached
from workbench.profile.counted_work import Work, counted_work
from workbench.profile.gaps import Gap, occupation
from workbench.profile.kernel_classes import classify, disagreements
from workbench.profile.trace import Trace, TraceFileError

_LONGEST: Final = 8  # gaps that are told one by one
_NO_GPU: Final = (
    "kernels, gaps, TB/s and TFLOP/s: there is no GPU in this trace; times are the CPU's, by the "
    "range of the op that spent them"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a class or kernel reached.

    Attributes:
        tb_s, tflop_s: of the bytes and FLOPs that it has to move and do.
        fraction: of the ceiling; None: no ceiling is known.
        bound: by what; likewise.
    """

    tb_s: float
    tflop_s: float
    fraction: float | None
    bound: str | None


@dataclass(frozen=True, slots=True)
class ClassTime:
    """A class of kernels.

    Attributes:
        kind: the class.
        group: its range.
        kernels: a step.
        us: that they add to a step.
        rate: what they reached; None: nothing is counted for them.
    """

    kind: str
    group: str
    kernels: float
    us: float
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Kernels of one name and class.

    Attributes:
        name, kind: which.
        per_step: how many.
        us_each: how long one ran; with programmatic dependent launch that includes waiting.
        added_us: that all of them add to a step.
        rate: that of their class, where they are nearly all of its time; else None.
    """

    name: str
    kind: str
    per_step: float
    us_each: float
    added_us: float
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where the time of steps went.

    Attributes:
        about: what was traced, as the trace says.
        device: "gpu" or "cpu".
        steps: that were traced.
        step_us: time of one, from the first kernel's start to the last one's end, over the steps.
        busy_share: of the time, in which anything ran.
        gaps_per_step, idle_us: how many gaps a step has, and their sum.
        histogram: (bin, gaps a step, us a step).
        longest: the longest gaps.
        groups: range -> us of a step.
        classes: in the order of a step.
        kernels: those that add most first.
        labels_checked: kernels that also ran inside of ranges.
        labels_wrong: (kernel, range, what its place makes of it), where the two differ.
        missing: what could not be said here, and why.
    """

    about: Mapping[str, Any]
    device: str
    steps: int
    step_us: float
    busy_share: float
    gaps_per_step: float
    idle_us: float
    histogram: list[tuple[str, float, float]]
    longest: list[Gap]
    groups: dict[str, float]
    classes: list[ClassTime]
    kernels: list[KernelTime]
    labels_checked: int
    labels_wrong: list[tuple[str, str, str]]
    missing: list[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"schema": "profile_timeline/v1", **asdict(self)}


def analyse(
    trace: Trace, model: ModelSpec | None, shape: StepShape | None, ceilings: Ceilings | None
) -> Timeline:
    """Analyse the measured steps of a trace.

    Args:
        trace: as `workbench profile timeline` records it; of one without its ranges all counts.
        model: what ran; None: nothing is counted.
        shape: of every step; None: they differ, or it is unknown.
        ceilings: of the device, or None.

    Raises:
        TraceFileError: nothing happened in it.
    """
    measured = trace.ranges(MEASURED)
    part = trace.during(measured[0]) if measured else trace
    steps = max(1, len(part.ranges(STEP)))
    work = counted_work(model, shape) if model is not None and shape is not None else {}
    if not trace.device:
        return _of_cpu(part, steps)
    if not part.device:
        raise TraceFileError("the trace has kernels, but none in the range of measured steps")
    return _of_gpu(trace, part, steps, work, ceilings)


def _of_gpu(
    trace: Trace,
    part: Trace,
    steps: int,
    work: Mapping[str, Work],
    ceilings: Ceilings | None,
) -> Timeline:
    spent = occupation(part)
    kinds = classify(part.device)
    classes = _classes(kinds, spent.added_us, steps, work, ceilings)
    named = trace.ranges(LABELLED)
    checked, wrong = disagreements(trace.during(named[0])) if named else (0, [])
    return Timeline(
        about=dict(trace.about),
        device="gpu",
        steps=steps,
        step_us=spent.total_us / steps,
        busy_share=spent.busy_share,
        gaps_per_step=len(spent.gaps) / steps,
        idle_us=spent.idle_us / steps,
        histogram=[(name, count / steps, us / steps) for name, count, us in spent.histogram()],
        longest=spent.longest(_LONGEST),
        groups=_groups(classes),
        classes=classes,
        kernels=_kernels(part, kinds, spent.added_us, steps, classes),
        labels_checked=checked,
        labels_wrong=wrong,
        missing=[] if ceilings and work else [_without(work, ceilings)],
    )


def _without(work: Mapping[str, Work], ceilings: Ceilings | None) -> str:
    if not work:
        return "TB/s and TFLOP/s: the trace does not say which model and step ran"
    return "shares of the ceiling: none were measured with this trace" if not ceilings else ""


def _classes(
    kinds: Sequence[str],
    added_us: Sequence[float],
    steps: int,
    work: Mapping[str, Work],
    ceilings: Ceilings | None,
) -> list[ClassTime]:
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for kind, us in zip(kinds, added_us, strict=True):
        times[kind] += us
        counts[kind] += 1
    found = []
    for kind in GROUP_OF:
        if kind in counts:
            us = times[kind] / steps
            rate = _rate(kind, work.get(kind), us, ceilings)
            found.append(ClassTime(kind, GROUP_OF[kind], counts[kind] / steps, us, rate))
    return found


def _rate(kind: str, work: Work | None, us: float, ceilings: Ceilings | None) -> Rate | None:
    if work is None or us <= 0:
        return None
    if ceilings is None:
        return Rate(work.num_bytes / us / 1e6, work.flops / us / 1e6, None, None)
    found = reached(work, us, ceilings.of(kind))
    return Rate(found.tb_s, found.tflop_s, found.fraction, found.bound)


def _groups(classes: Sequence[ClassTime]) -> dict[str, float]:
    return {group: sum(one.us for one in classes if one.group == group) for group in GROUPS}


def _kernels(
    part: Trace,
    kinds: Sequence[str],
    added_us: Sequence[float],
    steps: int,
    classes: Sequence[ClassTime],
) -> list[KernelTime]:
    added: dict[tuple[str, str], float] = defaultdict(float)
    lengths: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one, kind, us in zip(part.device, kinds, added_us, strict=True):
        added[one.name, kind] += us
        lengths[one.name, kind].append(one.duration_us)
    by_kind = {one.kind: one for one in classes}
    found = []
    for (name, kind), us in added.items():
        each = lengths[name, kind]
        whole = by_kind[kind]
        alone = us / steps >= 0.9 * whole.us
        found.append(
            KernelTime(name, kind, len(each) / steps, sum(each) / len(each), us / steps,
                       whole.rate if alone else None)
        )  # fmt: skip
    return sorted(found, key=lambda kernel: -kernel.added_us)


def _of_cpu(part: Trace, steps: int) -> Timeline:
    """A trace without a device: the ranges of the host are all there is."""
    span = part.ranges(MEASURED)
    if not part.host:
        raise TraceFileError("the trace is empty: neither a kernel nor anything of the host")
    begin = span[0].start_us if span else part.host[0].start_us
    end = span[0].end_us if span else max(work.end_us for work in part.host)
    times: dict[str, list[float]] = defaultdict(list)
    for work in part.host:
        kind = work.name.removeprefix(RANGE)
        if work.name != kind and kind in GROUP_OF and begin <= work.start_us < end:
            times[kind].append(work.duration_us)
    classes = [
        ClassTime(kind, GROUP_OF[kind], len(times[kind]) / steps, sum(times[kind]) / steps, None)
        for kind in GROUP_OF
        if kind in times
    ]
    return Timeline(
        about=dict(part.about),
        device="cpu",
        steps=steps,
        step_us=(end - begin) / steps,
        busy_share=0.0,
        gaps_per_step=0.0,
        idle_us=0.0,
        histogram=[],
        longest=[],
        groups=_groups(classes),
        classes=classes,
        kernels=_ops(part, begin, end, steps),
        labels_checked=0,
        labels_wrong=[],
        missing=[_NO_GPU],
    )


def _ops(part: Trace, begin: float, end: float, steps: int) -> list[KernelTime]:
    """Ops of the CPU by the time that they spent themselves."""
    own: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    stacks: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for work in part.host:
        if work.kind != "cpu_op" or not begin <= work.start_us < end:
            continue
        stack = stacks[work.thread]
        while stack and stack[-1][0] <= work.start_us:
            stack.pop()
        own[work.name] += work.duration_us
        counts[work.name] += 1
        if stack:
            own[stack[-1][1]] -= work.duration_us
        stack.append((work.end_us, work.name))
    found = [
        KernelTime(name, "cpu_op", counts[name] / steps, us / counts[name], us / steps, None)
        for name, us in own.items()
    ]
    return sorted(found, key=lambda op: -op.added_us)
