"""Pictures of a run as PNG and SVG: batches, KV memory, latencies and the queue.

matplotlib is imported when something is drawn, and only its object interface is used.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench.metrics.summary_text import headlines
from workbench.record.atomic_file import open_atomic
from workbench.record.result_folder import make_folder
from workbench.record.run_record import RunReader
from workbench.reports.report_data import ReportData, report_data
from workbench.reports.report_panels import GREY, PANELS, RED, STYLE, Draw, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ImageFormat = Literal["png", "svg"]


def draw_report(
    run: RunReader,
    out: Path,
    formats: Sequence[ImageFormat] = ("png", "svg"),
    separate: bool = False,
) -> list[Path]:
    """Draw a run into the directory `out`, made if absent.

    Args:
        run: with detail `steps` or more.
        out: directory; gets `report.png` and so on, and with `separate` also `batch`, `kv_memory`,
            `latency` and `queue`.
        formats: file formats to write.
        separate: also draw each panel on its own.

    Returns:
        The files written.

    Raises:
        RunRecordError: the run has no steps, or a file cannot be written.
    """
    import matplotlib as mpl

    data = report_data(run)
    title, warning = _titles(run)
    make_folder(out)
    with mpl.rc_context(STYLE):
        figures = {"report": _overview(data, title, warning)}
        if separate:
            figures |= {name: _single(data, draw, title) for name, draw in PANELS.items()}
        return [
            _save(figure, out / f"{name}.{suffix}", suffix)
            for name, figure in figures.items()
            for suffix in formats
        ]


def _titles(run: RunReader) -> tuple[str, str]:
    """What ran where, and what to know before reading."""
    header = run.header
    gpus = f"{header.num_gpus()} × {header.gpu}"
    title = f"{header.name}: {header.model} on {gpus} ({header.cost_model})"
    if run.status in ("complete", "interrupted"):
        lines = [*headlines(run.summary), *header.cost_model_notes]
        return title, textwrap.shorten(lines[0], 175, placeholder=" …") if lines else ""
    return title, header.how_it_ended()


def _save(figure: Figure, path: Path, suffix: ImageFormat) -> Path:
    """Write without date or version, so that the same run gives the same file."""
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with open_atomic(path) as file:
        figure.savefig(file, format=suffix, dpi=160, metadata=metadata)
    return path


def _overview(data: ReportData, title: str, warning: str) -> Figure:
    """The four panels, two by two."""
    from matplotlib.figure import Figure

    wide, high = 7.0, 4.3
    figure = Figure(figsize=(2 * wide, 2 * high + 0.65))
    figure.text(0.007, 0.988, title, fontsize=14, fontweight="bold", va="top")
    if warning:
        figure.text(0.007, 0.952, warning, fontsize=9.5, color=RED, va="top")
    for number, draw in enumerate(PANELS.values()):
        down, across = divmod(number, 2)
        draw(Panel(figure, wide * across, high * (1 - down), wide, high), data)
    return figure


def _single(data: ReportData, draw: Draw, title: str) -> Figure:
    """One panel on its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4))
    figure.text(0.011, 0.982, title, fontsize=10, color=GREY, va="top")
    draw(Panel(figure, 0, 0, 9, 5.15), data)
    return figure
