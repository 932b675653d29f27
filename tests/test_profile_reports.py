"""Reports of Nsight's tools are read back, and their commands are those that work."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from profile_traces import STEP_CLASSES, STEP_KERNELS

from engine.profiling.op_classes import MEASURED, RANGE, STEP
from workbench.cli.profile_tools import arguments_of
from workbench.profile.counters_text import counters_text
from workbench.profile.gaps import occupation
from workbench.profile.kernel_classes import classify
from workbench.profile.ncu_report import METRICS, classes_of, is_ncu, read_ncu
from workbench.profile.nsight import (
    Command,
    ToolError,
    known_metrics,
    ncu_command,
    nsys_commands,
    run_tool,
)
from workbench.profile.nsys_report import is_sqlite, read_nsys
from workbench.profile.recording import StepRequest, _ready
from workbench.profile.step_text import parse_step
from workbench.profile.trace import TraceFileError

# The tables of Nsight Systems' export, as its documentation describes them (columns that we read,
# and some that we do not).
SCHEMA = """
CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL,
    registersPerThread INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL);
CREATE TABLE NVTX_EVENTS (
    start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT, globalTid INTEGER,
    domainId INTEGER, textId INTEGER);
"""


def nsys_report(path: Path) -> Path:
    """A graph that replays a step, in its ranges, and a copy; times in ns."""
    names = ["cudaGraphLaunch_v10000", STEP, MEASURED, *dict.fromkeys(STEP_KERNELS)]
    ids = {name: number for number, name in enumerate(names, 1)}
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    database.executemany(
        "INSERT INTO StringIds VALUES (?, ?)", [(n, name) for name, n in ids.items()]
    )
    at = 100_000
    for node, name in enumerate(STEP_KERNELS):
        database.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 1, 7, 5, 9, ?, ?, 32, ?)",
            (at, at + 4_000, ids[name], ids[name], node),
        )
        at += 5_000
    execute = database.execute
    execute(
        "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 0, 7, 6, 128, 2)", (at, at + 1_000)
    )
    execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (90000, 95000, 0, 42, 5, 1, 0)")
    execute("INSERT INTO NVTX_EVENTS VALUES (80000, 99000, 59, NULL, 42, 0, 2)")
    execute("INSERT INTO NVTX_EVENTS VALUES (70000, 900000, 59, 'measured', 42, 0, NULL)")
    execute("INSERT INTO NVTX_EVENTS VALUES (70500, NULL, 34, 'a mark', 42, 0, NULL)")
    database.commit()
    database.close()
    return path


def test_an_export_of_nsys_is_a_trace(tmp_path: Path) -> None:
    """Kernels with names and launches, copies, calls without their version, and ranges."""
    path = nsys_report(tmp_path / "step.sqlite")
    assert is_sqlite(path)
    trace = read_nsys(path)
    assert [work.name for work in trace.device] == [*STEP_KERNELS, "Memcpy"]
    assert classify(trace.device) == [*STEP_CLASSES, "copy"]
    assert [(work.name, work.kind) for work in trace.host] == [
        (RANGE + MEASURED, "user_annotation"), (RANGE + STEP, "user_annotation"),
        ("cudaGraphLaunch", "cuda_runtime"),
    ]  # fmt: skip
    spent = occupation(trace)
    assert spent.busy_us == pytest.approx(4.0 * len(STEP_KERNELS) + 1.0)
    assert len(spent.gaps) == len(STEP_KERNELS)
    assert "unknown" not in spent.gaps[0].cause


def test_tables_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    """nsys creates only those that it needs."""
    path = nsys_report(tmp_path / "step.sqlite")
    database = sqlite3.connect(path)
    database.executescript("DROP TABLE NVTX_EVENTS; DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME;"
                           "DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY")  # fmt: skip
    database.close()
    trace = read_nsys(path)
    assert len(trace.device) == len(STEP_KERNELS)
    assert not trace.host


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    """And says what to record: whole graphs hide their kernels."""
    text = tmp_path / "text.sqlite"
    text.write_text("no database")
    with pytest.raises(TraceFileError, match=r"text\.sqlite is no report"):
        read_nsys(text)
    assert not is_sqlite(text)
    empty = tmp_path / "empty.sqlite"
    sqlite3.connect(empty).executescript("CREATE TABLE a (b)").connection.close()
    with pytest.raises(TraceFileError, match="no table StringIds"):
        read_nsys(empty)
    whole = nsys_report(tmp_path / "whole.sqlite")
    database = sqlite3.connect(whole)
    for change in (
        "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL",
        "DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY",
        "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start)",
    ):
        database.execute(change)
    database.commit()
    database.close()
    with pytest.raises(TraceFileError, match="--cuda-graph-trace=node"):
        read_nsys(whole)


@pytest.mark.parametrize("name", ["a?b.sqlite", "a#b.sqlite", "a%20b.sqlite", "a b.sqlite"])
def test_an_export_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    """A name is no address: its signs mean themselves, and nothing is created beside it."""
    path = nsys_report(tmp_path / name)
    assert read_nsys(path).about == {"source": name}
    assert list(tmp_path.iterdir()) == [path]


NO_STARTS = """
CREATE TABLE kernels AS SELECT * FROM CUPTI_ACTIVITY_KIND_KERNEL;
DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL;
ALTER TABLE kernels RENAME TO CUPTI_ACTIVITY_KIND_KERNEL;
UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = NULL;
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME demangledName TO named",
         "`demangledName` is missing"),
        ("ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY RENAME streamId TO named",
         "`streamId` is missing"),
        ("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = 'x'", "`start` is 'x'"),
        ("UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET end = -1", "`end` is -1"),
        ("UPDATE NVTX_EVENTS SET end = 9e999", "`end` is inf"),
        ("UPDATE NVTX_EVENTS SET text = x'03'", "of another kind"),
        (NO_STARTS, "`start` is None"),
    ],
)  # fmt: skip
def test_a_damaged_export_is_refused(tmp_path: Path, change: str, said: str) -> None:
    """With the file and the column."""
    path = nsys_report(tmp_path / "step.sqlite")
    sqlite3.connect(path).executescript(change).connection.close()
    with pytest.raises(TraceFileError, match=rf"step\.sqlite is no report.*{said}"):
        read_nsys(path)


