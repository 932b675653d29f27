"""What a scenario would ask, what memory it leaves, and what it would roughly do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.tui.pane import Pane
from workbench.tui.plots.bars import bars, eighths, sparkline
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened, whole_parts
from workbench.tui.scenarios.draft import Assessment
from workbench.tui.scenarios.workload_preview import Lengths, rebinned
from workbench.workload.lengths import Float64

SHARE_SHAPES = "▓█▒·"  # of the parts of the memory, where there are no colours
_GIB = 1 << 30
_PICTURE_ROWS = 2
_SHORT = 18  # rows below which everything takes one line


class PreviewPane(Pane):
    """The assessment of a draft as figures and small pictures."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self._found: Assessment | None = None
        self._stale = False
        self._instead = "…"

    def show(self, found: Assessment | None, instead: str = "…") -> None:
        """Show an assessment, or `instead`; if there is nothing in it, the one before stays."""
        self._instead = instead
        nothing = found is not None and found.preview is None and found.deployment is None
        self._stale = nothing and self._found is not None
        if not self._stale:
            self._found = found
        self.sync()

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        found = self._found
        if found is None:
            canvas.text(1, 0, self._instead, palette.ink("data-axis"))
            return
        writer = _Writer(canvas, palette, tall=canvas.height >= _SHORT)
        if self._stale:
            writer.title("before the error", "")
        if found.preview is not None:
            self._workload(writer, found)
        elif found.deployment is None:
            writer.title("preview", "needs a scenario without errors")
        if found.deployment is not None:
            self._memory(writer, found)
        if found.estimate is not None:
            self._estimate(writer, found)

    def _workload(self, writer: _Writer, found: Assessment) -> None:
        requests = found.preview
        assert requests is not None  # noqa: S101 - the caller has looked
        if len(requests.rates):
            rates = f"p50 {requests.rate_p50:.3g}  p99 {requests.rate_p99:.3g} /s"
            writer.title(
                "arrivals", f"{requests.span_s:,.0f} s  {rates}", "data-queue", requests.rates
            )
        elif found.loaded is not None and isinstance(
            clients := found.loaded.scenario.load.max_concurrency, int
        ):
            writer.title("arrivals", f"{clients:,} clients, {requests.requests:,} requests")
        else:
            writer.title("arrivals", f"{requests.requests:,} at once")
        if requests.follow_ups:
            writer.line(f"and {requests.follow_ups:,} that follow an earlier answer")
        self._lengths(writer, "prompt tokens", requests.prompt, "data-prefill")
        self._lengths(writer, "output tokens", requests.output, "data-decode")
        if requests.shared_percent >= 0.5:
            writer.line(f"{requests.shared_percent:.0f} % of the prompt tokens repeat a text")

    @staticmethod
    def _lengths(writer: _Writer, title: str, lengths: Lengths, colour: str) -> None:
        counts = lengths.counts.astype(np.float64) if lengths.least < lengths.most else None
        writer.title(title, f"p50 {lengths.p50:,.0f}  p99 {lengths.p99:,.0f}", colour, counts)

    @staticmethod
    def _memory(writer: _Writer, found: Assessment) -> None:
        assert found.deployment is not None  # noqa: S101 - the caller has looked
        replica = found.deployment.replicas[0]
        memory, facts = replica.memory, replica.facts
        kv = facts.num_pages * memory.page_bytes
        unused = memory.memory_bytes - memory.weight_bytes - kv - memory.reserve_bytes
        count = len(found.deployment.replicas)
        gpus = f"{count} × " if count > 1 else ""
        writer.title(
            "memory", f"{gpus}{found.deployment.gpu.name}  {memory.memory_bytes / _GIB:.1f} GiB"
        )
        parts = (
            ("weights", memory.weight_bytes, "data-prefill"),
            ("KV", kv, "data-decode"),
            ("reserve", memory.reserve_bytes, "data-queue"),
            ("free", max(0, unused), "data-same"),
        )
        writer.shares(parts, memory.memory_bytes)
        tokens = facts.num_pages * facts.page_size
        lines = [f"{facts.num_pages:,} pages × {facts.page_size} = {tokens:,} tokens"]
        if found.preview is not None:
            each = found.preview.prompt.p50 + found.preview.output.p50
            most = min(facts.max_running_requests, int(tokens / max(1.0, each)))
            full = most < facts.max_running_requests
            why = "fit into it" if full else "may run"
            lines.append(f"{most:,} median requests {why}")
        writer.lines(lines)

    @staticmethod
    def _estimate(writer: _Writer, found: Assessment) -> None:
        guess = found.estimate
        assert guess is not None  # noqa: S101 - the caller has looked
        colour = {"overloaded": "data-bad", "stable": "data-good"}.get(guess.state, "data-other")
        offered = "" if guess.offered_rate is None else f"{guess.offered_rate:.3g} of "
        writer.title("estimate", f"{offered}{guess.capacity:.3g} req/s at most")
        if guess.offered_rate is not None:
            writer.gauge(guess.offered_rate / guess.capacity, colour)
        state = guess.state.replace("_", " ")
        queue = " + queue" if guess.state in ("overloaded", "offline") else ""
        writer.lines(
            [
                f"{state}, {guess.output_throughput:,.0f} tok/s for {guess.duration_s:,.0f} s",
                f"TTFT {guess.ttft_ms:,.1f} ms{queue}  TPOT {guess.tpot_ms:,.2f} ms",
                f"{guess.running:,.1f} running, {guess.kv_percent:.1f} % of the pages",
                guess.cost_model,
            ]
        )


