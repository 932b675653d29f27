"""The kernel lab in words: the page, the tables and the explanation say what was measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from engine.kernels.lab.results import (
    SHIPPED,
    LabResults,
    RungResult,
    SizeResult,
    read_results,
    shipped_results,
    to_json,
)
from engine.kernels.lab.rungs import LADDERS
from workbench.cli import app
from workbench.kernel_lab_text import best_rung, explanation, gain_text, ladder_table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "kernel_lab_page", ROOT / "benchmarks" / "kernel_lab_page.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured() -> LabResults:
    """The results that ship; as long as none do, made-up ones: each rung twice as fast."""
    return shipped_results() or made_up()


def made_up() -> LabResults:
    ladders = {}
    for op, ladder in LADDERS.items():
        rungs = [
            RungResult(rung.name, 1000.0 / 2**index, 1e-3, 1000.0 / 2**index, 5)
            for index, rung in enumerate(ladder.rungs)
        ]
        ladders[op] = tuple(
            SizeResult({"rows": rows}, 1_000_000, 1_000_000, tuple(rungs)) for rows in (7, 4096)
        )
    versions = {"torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "driver": "1.2"}
    ceilings = {"copy_tb_s": 4.0, "product_tflop_s": 700.0}
    return LabResults("Made Up H200", 132, versions, "c" * 40, "2026-01-01", ceilings, ladders)


def test_the_page_shows_what_was_measured(page: ModuleType) -> None:
    """docs/kernel_lab.md is what its script makes of the results in the repository."""
    native = json.loads(page.NATIVE.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled_in(text, page.parts(shipped_results(), native)) == text


def test_the_page_has_a_place_for_everything(page: ModuleType, measured: LabResults) -> None:
    """A generated part without a place on the page is an error, not an omission."""
    made = page.parts(measured, json.loads(page.NATIVE.read_text()))
    with pytest.raises(ValueError, match="has places for"):
        page.filled_in("no places", made)
    text = page.filled_in(page.PAGE.read_text(encoding="utf-8"), made)
    assert all(
        f"| {rung.name} |" in text.replace("**", "").replace(" (serves)", "")
        for ladder in LADDERS.values()
        for rung in ladder.rungs
    )


def test_the_picture_is_drawn(page: ModuleType, measured: LabResults, tmp_path: Path) -> None:
    """The picture of any whole results is a PNG."""
    page.draw(measured, tmp_path / "lab.png")
    assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_knows_how_the_rung_is_cut(page: ModuleType) -> None:
    """The timed tiles that the page shows for cuda-tensor are those that it runs with."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    from engine.kernels.lab import attention_prefill

    assert (page.KEYS, page.WARPS) == (attention_prefill.KEYS, attention_prefill.WARPS)


def test_shipped_results_are_whole_and_right() -> None:
    """Results that ship have every rung of every ladder, on an H200, and all are right."""
    shipped = shipped_results()
    if shipped is None:
        pytest.skip("no results ship yet")
    assert "H200" in shipped.gpu
    assert len(shipped.commit) == 40
    for op, ladder in LADDERS.items():
        for size in shipped.ladders[op]:
            assert [rung.name for rung in size.rungs] == [rung.name for rung in ladder.rungs]
            for rung in size.rungs:
                assert rung.is_right, (op, size.label, rung)


def test_no_rung_beats_its_ceiling_by_more_than_noise() -> None:
    """Least bytes over time is no more than a copy reaches: what was counted was moved."""
    shipped = shipped_results()
    if shipped is None:
        pytest.skip("no results ship yet")
    for op, ladder in LADDERS.items():
        ceiling = shipped.ceiling(ladder.ceiling)
        assert ceiling
        for size in shipped.ladders[op]:
            for rung in size.rungs:
                assert size.rate(rung, ladder.ceiling) < 1.1 * ceiling


@pytest.fixture
def lab_file(tmp_path: Path, measured: LabResults) -> Path:
    file = tmp_path / "lab.json"
    file.write_text(to_json(measured), encoding="utf-8")
    return file