HEAD = ('"ID","Process ID","Kernel Name","Stream",'
        '"thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg",'
        '"dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum",'
        '"sm__warps_active.avg.pct_of_peak_sustained_active"')  # fmt: skip
UNITS = '"","","","","","Mbyte","byte","ns","%"'


def _nvtx(name: str) -> str:
    """A range as ncu writes those around a kernel, the outermost first."""
    return f'""workbench:{name}:none:none:none:none:none:none""'


def ncu_csv(*rows: str) -> str:
    """What `ncu --csv --page raw` prints, with its talk before it."""
    return "\n".join(["==PROF== Connected to process 7", HEAD, UNITS, *rows])


def test_counters_of_a_row_a_kernel_are_read(tmp_path: Path) -> None:
    """In base units whatever the units are, with the class of the innermost known range."""
    path = tmp_path / "ncu.csv"
    path.write_text(ncu_csv(
        f'"0","7","_skinny_kernel","7","42  {_nvtx("labelled")}  {_nvtx("gate_up")}",'
        '"117.5","1,024","30,000","55.5"',
        '"1","7","void f<int>(int*)","7","","n/a","0","2,500",""',
    ))  # fmt: skip
    first, second = read_ncu(path)
    assert (first.name, first.kind, first.time_us) == ("_skinny_kernel", "gate_up", 30.0)
    assert first.dram_bytes == pytest.approx(117.5e6 + 1024)
    assert (first.warps_active, first.tensor_active) == (55.5, None)
    assert (second.name, second.kind, second.dram_bytes) == ("f<int>", None, 0.0)
    assert second.warps_active is None
    assert classes_of([first, second]) == ["gate_up", "other"]


def test_counters_of_a_row_a_metric_are_read(tmp_path: Path) -> None:
    """As `ncu --csv` prints them without `--page raw`."""
    path = tmp_path / "ncu.csv"
    head = '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    begin = '"0","_rotary_kernel","Command line"'
    path.write_text(
        f'{head}\n{begin},"gpu__time_duration.sum","us","3.5"\n'
        f'{begin},"dram__bytes_read.sum","Kbyte","12"\n'
    )
    (kernel,) = read_ncu(path)
    assert (kernel.time_us, kernel.dram_bytes) == (3.5, 12e3)


