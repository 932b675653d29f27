"""What the device's counters say of a step's kernels, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engine.profiling.op_classes import GROUP_OF
from workbench.profile.counted_work import ELEMENTWISE, ELEMENTWISE_CLASSES, Work
from workbench.profile.ncu_report import NcuKernel, moved_bytes

_LEAST, _MOST = 0.9, 1.15  # of counted bytes: what lies outside is pointed at
_CLASSES: Final = (*GROUP_OF, ELEMENTWISE)


def counters_text(
    kernels: Sequence[NcuKernel], kinds: Sequence[str], work: Mapping[str, Work]
) -> str:
    """A row a class.

    Args:
        kernels: of one step.
        kinds: class of each.
        work: class -> what was counted; empty if it is not known what ran.
    """
    return "\n".join(_lines(kernels, kinds, work))


def _lines(
    kernels: Sequence[NcuKernel], kinds: Sequence[str], work: Mapping[str, Work]
) -> Iterator[str]:
    yield f"{len(kernels):,} kernels, each alone on the device with an empty cache"
    yield (
        f"{'class':<18}{'kernels':>8}{'us':>10}{'DRAM MB':>10}{'TB/s':>7}{'of peak':>9}{'warps':>7}"
        f"{'tensor':>8}{'counted MB':>12}{'DRAM/counted':>14}"
    )
    by_kind: dict[str, list[NcuKernel]] = {}
    for kind, kernel in zip(kinds, kernels, strict=True):
        name = ELEMENTWISE if kind in ELEMENTWISE_CLASSES else kind
        by_kind.setdefault(name, []).append(kernel)
    for kind in _CLASSES:
        if kind in by_kind:
            yield _row(kind, by_kind[kind], work.get(kind))


def _row(kind: str, own: Sequence[NcuKernel], work: Work | None) -> str:
    us, moved = sum(one.time_us for one in own), moved_bytes(own)
    megabytes = "-" if moved is None else f"{moved / 1e6:,.2f}"
    rate = "-" if moved is None or not us else f"{moved / us / 1e6:.2f}"
    row = (
        f"{kind:<18}{len(own):>8,}{us:>10,.1f}{megabytes:>10}{rate:>7}"
        f"{_mean(own, 'dram_active'):>9}{_mean(own, 'warps_active'):>7}"
        f"{_mean(own, 'tensor_active'):>8}"
    )
    if work is None or not work.num_bytes or moved is None:
        return row
    ratio = moved / work.num_bytes
    mark = "" if _LEAST <= ratio <= _MOST else "  <-"
    return f"{row}{work.num_bytes / 1e6:>12,.2f}{ratio:>14.2f}{mark}"


def _mean(own: Sequence[NcuKernel], name: str) -> str:
    """Percent, weighted by time."""
    known = [(getattr(one, name), one.time_us) for one in own if getattr(one, name) is not None]
    total = sum(time for _, time in known)
    return f"{sum(value * time for value, time in known) / total:.0f}%" if total else "-"
