"""A screen of panes: one clock, frames only when something has changed."""

from __future__ import annotations

import time
from typing import Any

from workbench.tui.chart_pane import ChartPane
from workbench.tui.frame_rate import FrameRate
from workbench.tui.workbench_screen import WorkbenchScreen


class ChartScreen(WorkbenchScreen):
    """Draws its panes at the rate that the processor and the connection can take.

    Attributes:
        frames: how often it has drawn them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0
        self._rate: FrameRate | None = None
        self._last_s = 0.0
        self._cpu_s = 0.0

    def on_mount(self) -> None:
        """Start the clock."""
        fps = int(getattr(self.app, "fps", 30))
        self._rate = FrameRate(fps, bool(getattr(self.app, "slow_link", False)))
        self._last_s = time.monotonic()
        self._cpu_s = time.thread_time()
        self.app.theme_changed_signal.subscribe(self, self._theme_changed)
        self.set_interval(1 / fps, self._tick)

    def before_frame(self, seconds: float) -> None:
        """Let time pass: move cursors, take in what has come."""

    def draw_panes(self) -> None:
        """Bring all panes up to date, now."""
        self.frames += 1
        for pane in self.query(ChartPane):
            pane.sync()

    def redraw(self) -> None:
        """Draw in the next frame at the latest, whatever the rate; after a key, say."""
        self.call_after_refresh(self.draw_panes)

    def _theme_changed(self, theme: Any) -> None:
        del theme
        self.redraw()

    def _tick(self) -> None:
        now_s, cpu_s = time.monotonic(), time.thread_time()
        seconds, used_s = now_s - self._last_s, cpu_s - self._cpu_s
        self._last_s, self._cpu_s = now_s, cpu_s
        self.before_frame(min(seconds, 0.5))
        if self._rate is None or self._rate.due(now_s, used_s):
            self.draw_panes()