class _Writer:
    """Puts titles, lines and small pictures below one another, or beside if there is no room."""

    def __init__(self, canvas: Canvas, palette: Palette, tall: bool) -> None:
        self._canvas = canvas
        self._palette = palette
        self._tall = tall
        self._y = 0

    def title(
        self, name: str, figures: str, colour: str = "", values: Float64 | None = None
    ) -> None:
        """A name in bold, figures behind it, and a picture of values below or beside them."""
        start = 1 if self._tall else 15
        end = self._canvas.text(1, self._y, name, self._palette.ink(bold=True))
        end = max(start, end + 2) if not self._tall else end + 2
        figures = whole_parts(figures, self._canvas.width - end)
        end = self._canvas.text(end, self._y, figures, self._palette.ink("data-other"))
        if values is not None and not self._tall:
            self._spark(max(46, end + 2), values, colour)
        self._y += 1
        if values is not None and self._tall:
            self._picture(values, colour)

    def line(self, text: str) -> None:
        """A line of text."""
        self.lines([text])

    def lines(self, texts: Sequence[str]) -> None:
        """Lines of text, two in one where height is short."""
        if not self._tall:
            texts = [" · ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]
        for text in texts:
            room = self._canvas.width - 3
            self._canvas.text(3, self._y, shortened(text, room), self._palette.ink())
            self._y += 1

    def _spark(self, x: int, values: Float64, colour: str) -> None:
        wide = _fitted(values, self._canvas.width - x - 1)
        if len(wide) and self._y < self._canvas.height:
            level = eighths(wide, float(wide.max()), 1)
            sparkline(self._canvas, x, self._y, level, self._palette.ink(colour))

    def _picture(self, values: Float64, colour: str) -> None:
        wide = _fitted(values, self._canvas.width - 4)
        if len(wide) and self._y + _PICTURE_ROWS <= self._canvas.height:
            level = eighths(wide, float(wide.max()), _PICTURE_ROWS)
            bars(self._canvas, self._palette, 3, self._y, _PICTURE_ROWS, level, colour)
        self._y += _PICTURE_ROWS

    def shares(self, parts: tuple[tuple[str, int, str], ...], whole: int) -> None:
        """One bar of parts, and a line that names them."""
        width = max(1, self._canvas.width - 4)
        glyphs = SHARE_SHAPES if self._palette.shapes else "████"
        ends = np.rint(np.cumsum([size for _, size, _ in parts]) / whole * width).astype(int)
        x = 3
        for glyph, (_, _, colour), end in zip(glyphs, parts, ends.tolist(), strict=True):
            ink = self._palette.ink(colour)
            self._canvas.fill(x, self._y, min(3 + end, 3 + width) - x, 1, glyph, ink)
            x = 3 + end
        self._y += 1
        swatches = SHARE_SHAPES if self._palette.shapes else "■■■■"
        named = list(zip(swatches, parts, strict=True))
        for row in (named[:2], named[2:]) if self._tall else (named,):
            x = 3
            for swatch, (name, size, colour) in row:
                self._canvas.text(x, self._y, swatch, self._palette.ink(colour))
                text = f"{name} {size / _GIB:.1f} GiB"
                self._canvas.text(x + 1, self._y, text, self._palette.ink("data-other"))
                x += 19
            self._y += 1

    def gauge(self, share: float, colour: str) -> None:
        """A bar of how much of a whole is used; more than the whole is full."""
        width = max(1, self._canvas.width - 10)
        filled = round(width * min(1.0, share))
        ink = self._palette.ink(colour)
        self._canvas.fill(3, self._y, filled, 1, "█", ink)
        rest = self._palette.ink("data-same")
        self._canvas.fill(3 + filled, self._y, width - filled, 1, "░", rest)
        self._canvas.text(4 + width, self._y, f"{share:.0%}", ink)
        self._y += 1


def _fitted(values: Float64, width: int) -> Float64:
    """Means of values in as many columns as there is room for; few values get several each."""
    if width < 4:
        return np.empty(0)
    means = rebinned(values, min(width, len(values)))
    return np.repeat(means, max(1, width // max(1, len(means))))