def test_a_report_of_an_h200_is_read() -> None:
    """What ncu 2025.3 prints unasked of two kernels of PyTorch: by title, without bytes."""
    fill, add = read_ncu(Path(__file__).parent / "fixtures" / "ncu_details_h200.csv")
    assert fill.name.startswith("vectorized_elementwise_kernel<4, FillFunctor<float>")
    assert (fill.time_us, fill.dram_active, fill.warps_active) == (2.72, 0.03, 30.37)
    assert add.time_us == pytest.approx(4.1, abs=0.2)
    assert fill.dram_bytes is None
    row = counters_text([fill, add], classes_of([fill, add]), {}).splitlines()[-1].split()
    assert row[:2] == ["other", "2"]
    assert row[3:5] == ["-", "-"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no kernel"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "administrators"),
        ("==ERROR== Failed to find metric dram__x", "ncu says: Failed to find metric"),
        (f"{HEAD}\n{UNITS}", "holds no kernel"),
        ('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n', "holds no kernel"),
        (ncu_csv('"0","7","a","7","","1","1","n/a","1"'), "no gpu__time_duration.sum"),
    ],
)
def test_what_ncu_says_instead_of_counters_is_told(tmp_path: Path, text: str, said: str) -> None:
    """And what would help; a list of no kernels is none."""
    path = tmp_path / "ncu.csv"
    path.write_text(text)
    with pytest.raises(TraceFileError, match=said):
        read_ncu(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e300"])
@pytest.mark.parametrize("column", [2, 3])
def test_counters_that_cannot_be_are_refused(tmp_path: Path, value: str, column: int) -> None:
    """With the file, the kernel and the column, of either kind of table."""
    path = tmp_path / "ncu.csv"
    cells = ["1", "1", value, "1"] if column == 2 else ["1", "1", "1", value]
    path.write_text(ncu_csv(f'"4","7","add","7","",{",".join(cells)}'))
    name = ("gpu__time_duration.sum", "sm__warps_active.avg.pct")[column - 2]
    with pytest.raises(TraceFileError, match=rf"ncu\.csv .*kernel 4, add: `{name}.*` is"):
        read_ncu(path)
    path.write_text('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
                    f'"4","add","Duration","us","{value}"\n')  # fmt: skip
    with pytest.raises(TraceFileError, match=r"kernel 4, add: `gpu__time_duration\.sum` is"):
        read_ncu(path)


def test_a_number_that_is_not_taken_may_be_any(tmp_path: Path) -> None:
    """ncu numbers nodes of memory from -1 on, and some of its means are of nothing."""
    path = tmp_path / "ncu.csv"
    path.write_text('"ID","Kernel Name","gpu__time_duration.sum","numa__id_cpu","a__b.ratio"\n'
                    '"","","us","",""\n"0","add","2","-1","nan"\n')  # fmt: skip
    assert [kernel.time_us for kernel in read_ncu(path)] == [2.0]


def test_a_kernel_of_no_duration_has_no_rate(tmp_path: Path) -> None:
    """Its bytes stand there all the same."""
    path = tmp_path / "ncu.csv"
    path.write_text(ncu_csv('"0","7","add","7","","1","0","0","50"'))
    kernels = read_ncu(path)
    row = counters_text(kernels, classes_of(kernels), {}).splitlines()[-1].split()
    assert row[:6] == ["other", "1", "0.0", "1.00", "-", "-"]


@pytest.mark.parametrize("name", ["UP.CSV", "log.txt", "ncu.csv"])
@pytest.mark.parametrize("before", ["==PROF== Connected to process 7\n", "a program's own\n", ""])
def test_counters_are_known_by_what_they_are(tmp_path: Path, name: str, before: str) -> None:
    """Whatever the file is called; a mark of UTF-8 before it is none of it."""
    path = tmp_path / name
    rows = f'{HEAD}\n{UNITS}\n"0","7","add","7","","1","0","9000","50"\n'
    for mark in ("", "\ufeff"):
        path.write_text(mark + before + rows, encoding="utf-8")
        assert is_ncu(path)
        assert [kernel.name for kernel in read_ncu(path)] == ["add"]
    trace = tmp_path / "trace.json"
    trace.write_text('{"traceEvents": [\n"Kernel Name"]}')
    assert not is_ncu(trace)


REQUEST = StepRequest(text="decode:4x64", design=parse_step("decode:4x64"), model="Qwen3-0.6B",
                      load_format="dummy", layers=2)  # fmt: skip


def test_the_commands_are_exact(tmp_path: Path) -> None:
    """Graphs node by node, from cudaProfilerStart to -Stop, with ranges; clocks are left alone."""
    record, export, back = (
        str(c) for c in nsys_commands(arguments_of(REQUEST), "out/step", python="py")
    )
    assert record == (
        "WORKBENCH_NVTX=1 nsys profile --trace=cuda,nvtx,osrt --cuda-graph-trace=node "
        "--capture-range=cudaProfilerApi --capture-range-end=stop --force-overwrite=true "
        "--output=out/step py -m workbench profile step --step decode:4x64 --model Qwen3-0.6B "
        "--layers 2 --load-format dummy"
    )
    assert export == (
        "nsys export --type=sqlite --force-overwrite=true --output=out/step.sqlite "
        "out/step.nsys-rep"
    )
    assert back == "workbench profile import out/step.sqlite"
    found = nsys_commands([], "out/step", nsys="/opt/a b/nsys")
    assert [command.words[0] for command in found] == [*["/opt/a b/nsys"] * 2, "workbench"]
    command = str(ncu_command(["--step", "a b"], tmp_path / "x.csv", only="qkv", python="py"))
    assert "--clock-control none" in command
    assert "--nvtx-include workbench@qkv/ " in command
    assert command.endswith("-m workbench profile step --eager --step 'a b'")
    assert ",".join(METRICS) in command


def tool(folder: Path, text: str) -> str:
    """A program of shell script."""
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_only_metrics_that_exist_are_asked_for(tmp_path: Path) -> None:
    """By the list that the tool prints; facts of the launch are not in it."""
    listed = "echo 'gpu__time_duration   Counter  ns'; echo 'dram__bytes_read  Counter  byte'"
    assert known_metrics(tool(tmp_path, listed)) == (
        "gpu__time_duration.sum", "dram__bytes_read.sum", "launch__registers_per_thread"
    )  # fmt: skip
    assert known_metrics(tool(tmp_path, "echo nothing")) == METRICS


def test_a_tool_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    """Whether it ends with an error, takes too long or is not there."""
    with pytest.raises(ToolError, match=r"ended with 3:\n  oh"):
        run_tool(Command((tool(tmp_path, "echo oh >&2; exit 3"),)), 5)
    with pytest.raises(ToolError, match="longer than 0.1 s"):
        run_tool(Command((tool(tmp_path, "exec sleep 5"),)), 0.1)
    with pytest.raises(ToolError, match="cannot be run"):
        run_tool(Command((str(tmp_path / "none"),)), 1)
    assert run_tool(Command((tool(tmp_path, 'echo "$A"'),), (("A", "b"),)), 5) == "b\n"


def test_what_a_tool_watches_ends_with_it(tmp_path: Path) -> None:
    """A program that a tool started is ended with the tool when that takes too long."""
    held = tmp_path / "held"  # a pipe that what the tool starts holds open as long as it lives
    os.mkfifo(held)
    pipe = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    program = tool(tmp_path, f"sleep 600 > {held} & wait")
    with pytest.raises(ToolError, match="longer than"):
        run_tool(Command((program,)), 0.3)
    end = time.monotonic() + 60
    while is_held(pipe):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.close(pipe)


def is_held(pipe: int) -> bool:
    """Whether somebody could still write to a pipe."""
    try:
        return os.read(pipe, 1) != b""
    except BlockingIOError:
        return True


def test_a_watched_step_has_no_more_pages_than_it_needs() -> None:
    """ncu saves all memory of a GPU before it replays a kernel: a full cache is too much."""
    request = replace(REQUEST, model=None, load_format="auto", layers=None, device="cpu")
    with _ready(request, lambda _: None, small=True) as ready:
        assert ready.limits.num_pages == 4 * (64 // ready.limits.page_size + 1)
        before, plan = ready.maker.make(REQUEST.design)
        assert before is not None
        ready.runner.launch(before).result()
        assert len(ready.runner.launch(plan).result().token_ids) == 4
