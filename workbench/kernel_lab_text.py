"""Measured ladders as text: the table of `kernels bench`, the story of `kernels explain`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from engine.kernels.lab.results import LabResults, RungResult, SizeResult
from engine.kernels.lab.rungs import Ladder, Rung

WIDTH = 88
_SAME = 0.02  # a difference between rungs that is not told: single calls vary by as much
UNITS = {"bandwidth": "GB/s", "product": "TFLOP/s"}
_CEILINGS = {"bandwidth": "a copy reaches", "product": "a bfloat16 product reaches"}


def provenance(results: LabResults) -> str:
    """Where, with what and when results were measured."""
    versions = ", ".join(f"{name} {text}" for name, text in results.versions.items() if text)
    commit = f", commit {results.commit[:12]}" if results.commit else ""
    return f"{results.gpu or 'CPU'}, {versions}{commit}, {results.time_utc}"


def ladder_table(ladder: Ladder, results: LabResults) -> str:
    """Every rung at every size: time, rate, share of the ceiling, gain over the rung before."""
    ceiling, unit = results.ceiling(ladder.ceiling), UNITS[ladder.ceiling]
    lines = [f"{ladder.op}: {ladder.title}"]
    if ceiling is not None:
        lines.append(f"{_ceiling_text(ladder, ceiling)} here, measured just before")
    for size in results.ladders.get(ladder.op, ()):
        lines += ["", size.label]
        lines.append(
            f"  {'rung':<20}{'time us':>11}{unit:>10}{'of ceiling':>12}{'gain':>8}{'error':>10}"
        )
        lines += _rows(ladder, size, ceiling)
    if any(size.rung(ladder.engine) for size in results.ladders.get(ladder.op, ())):
        lines += ["", "* serves requests"]
    return "\n".join(lines) + "\n"


def _rows(ladder: Ladder, size: SizeResult, ceiling: float | None) -> Iterator[str]:
    before: RungResult | None = None
    for rung in size.rungs:
        name = rung.name + (" *" if rung.name == ladder.engine else "")
        rate = size.rate(rung, ladder.ceiling)
        if rate is None or rung.median_us is None:
            yield f"  {name:<20}  {rung.note}"
            continue
        share = f"{100 * rate / ceiling:.1f} %" if ceiling else ""
        gain = gain_text(before, rung)
        right = f"{rung.relative_error:.1e}" if rung.is_right else "WRONG"
        time_and_rate = f"{rung.median_us:>11,.1f}{rate_text(rate):>10}"
        yield f"  {name:<20}{time_and_rate}{share:>12}{gain:>8}{right:>10}{_unsteady(rung)}"
        before = rung


def _unsteady(rung: RungResult) -> str:
    """Points at a time that says little, as calls took too unequally long."""
    return "" if rung.is_steady else f"  unsteady: fastest {rung.best_us:,.1f} us"


def _ceiling_text(ladder: Ladder, ceiling: float) -> str:
    return f"{_CEILINGS[ladder.ceiling]} {rate_text(ceiling)} {UNITS[ladder.ceiling]}"


def rate_text(rate: float) -> str:
    """A rate with three digits at least."""
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.3g}" if rate >= 1e-3 else f"{rate:.6f}"


def gain_text(before: RungResult | None, rung: RungResult) -> str:
    """How many times as fast as the rung before; nothing where either time says little."""
    if before is None or before.median_us is None or rung.median_us is None:
        return ""
    if not (before.is_steady and rung.is_steady):
        return ""
    ratio = before.median_us / rung.median_us
    return f"x{ratio:,.0f}" if ratio >= 100 else f"x{ratio:.3g}"


def explanation(ladder: Ladder, results: LabResults | None) -> str:
    """What each rung changed, what it gained as measured, and which of them serves."""
    parts = [f"{ladder.op}: {ladder.title}", _where(ladder, results)]
    ceiling = results.ceiling(ladder.ceiling) if results else None
    if ceiling is not None:
        best = _ceiling_text(ladder, ceiling)
        parts.append(f"The ceiling: {best} on this GPU, measured just before.")
    parts = [_wrapped(part) for part in parts]
    sizes = results.ladders.get(ladder.op, ()) if results else ()
    before: Rung | None = None
    for number, rung in enumerate(ladder.rungs, 1):
        text = [f"{number}. {rung.name}: {rung.language}", _wrapped(rung.changed, "   ")]
        for size in sizes:
            text += [f"   {line}" for line in _measured(ladder, size, before, rung, ceiling)]
        parts.append("\n".join(text))
        before = rung
    parts.append(_wrapped(_what_serves(ladder, sizes)))
    return "\n\n".join(parts) + "\n"


def _where(ladder: Ladder, results: LabResults | None) -> str:
    if results is None:
        return (
            "No measurement of the ladders ships with this version. To measure this one on a GPU: "
            f"`workbench kernels bench {ladder.op} --output lab.json`, then explain it with "
            "`--results lab.json`."
        )
    return f"Measured on {provenance(results)}."


def _measured(
    ladder: Ladder, size: SizeResult, before: Rung | None, rung: Rung, ceiling: float | None
) -> Iterator[str]:
    result = size.rung(rung.name)
    if result is None:
        return
    rate = size.rate(result, ladder.ceiling)
    if rate is None or result.median_us is None:
        yield f"- {size.label}: did not run: {result.note}"
        return
    share = f", {100 * rate / ceiling:.1f} % of the ceiling" if ceiling else ""
    achieved = f"{rate_text(rate)} {UNITS[ladder.ceiling]}{share}"
    text = f"- {size.label}: {result.median_us:,.1f} us, {achieved}"
    if not result.is_steady:
        yield f"{text};{_unsteady(result)}"
        return
    earlier = size.rung(before.name) if before else None
    if earlier is not None and earlier.median_us is not None and earlier.is_steady:
        text += f", {_compared(earlier.median_us / result.median_us)} {earlier.name}"
    yield text


def _compared(ratio: float) -> str:
    """A ratio of times in words, before the name of what is compared with."""
    if abs(ratio - 1) <= _SAME:
        return "as fast as"
    return f"{ratio:.3g} x as fast as" if ratio > 1 else f"{1 / ratio:.3g} x as slow as"


def best_rung(ladder: Ladder, size: SizeResult) -> RungResult | None:
    """The fastest of those that are right and could serve."""
    able = {rung.name for rung in ladder.rungs if rung.can_serve}
    ran = [r for r in size.rungs if r.is_right and r.median_us is not None and r.name in able]
    return min(ran, key=lambda rung: rung.median_us or 0.0, default=None)


def _what_serves(ladder: Ladder, sizes: tuple[SizeResult, ...]) -> str:
    if not ladder.engine:
        return f"What serves: none of these. {ladder.engine_note}"
    found = [text for size in sizes if (text := _against_the_best(ladder, size))]
    return " ".join([f"What serves: {ladder.engine}.", *found, ladder.engine_note])


def _against_the_best(ladder: Ladder, size: SizeResult) -> str:
    best, own = best_rung(ladder, size), size.rung(ladder.engine)
    if best is None or best.median_us is None or own is None or own.median_us is None:
        return ""
    if not own.is_steady:
        return f"At {size.label} its calls took too unequally long to say."
    ratio = own.median_us / best.median_us
    if ratio <= 1 + _SAME:
        return f"At {size.label} no rung is faster."
    return f"At {size.label} {best.name} takes {100 * (1 - 1 / ratio):.0f} % less time."


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
