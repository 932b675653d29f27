"""The lines above the strips: which runs, how they are locked, what differs first."""

from __future__ import annotations

from collections.abc import Hashable

from workbench.analysis.comparison import Comparison
from workbench.analysis.header_diff import FactDifference
from workbench.tui.chart_pane import ChartPane
from workbench.tui.compare.state import CompareState
from workbench.tui.live.header import transport
from workbench.tui.opened_run import OpenedRun
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.pairing import LOCKS, NONE

Part = tuple[str, int]
_MORE = "more, v shows all"
_UNTOLD = ("commit", "detail", "forks[", "inputs.", "version")  # nothing about the set-up


class CompareHeader(ChartPane):
    """Runs and lock; cursor and drift; header differences; the first divergence."""

    DEFAULT_CSS = "CompareHeader { height: 4; }"

    def __init__(self, state: CompareState) -> None:
        super().__init__(id="compare-header")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state, player = self._state, self._state.player
        return (
            state.key(), player.playing, player.speed, state.trouble,
            state.a.store.status, state.b.store.status,
        )  # fmt: skip

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        self._runs(canvas, palette)
        self._cursor(canvas, palette, 1)
        if canvas.height > 3:
            canvas.line(0, 2, self._facts(palette, canvas.width))
        canvas.line(0, canvas.height - 1, self._divergence(palette))

    def _runs(self, canvas: Canvas, palette: Palette) -> None:
        state, x = self._state, 0
        for name, run, colour in (("A", state.a, "data-past"), ("B", state.b, "data-step")):
            x = canvas.text(x, 0, f" {name} ", palette.ink("background", colour, bold=True))
            x = canvas.text(x + 1, 0, run.label, palette.ink(bold=True))
            x = canvas.text(x + 1, 0, _kind(run), palette.ink("data-axis")) + 2
        x = canvas.text(x, 0, f" lock: {state.lock} ", palette.ink("background", "foreground"))
        others = ", ".join(lock for lock in LOCKS if lock != state.lock)
        canvas.text(x + 1, 0, f"l {others}", palette.ink("data-axis"))

    def _cursor(self, canvas: Canvas, palette: Palette, y: int) -> None:
        state, player = self._state, self._state.player
        parts = [(" ", 0), *transport(palette, player)]
        if state.empty:
            parts.append(("  waiting for the first steps", palette.ink("data-axis")))
            canvas.line(0, y, parts)
            return
        dim, strong = palette.ink("data-axis"), palette.ink(bold=True)
        other = state.pairing().position_in_b(player.position)
        drift = state.pairing().drift_ns(player.position)
        b_step = "none here" if other == NONE else f"{other:,}"
        parts += [
            ("  t ", dim), (f"{player.t_ns / 1e9:,.3f} s", strong),
            ("  A step ", dim), (f"{player.position:,}", strong), (f"/{player.head:,}", dim),
            ("  B step ", dim), (b_step, strong), (f"/{state.pairing().b.end - 1:,}", dim),
        ]  # fmt: skip
        if drift is not None:
            parts += [("  B ends it ", dim), *_drift(palette, drift)]
        for run, name in ((state.a, "A"), (state.b, "B")):
            if run.store.status not in ("complete", "running"):
                parts.append((f"  {name} {run.store.status}", palette.ink("data-bad", bold=True)))
            elif run.running:
                parts.append((f"  {name} is running", palette.ink("data-good", bold=True)))
        canvas.line(0, y, parts)

    def _facts(self, palette: Palette, width: int) -> list[Part]:
        dim = palette.ink("data-axis")
        comparison = self._state.comparison
        if comparison is None:
            return [(f" {self._meanwhile()}", dim)]
        told = told_facts(comparison)
        if not told:
            return [(" the headers agree in all that matters", dim)]
        parts: list[Part] = [(" differs ", dim)]
        used, left = 9, len(told)
        for fact in told:
            text = f"{fact.key.removeprefix('scheduler.')} {fact.a} → {fact.b}"
            room = width - used - (len(_MORE) + 4 if left > 1 else 0)
            if len(text) > room and left < len(told):
                break
            ink = palette.ink("data-bad" if fact.unfair else "data-warning", bold=True)
            parts += [("! " if fact.unfair else "", ink), (text, ink), ("   ", dim)]
            used, left = used + len(text) + 5, left - 1
        if left:
            parts.append((f"+ {left} {_MORE}", dim))
        return parts

    def _meanwhile(self) -> str:
        if self._state.trouble is not None:
            return f"these runs cannot be compared: {self._state.trouble}"
        running = [run.label for run in (self._state.a, self._state.b) if run.running]
        if running:
            return f"the verdict comes when {' and '.join(running)} has ended"
        return "comparing the two runs"

    def _divergence(self, palette: Palette) -> list[Part]:
        comparison = self._state.comparison
        if comparison is None:
            return []
        found = comparison.divergence
        strong = palette.ink("data-warning", bold=True)
        if found.where == "equal":
            return [(" all decisions are equal", palette.ink("data-good", bold=True))]
        if found.where == "unknown":
            return [(" a record without steps does not tell its decisions", strong)]
        what = found.sentences[0] if found.sentences else ""
        step = f" first divergence: step {found.step:,}  " if found.step >= 0 else " divergence: "
        return [(step, strong), (what, palette.ink("data-warning"))]


def told_facts(comparison: Comparison) -> tuple[FactDifference, ...]:
    """Differences of the headers that are about the runs' set-up, unfair ones first."""
    return tuple(fact for fact in comparison.header if not fact.key.startswith(_UNTOLD))


def _kind(run: OpenedRun) -> str:
    return "ENGINE" if run.store.header.kind == "engine" else "SIM"


def _drift(palette: Palette, drift_ns: int) -> list[Part]:
    seconds = drift_ns / 1e9
    if abs(seconds) < 0.0005:
        return [("at the same time", palette.ink("data-axis"))]
    colour = "data-higher" if seconds > 0 else "data-lower"
    return [(f"{abs(seconds):,.3f} s {'later' if seconds > 0 else 'earlier'}",
             palette.ink(colour, bold=True))]  # fmt: skip