@pytest.mark.parametrize("op", LADDERS)
def test_explain_names_every_rung_and_where_it_was_measured(
    op: str, measured: LabResults, lab_file: Path
) -> None:
    """`explain` tells each rung's change and time, the GPU, the versions and the commit."""
    result = CliRunner().invoke(app, ["kernels", "explain", op, "--results", str(lab_file)])
    assert result.exit_code == 0
    for number, rung in enumerate(LADDERS[op].rungs, 1):
        assert f"{number}. {rung.name}: {rung.language}" in result.stdout
    told = " ".join(result.stdout.split())
    for fact in (measured.gpu, measured.versions["torch"], measured.commit[:12], "of the ceiling"):
        assert fact in told
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_explain_without_results_says_how_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no measurement ships, `explain` tells the ladder, no figure, and what to type."""
    monkeypatch.setattr("engine.kernels.lab.results.SHIPPED", Path("nowhere.json"))
    result = CliRunner().invoke(app, ["kernels", "explain", "softmax"])
    assert result.exit_code == 0
    assert "No measurement" in result.stdout
    assert "workbench kernels bench softmax" in result.stdout
    assert " us," not in result.stdout


def test_explain_says_when_what_serves_is_not_the_fastest(measured: LabResults) -> None:
    """At each size the engine's rung is told to be the fastest, or which one is."""
    for op, ladder in LADDERS.items():
        if not ladder.engine:
            continue
        told = " ".join(explanation(ladder, measured).split())
        for size in measured.ladders[op]:
            best, own = best_rung(ladder, size), size.rung(ladder.engine)
            assert best
            assert own
            slower = own.median_us > 1.02 * best.median_us
            words = f"{best.name} takes" if slower else "no rung is faster"
            words = words if own.is_steady else "its calls took too unequally long to say"
            assert f"At {size.label} {words}" in told


def test_a_table_marks_what_is_wrong_and_what_did_not_run(measured: LabResults) -> None:
    """A rung with another result is WRONG in the table, and one that did not run says why."""
    (size, *_) = measured.ladders["softmax"]
    first, second, *rest = size.rungs
    rungs = (
        dataclasses.replace(first, relative_error=0.5),
        dataclasses.replace(second, median_us=None, note="no memory"),
        *rest,
    )
    changed = dataclasses.replace(
        measured, ladders={"softmax": (dataclasses.replace(size, rungs=rungs),)}
    )
    table = ladder_table(LADDERS["softmax"], changed)
    assert table.count("WRONG") == 1
    assert table.count("no memory") == 1


def test_times_of_unequal_calls_are_pointed_at(measured: LabResults) -> None:
    """A median far beyond the fastest call says little: nothing is concluded from it."""
    (size, *_) = measured.ladders["rms_norm"]
    own = size.rung("triton")
    assert own
    rungs = [dataclasses.replace(r, best_us=r.median_us / 2) if r is own else r for r in size.rungs]
    changed = dataclasses.replace(
        measured, ladders={"rms_norm": (dataclasses.replace(size, rungs=tuple(rungs)),)}
    )
    ladder = LADDERS["rms_norm"]
    assert f"unsteady: fastest {own.median_us / 2:,.1f} us" in ladder_table(ladder, changed)
    told = " ".join(explanation(ladder, changed).split())
    assert f"At {size.label} its calls took too unequally long to say." in told
    assert "as fast as triton" not in told
    assert "as slow as triton" not in told


def test_no_gain_is_told_from_or_to_times_of_unequal_calls() -> None:
    """As `explain` leaves it out."""
    slow, fast = RungResult("a", 8.0, 1e-3, 8.0, 5), RungResult("b", 4.0, 1e-3, 4.0, 5)
    unsteady = RungResult("c", 2.0, 1e-3, 1.0, 5)
    assert gain_text(slow, fast) == "x2"
    assert gain_text(slow, unsteady) == gain_text(unsteady, fast) == ""


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("ladders", "softmax", 0, "rungs", 0, "median_us"), 0),
        (("ladders", "softmax", 0, "rungs", 0, "best_us"), -1),
        (("ladders", "softmax", 0, "moved_bytes"), -1),
        (("ceilings", "copy_tb_s"), 0),
        (("ceilings",), {"copy_tb_s": 4.0}),
    ],
)
def test_results_that_cannot_be_are_refused(
    lab_file: Path, place: tuple[str | int, ...], value: object
) -> None:
    """Times and ceilings of nothing, before anything is divided by them; the file is named."""
    data = json.loads(lab_file.read_text())
    owner = data
    for name in place[:-1]:
        owner = owner[name]
    owner[place[-1]] = value
    lab_file.write_text(json.dumps(data))
    result = CliRunner().invoke(app, ["kernels", "explain", "softmax", "--results", str(lab_file)])
    assert result.exit_code == 2
    assert f"{lab_file}: no results of the kernel lab: " in result.stderr
    assert "defect" not in result.stderr


