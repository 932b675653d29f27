"""The pictures of a run: that they are drawn, from the right numbers, in little time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from table_builders import Ask, Played, S, Server, play, poisson

from engine.core.enums import AdmissionBlock
from workbench.metrics.run_metrics import summarize
from workbench.record.errors import RunRecordError
from workbench.record.header import LoadFacts, MeasureFacts, SloFacts
from workbench.record.run_record import RunReader, RunWriter
from workbench.reports.report import draw_report
from workbench.reports.report_data import report_data


def recorded(tmp_path: Path, played: Played, detail: str = "steps") -> RunReader:
    header = played.header(
        MeasureFacts(warmup_requests=5), SloFacts(ttft_ms=30, tpot_ms=2), detail=detail
    )
    writer = RunWriter(tmp_path / "runs", "x", header)
    writer.write_segment(played.tables)
    writer.finish(summarize(played.tables, header))
    return RunReader(writer.path)


@pytest.fixture
def busy() -> Played:
    """Two replicas with too few pages for their load."""
    return play(poisson(400, 1500, output=9), Server(slots=8, num_pages=16, replicas=2, jitter=500))


def test_one_figure_and_one_per_panel_on_demand(tmp_path: Path, busy: Played) -> None:
    """PNG and SVG, whole and separate, with axes that carry units."""
    run = recorded(tmp_path, busy)
    whole = draw_report(run, tmp_path / "out")
    assert [path.name for path in whole] == ["report.png", "report.svg"]
    apart = draw_report(run, tmp_path / "out", ("svg",), separate=True)
    names = ["report.svg", "batch.svg", "kv_memory.svg", "queue.svg", "latency.svg"]
    assert [path.name for path in apart] == names
    png = (tmp_path / "out" / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(png[16:20]) == 2240
    svg = (tmp_path / "out" / "report.svg").read_text()
    for text in (
        "What a step computes",
        "KV memory",
        "Running and waiting requests on 2 replicas",
        "Latency of requests",
        "time (s)",
        "share of 32 KV pages (%)",
        "latency (ms, log scale)",
        "no KV pages",
        "tiny: tiny-model on 2 × tiny-gpu (by hand)",
        "OVERLOADED",
    ):
        assert text in svg


def test_the_same_run_draws_the_same_file(tmp_path: Path, busy: Played) -> None:
    """No date, no random ids: pictures can be kept under version control."""
    run = recorded(tmp_path, busy)
    first = [path.read_bytes() for path in draw_report(run, tmp_path / "a")]
    assert first == [path.read_bytes() for path in draw_report(run, tmp_path / "b")]


def test_what_is_drawn_adds_up(tmp_path: Path, busy: Played) -> None:
    """KV shares fill the pool, and binned means times time give back the tables' totals."""
    data = report_data(recorded(tmp_path, busy), bin_count=50)
    assert data.kv.used + data.kv.cached + data.kv.free == pytest.approx(np.full(50, 100))
    assert data.kv.free.min() >= -1e-9
    summary = summarize(busy.tables, busy.header())
    length_s = float(data.bins.edges_s[-1])
    assert data.queue.running.mean() * length_s == pytest.approx(
        summary["mean_running"] * summary["duration_s"]
    )
    waited = sum(layer.mean() for layer in data.queue.waiting.values()) * length_s
    assert waited == pytest.approx(
        summary["wait_total_request_s"] - summary["wait_next_step_request_s"]
    )
    assert AdmissionBlock.KV_PAGES in data.queue.waiting
    assert (data.batch.prefill_tokens <= data.batch.prefill_tokens_max.max()).all()


def test_warm_up_requests_are_not_in_the_distributions(tmp_path: Path) -> None:
    """Latency curves show measured requests only."""
    data = report_data(recorded(tmp_path, play(poisson(20, 100, output=3))))
    assert len(data.latencies.ttft_ms) == 15
    assert data.measured_s[0] > 0


@pytest.mark.parametrize("output", [1, 5])
def test_a_run_without_waiting_or_tpot_can_be_drawn(tmp_path: Path, output: int) -> None:
    """Empty panels say so instead of failing."""
    asks = [Ask(i * S // 10, output=output) for i in range(8)]
    run = recorded(tmp_path, play(asks))
    (path,) = draw_report(run, tmp_path, ("svg",))
    assert "no request ever waited longer than for the next step" in path.read_text()


def test_a_run_that_never_finished_can_be_drawn(tmp_path: Path, busy: Played) -> None:
    """A record without summary is drawn as far as it goes, and its title says what it is."""
    writer = RunWriter(tmp_path, "x", busy.header(load=LoadFacts(kind="trace"), detail="steps"))
    writer.write_segment(busy.tables)
    (path,) = draw_report(RunReader(writer.path), tmp_path, ("svg",))
    assert "the run is still running, or was killed" in path.read_text()


def test_too_little_detail_and_no_steps_are_errors(tmp_path: Path, busy: Played) -> None:
    """Nothing is drawn from nothing."""
    with pytest.raises(RunRecordError, match="detail 'none'; a report needs"):
        draw_report(recorded(tmp_path, busy, "none"), tmp_path)
    header = msgspec.structs.replace(busy.header(), detail="steps")
    writer = RunWriter(tmp_path / "runs", "empty", header)
    with pytest.raises(RunRecordError, match="has no steps to draw"):
        draw_report(RunReader(writer.path), tmp_path)


def test_an_unwritable_place_is_an_error(tmp_path: Path, busy: Played) -> None:
    """The message names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunRecordError, match=r"cannot create .*file/out: not a directory"):
        draw_report(recorded(tmp_path, busy), tmp_path / "file" / "out")


def test_matplotlib_is_loaded_only_to_draw() -> None:
    """Importing the report costs no matplotlib; pyplot and its globals are never used."""
    code = (
        "import sys, workbench.reports.report, workbench.reports.perfetto;"
        "import workbench.metrics.summary_text;"
        "sys.exit(any(name.split('.')[0] == 'matplotlib' for name in sys.modules))"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
    assert "pyplot" not in (root / "workbench" / "reports" / "report_panels.py").read_text()
