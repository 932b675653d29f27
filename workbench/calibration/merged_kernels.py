"""Kernel tables that were measured in several sittings: what a newer version adds to older ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.profiling.kernel_cases import KernelCase
from simulator.composition.kernel_file import KernelFile, KernelIdentity, Series
from simulator.profile import ProfileError


def missing(cases: Iterable[KernelCase], tables: KernelFile) -> list[KernelCase]:
    """Those of which the tables hold no time."""
    known = {(each.op, each.sizes): set(each.points) for each in tables.series}
    return [case for case in cases if case.point not in known.get((case.op, case.sizes), ())]


def merged(before: KernelFile, more: KernelFile) -> KernelFile:
    """Tables with all points of both; where both have one, the later time counts.

    Raises:
        ProfileError: they are of another device, or other software ran the kernels.
    """
    refuse_other_device(before, more.identity)
    series = {(each.op, each.sizes): each for each in before.series}
    for each in more.series:
        older = series.get((each.op, each.sizes))
        series[each.op, each.sizes] = each if older is None else _joined(older, each)
    first = before.conditions | {"commit": before.identity.commit}
    sittings = [*before.conditions.get("sittings", [first]),
                more.conditions | {"commit": more.identity.commit}]  # fmt: skip
    composition = msgspec.structs.replace(
        more.composition, expert_skew=before.composition.expert_skew
    )
    return msgspec.structs.replace(
        more,
        series=tuple(series[key] for key in sorted(series)),
        composition=composition,
        exchange=more.exchange or before.exchange,
        conditions=more.conditions | {"sittings": sittings},
    )


def refuse_other_device(before: KernelFile, identity: KernelIdentity) -> None:
    """Times of kernels may be added to others only if the same things ran in the same way.

    Raises:
        ProfileError: with what differs.
    """
    names = ("gpu", "dtype", "page_size", "versions", "implementations")
    wrong = [name for name in names if getattr(before.identity, name) != getattr(identity, name)]
    if wrong:
        old, new = (getattr(each, wrong[0]) for each in (before.identity, identity))
        raise ProfileError(
            f"nothing can be added to {before.name}: its {wrong[0]} is {old}, here it is {new};"
            " measure all of it again"
        )


def _joined(older: Series, newer: Series) -> Series:
    points = {point: (older, at) for at, point in enumerate(older.points)}
    points |= {point: (newer, at) for at, point in enumerate(newer.points)}
    ordered: Sequence[tuple[Series, int]] = [points[point] for point in sorted(points)]
    return msgspec.structs.replace(
        newer,
        points=tuple(sorted(points)),
        ns=tuple(each.ns[at] for each, at in ordered),
        spread_ns=tuple(each.spread_ns[at] for each, at in ordered),
        repeats=tuple(each.repeats[at] for each, at in ordered),
    )
