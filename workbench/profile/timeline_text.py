"""The analysis of a trace as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from workbench.profile.timeline import ClassTime, KernelTime, Rate, Timeline
from workbench.profile.traced_model import model_title

_BAR: Final = 24  # cells of a bar that is the whole step
_KERNELS: Final = 12
_NAME: Final = 46


def timeline_text(found: Timeline, kernels: int = _KERNELS) -> str:
    """What was traced, busy and idle time, time by range, by class and by kernel.

    Args:
        found: the analysis.
        kernels: that are told at most.
    """
    lines = [*_head(found), ""]
    if found.device == "gpu":
        lines += [*_gaps(found), ""]
    lines += [*_groups(found), "", *_classes(found), "", *_kernels(found, kernels)]
    lines += _labels(found)
    if any(found.missing):
        lines += ["", *(f"not said here: {text}" for text in found.missing if text)]
    return "\n".join(lines)


def _head(found: Timeline) -> Iterator[str]:
    about = found.about
    what = about.get("step") or about.get("scenario") or "a trace"
    names = [name for name in (model_title(about), str(about.get("device") or "")) if name]
    yield f"{what}: {', '.join(names)}" if names else f"{what}"
    per = f"{found.steps} steps, {found.step_us:,.1f} us each"
    if found.device == "gpu":
        yield f"{per}; GPU busy {found.busy_share:.2%}"
    else:
        yield f"{per}, on the CPU"
    ceilings = about.get("ceilings")
    if ceilings:
        yield (
            f"measured ceilings: copy {ceilings['copy_tb_s']:.2f} TB/s, "
            f"product {ceilings['product_tflop_s']:,.0f} TFLOP/s"
        )


def _gaps(found: Timeline) -> Iterator[str]:
    yield f"gaps a step: {found.gaps_per_step:,.1f}, {found.idle_us:,.1f} us in all"
    for name, count, us in found.histogram:
        yield f"  {name:>8}  {count:>8,.1f}  {us:>9,.1f} us"
    if found.longest:
        yield "longest gaps:"
    for gap in found.longest:
        around = f"{_short(gap.before, 28)} -> {_short(gap.after, 28)}"
        yield f"  {gap.duration_us:>9,.1f} us  {around:<60}  {gap.cause}"


def _groups(found: Timeline) -> Iterator[str]:
    total = found.step_us or 1.0
    yield f"{'range':<16}{'us a step':>11}{'share':>8}"
    for group, us in found.groups.items():
        if us:
            bar = "█" * round(_BAR * us / total)
            yield f"{group:<16}{us:>11,.1f}{us / total:>8.1%}  {bar}".rstrip()
    left, us = "(idle)", found.idle_us
    if found.device != "gpu":  # ops of one thread follow each other, and Python is between them
        left, us = "(between ops)", found.step_us - sum(found.groups.values())
    if us > 0:
        yield f"{left:<16}{us:>11,.1f}{us / total:>8.1%}"


def _classes(found: Timeline) -> Iterator[str]:
    yield (
        f"{'class':<18}{'kernels':>8}{'us a step':>11}{'share':>8}{'TB/s':>8}{'TFLOP/s':>9}"
        f"{'ceiling':>9}  bound by"
    )
    for one in found.classes:
        yield _class_line(one, found.step_us or 1.0)


def _class_line(one: ClassTime, total: float) -> str:
    begin = f"{one.kind:<18}{one.kernels:>8,.0f}{one.us:>11,.1f}{one.us / total:>8.1%}"
    return (begin + _rate(one.rate)).rstrip()


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    return f"{_rates(rate)}  {rate.bound or ''}"


def _rates(rate: Rate) -> str:
    share = "-" if rate.fraction is None else f"{rate.fraction:.0%}"
    return f"{rate.tb_s:>8.2f}{rate.tflop_s:>9,.1f}{share:>9}"


def _kernels(found: Timeline, most: int) -> Iterator[str]:
    title = "kernel" if found.device == "gpu" else "op (its own time)"
    yield (
        f"{title:<48}{'class':<18}{'a step':>7}{'us each':>9}{'us a step':>11}{'TB/s':>8}"
        f"{'TFLOP/s':>9}{'ceiling':>9}"
    )
    for one in found.kernels[:most]:
        yield _kernel_line(one)
    rest = found.kernels[most:]
    if rest:
        us = sum(one.added_us for one in rest)
        yield f"{f'({len(rest)} more)':<82}{us:>11,.1f}"


def _kernel_line(one: KernelTime) -> str:
    begin = (
        f"{_short(one.name, _NAME):<48}{one.kind:<18}{one.per_step:>7,.0f}{one.us_each:>9,.2f}"
        f"{one.added_us:>11,.1f}"
    )
    rate = one.rate
    if rate is None:
        return begin
    return begin + _rates(rate)


def _labels(found: Timeline) -> Iterator[str]:
    if found.labels_checked:
        right = found.labels_checked - len(found.labels_wrong)
        yield ""
        yield (
            f"classes checked: {right} of {found.labels_checked} kernels of a step launched inside "
            "of named ranges are what their place says"
        )
        for name, wanted, taken in found.labels_wrong[:4]:
            yield f"  {name} belongs to {wanted}, not {taken}"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