def test_results_survive_their_file(lab_file: Path, measured: LabResults) -> None:
    """Reading what was written gives the same results; another format is refused by name."""
    file = lab_file
    assert read_results(file) == measured
    if SHIPPED.is_file():
        assert file.read_text() == SHIPPED.read_text()
    file.write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="lab.json"):
        read_results(file)
    result = CliRunner().invoke(app, ["kernels", "explain", "softmax", "--results", str(file)])
    assert result.exit_code == 2


def test_results_that_cannot_be_read_are_named_first(tmp_path: Path) -> None:
    """As every other error of a file: which, then why."""
    file = tmp_path / "none.json"
    result = CliRunner().invoke(app, ["kernels", "explain", "softmax", "--results", str(file)])
    assert result.exit_code == 2
    assert f"--results {file}: cannot be read: No such file" in result.stderr


def test_bench_without_a_gpu_says_what_to_do() -> None:
    """Without a GPU `bench` fails with the two commands that work there."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(app, ["kernels", "bench", "rms_norm"])
    assert result.exit_code == 1
    assert "workbench kernels explain" in result.stderr
    assert "--device cpu" in result.stderr


def test_bench_on_a_cpu_runs_what_can_run_there() -> None:
    """`--device cpu` times and checks torch's rungs, and its JSON is that of a results file."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    result = CliRunner().invoke(app, ["kernels", "bench", "rms_norm", "--device", "cpu", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["versions"]["threads"] == "1"
    for size in found["ladders"]["rms_norm"]:
        assert [rung["name"] for rung in size["rungs"]] == ["torch-naive", "library"]
        assert all(rung["relative_error"] < 0.01 for rung in size["rungs"])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `bench` measures, of which it has made-up results."""
    asked: list[str] = []

    def measure(ops: list[str], *_: object) -> LabResults:
        asked.extend(ops)
        return made_up()

    monkeypatch.setattr("workbench.kernel_lab.measure_ladders", measure)
    return asked


def test_bench_knows_where_results_go_before_it_measures(bench: list[str], tmp_path: Path) -> None:
    """A folder is made if it is not there; where there cannot be one nothing is measured."""
    file = tmp_path / "new" / "lab.json"
    (tmp_path / "file").touch()
    command = ["kernels", "bench", "softmax", "--output"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "file" / "lab.json")])
    assert result.exit_code == 1
    assert f"cannot create {tmp_path / 'file'}" in result.stderr
    assert bench == []
    assert CliRunner().invoke(app, [*command, str(file)]).exit_code == 0
    assert bench == ["softmax"]
    assert read_results(file) == made_up()


@pytest.mark.usefixtures("bench")
def test_bench_prints_what_it_cannot_write(tmp_path: Path) -> None:
    """The folder may be gone when minutes of measuring are over."""
    command = ["kernels", "bench", "softmax", "--output", str(tmp_path / f"{'x' * 300}.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert "Made Up H200" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "gelu"], "softmax"), (["bench", "gelu"], "softmax"),
        (["bench", "softmax", "--device", "tpu"], "cuda or cpu"),
        (["bench", "softmax", "--output", "-"], "stdout"),
    ],
)  # fmt: skip
def test_wrong_usage_says_what_is_right(arguments: list[str], message: str) -> None:
    """An op, a device or a file that makes no sense is wrong usage."""
    result = CliRunner().invoke(app, ["kernels", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_explain_needs_no_torch() -> None:
    """What ships is explained where torch and triton are not installed."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "from workbench.cli import main; main(['kernels', 'explain', 'softmax'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "1. torch-naive: PyTorch" in done.stdout
