"""Run directories: what is written is read back, and what went wrong is said."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from table_builders import Ask, Played, Server, asks, make_header, play, poisson, servers

from engine.core.events import TABLES, Detail, EventLog, Segment, recorded_tables
from workbench.metrics.run_metrics import summarize
from workbench.record.columns import narrow
from workbench.record.errors import RunRecordError
from workbench.record.header import FORMAT_VERSION, RunHeader, scenario_digest
from workbench.record.run_record import RunReader, RunWriter


def halves(tables: Segment) -> list[Segment]:
    """The tables in two segments."""
    first = {n: {k: c[: len(c) // 2] for k, c in t.items()} for n, t in tables.items()}
    second = {n: {k: c[len(c) // 2 :] for k, c in t.items()} for n, t in tables.items()}
    return [first, second]


def write_run(root: Path, played: Played, detail: str = "pages") -> RunWriter:
    """A complete record of a run in two segments."""
    header = played.header(detail=detail)
    writer = RunWriter(root, header.name, header)
    for segment in halves(played.tables):
        writer.write_segment(segment)
    writer.finish(summarize(played.tables, header))
    return writer


def assert_same_tables(got: Segment, wanted: Segment) -> None:
    for name, columns in wanted.items():
        for key, column in columns.items():
            np.testing.assert_array_equal(got[name][key], column)
            assert got[name][key].dtype == np.dtype(TABLES[name][key])


@pytest.fixture
def played() -> Played:
    return play(poisson(60, 400, output=7), Server(num_pages=14, replicas=2, jitter=500))


def test_tables_header_and_summary_come_back(tmp_path: Path, played: Played) -> None:
    """Reading a run gives the very tables, header and summary that were written."""
    writer = write_run(tmp_path, played)
    run = RunReader(writer.path)
    assert_same_tables(run.tables(), played.tables)
    assert run.status == "complete"
    assert run.header == writer.header
    assert run.summary == summarize(played.tables, played.header(detail="pages"))
    assert run.header.segments == 2
    assert run.header.rows == {n: len(played.tables[n][next(iter(t))]) for n, t in TABLES.items()}


@pytest.mark.parametrize("detail", list(Detail))
def test_a_record_holds_the_tables_of_its_detail(
    tmp_path: Path, played: Played, detail: Detail
) -> None:
    """Tables beyond the detail are not written; reading them gives no rows."""
    run = RunReader(write_run(tmp_path, played, detail.name.lower()).path)
    for name in TABLES:
        rows = len(run.table(name)["replica"])
        kept = name in recorded_tables(detail)
        assert rows == (len(played.tables[name]["replica"]) if kept else 0)
        assert run.recorded(name) == kept


def test_some_columns_can_be_read_alone(tmp_path: Path, played: Played) -> None:
    """Asking for columns gives these and no others."""
    run = RunReader(write_run(tmp_path, played).path)
    columns = run.table("steps", ("end_ns", "step"))
    assert list(columns) == ["end_ns", "step"]
    np.testing.assert_array_equal(columns["end_ns"], played.tables["steps"]["end_ns"])
    with pytest.raises(KeyError, match="no table 'stepz'"):
        run.table("stepz")


def test_the_writer_is_a_sink_of_the_event_log(tmp_path: Path) -> None:
    """An EventLog that hands over small segments writes the rows that it would have kept."""
    header = make_header(Server(), detail="steps")
    writer = RunWriter(tmp_path, "sink", header)
    log, kept = EventLog(Detail.STEPS, writer.write_segment, 10), EventLog(Detail.STEPS)
    for number in range(101):
        for target in (log, kept):
            write = target.write("lifecycle")
            assert write is not None
            write((number * 1_000_000_007, 0, number, 1, -number, 1 << 40))
            target.flush_if_full()
    log.flush()
    writer.finish({})
    run = RunReader(writer.path)
    assert run.header.segments == 11
    assert_same_tables(
        {"lifecycle": run.table("lifecycle")}, {"lifecycle": kept.tables()["lifecycle"]}
    )


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, played: Played) -> None:
    """No clock and no dictionary order enters a record."""
    one, two = write_run(tmp_path / "a", played).path, write_run(tmp_path / "b", played).path
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "events/00000.npz",
        "events/00001.npz",
        "header.json",
        "summary.json",
    ]
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


@given(asks(), servers())
def test_every_batch_is_found_again(requests: list[Ask], server: Server) -> None:
    """Items and decode spans together give what each step held, for every step."""
    played = play(requests, server)
    run = _Memory(played)
    for (replica, step), batch in played.batches.items():
        items = run.items_of_step(replica, step)
        names = ("request_id", "kind", "num_tokens", "context_tokens")
        assert list(zip(*(items[name].tolist() for name in names), strict=True)) == batch
        assert {name: column.dtype.str for name, column in items.items()} == {
            name: np.dtype(TABLES["items"][name]).str for name in names
        }


class _Memory(RunReader):
    """A reader over tables in memory, so that Hypothesis needs no disk."""

    def __init__(self, played: Played) -> None:
        self.path = Path("memory")
        self.header = played.header()
        self._tables = played.tables
        self._decode_batches = {}

    def table(self, name: str, columns: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        return {key: self._tables[name][key] for key in columns or TABLES[name]}


def test_items_of_a_step_need_the_detail_and_the_step(tmp_path: Path, played: Played) -> None:
    """Too little detail and an unknown step are told apart."""
    coarse = RunReader(write_run(tmp_path, played, "steps").path)
    with pytest.raises(RunRecordError, match="detail 'steps'; the items of a step need"):
        coarse.items_of_step(0, 0)
    fine = RunReader(write_run(tmp_path, played, "items").path)
    with pytest.raises(RunRecordError, match="has no step 99999 of replica 1"):
        fine.items_of_step(1, 99999)


def test_directories_are_numbered_above_all_that_exist(tmp_path: Path) -> None:
    """The next run never fills a gap, so that numbers grow with time."""
    header = make_header(Server())
    names = [RunWriter(tmp_path, "chat", header).path.name for _ in range(3)]
    assert names == ["chat-1", "chat-2", "chat-3"]
    shutil.rmtree(tmp_path / "chat-2")
    (tmp_path / "chat-7").mkdir()
    (tmp_path / "chatter-9").mkdir()
    assert RunWriter(tmp_path, "chat", header).path.name == "chat-8"
    assert RunWriter(tmp_path, "../a b/ö", header).path == tmp_path / "a-b-1"
    assert RunWriter(tmp_path, "...", header).path == tmp_path / "run-1"


def test_runs_that_start_together_get_different_directories(tmp_path: Path) -> None:
    """Claiming a number is one mkdir, so no two runs share one."""
    header = make_header(Server())
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: RunWriter(tmp_path, "race", header).path, range(40)))
    assert len(set(paths)) == 40


def test_status_tells_how_a_run_ended(tmp_path: Path, played: Played) -> None:
    """Running until it ends; then complete, interrupted (with what there is) or failed."""
    header = played.header()
    writer = RunWriter(tmp_path, "x", header)
    writer.write_segment(played.tables)
    reader = RunReader(writer.path)
    assert reader.status == "running"
    assert len(reader.table("steps")["step"]) == len(played.tables["steps"]["step"])
    with pytest.raises(RunRecordError, match="is missing: the run is still running, or was killed"):
        _ = reader.summary
    writer.interrupted({"completed": 3}, "Ctrl-C")
    reader = RunReader(writer.path)
    assert (reader.status, reader.header.status_reason) == ("interrupted", "Ctrl-C")
    assert reader.summary == {"completed": 3}
    other = RunWriter(tmp_path, "x", header)
    other.failed("the plan was impossible")
    assert RunReader(other.path).status == "failed"
    assert RunReader(other.path).header.status_reason == "the plan was impossible"


def test_a_finished_record_takes_no_more(tmp_path: Path, played: Played) -> None:
    """After the end nothing can be added or changed."""
    writer = write_run(tmp_path, played)
    for change in (
        lambda: writer.write_segment(played.tables),
        lambda: writer.add_arrays("journal.npz", {}),
        lambda: writer.finish({}),
        lambda: writer.failed("late"),
    ):
        with pytest.raises(RunRecordError, match="the run is complete"):
            change()
    assert RunReader(writer.path).status == "complete"


def test_other_files_lie_beside_the_events(tmp_path: Path, played: Played) -> None:
    """Arrays that others add come back under their name; those never added are said to miss."""
    writer = RunWriter(tmp_path, "x", played.header())
    arrays = {"op": np.array([1, 2], np.int8), "now_ns": np.array([5, 1 << 50])}
    writer.add_arrays("journal.npz", arrays)
    writer.finish({})
    run = RunReader(writer.path)
    for name, array in run.arrays("journal.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(RunRecordError, match=r"routing.npz is missing: this run did not record"):
        run.arrays("routing.npz")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["events/.00001.npz.tmp", ".summary.json.tmp", ".journal.npz.tmp"])
def test_a_full_disk_fails_the_run_and_leaves_nothing_half(
    tmp_path: Path, played: Played, full: str
) -> None:
    """The file that did not fit is not there, the record says failed, the error says what to do."""
    header = played.header()
    writer = RunWriter(tmp_path, "x", header)
    (writer.path / full).symlink_to("/dev/full")

    def whole_run() -> None:
        for segment in halves(played.tables):
            writer.write_segment(segment)
        writer.add_arrays("journal.npz", {"now_ns": np.arange(10)})
        writer.finish({"completed": 1})

    with pytest.raises(RunRecordError, match=r"cannot write .*no space left.*free some disk"):
        whole_run()
    left = {str(p.relative_to(writer.path)) for p in writer.path.rglob("*") if not p.is_dir()}
    gone = str(Path(full).parent / Path(full).name.removeprefix(".").removesuffix(".tmp"))
    assert gone not in left
    assert not any(name.endswith(".tmp") for name in left)
    run = RunReader(writer.path)
    assert run.status == "failed"
    assert "no space left" in str(run.header.status_reason)
    with pytest.raises(RunRecordError, match="the run is failed"):
        writer.write_segment(played.tables)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_at_the_very_end_leaves_a_running_record(
    tmp_path: Path, played: Played
) -> None:
    """If not even the last header fits, the record never claims to be complete."""
    writer = RunWriter(tmp_path, "x", played.header())
    writer.write_segment(played.tables)
    (writer.path / ".header.json.tmp").symlink_to("/dev/full")
    with pytest.raises(RunRecordError, match="no space left"):
        writer.finish({"completed": 1})
    assert RunReader(writer.path).status == "running"


def test_a_place_that_cannot_hold_runs_is_an_error(tmp_path: Path) -> None:
    """A file where a directory should be: the message names it and what to choose."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunRecordError, match=r"cannot create .*file/runs: not a directory; choose"):
        RunWriter(tmp_path / "file" / "runs", "x", make_header(Server()))


def test_an_unwritable_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission denied says which directory, and to choose another; nothing is left behind."""

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(RunRecordError, match="permission denied; choose a directory that you"):
            RunWriter(tmp_path, "x", make_header(Server()))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(RunRecordError, match=r"cannot write .*header.json: permission denied"):
            RunWriter(tmp_path, "x", make_header(Server()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """Neither an empty folder nor a missing one is mistaken for a run."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunRecordError, match=r"is no run: it has no header.json"):
            RunReader(path)
    (tmp_path / "header.json").write_text('{"format": 1, "name": "x"}')
    with pytest.raises(RunRecordError, match=r"it is no run header .*missing required field"):
        RunReader(tmp_path)
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(RunRecordError, match="it is no run header"):
        RunReader(tmp_path)


def test_a_newer_format_asks_for_a_newer_workbench(tmp_path: Path, played: Played) -> None:
    """Whatever else a newer header says, its version is what the reader reports."""
    path = write_run(tmp_path, played).path
    newer = {"format": FORMAT_VERSION + 1, "something": "else"}
    (path / "header.json").write_text(json.dumps(newer))
    with pytest.raises(RunRecordError, match=r"format 3 .* reads up to 2; update the workbench"):
        RunReader(path)


def test_a_record_of_format_1_is_read_with_zeros_for_what_came_later(
    tmp_path: Path, played: Played
) -> None:
    """Asked for by name or with all others, in as many rows as the table has."""
    path = write_run(tmp_path, played).path
    whole = RunReader(path).table("steps")
    for segment in (path / "events").glob("*.npz"):
        arrays = dict(np.load(segment))
        arrays.pop("steps/shared_context", None)
        np.savez(segment, **arrays)
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(header | {"format": 1}))
    older = RunReader(path)
    assert not older.table("steps", ("shared_context",))["shared_context"].any()
    for name, column in older.table("steps").items():
        expected = np.zeros_like(column) if name == "shared_context" else whole[name]
        np.testing.assert_array_equal(column, expected)
        assert column.dtype == whole[name].dtype


def test_fields_that_a_later_version_adds_are_ignored(tmp_path: Path, played: Played) -> None:
    """Small additions to the header need no new format."""
    path = write_run(tmp_path, played).path
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(header | {"colour": "blue"}))
    assert RunReader(path).header == msgspec.convert(header, RunHeader)


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_a_truncated_segment_is_damage_not_data(tmp_path: Path, played: Played, keep: int) -> None:
    """A cut-off .npz is reported by name, wherever the cut is."""
    path = write_run(tmp_path, played).path / "events" / "00001.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunRecordError, match=r"00001.npz is cut short or damaged"):
        RunReader(path.parents[1]).table("steps")


def test_a_flipped_byte_is_damage_not_data(tmp_path: Path, played: Played) -> None:
    """Checksums guard the numbers."""
    path = write_run(tmp_path, played).path / "events" / "00000.npz"
    data = bytearray(path.read_bytes())
    at = data.index(b"steps/end_ns.npy") + 200
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunRecordError, match=r"00000.npz is cut short or damaged"):
        RunReader(path.parents[1]).table("steps")


@pytest.mark.parametrize("lost", ["00000.npz", "00001.npz"])
def test_a_missing_segment_is_noticed(tmp_path: Path, played: Played, lost: str) -> None:
    """A finished record knows how many segments it has, a hole shows in any."""
    path = write_run(tmp_path, played).path
    (path / "events" / lost).unlink()
    with pytest.raises(RunRecordError, match=f"{lost} is missing"):
        RunReader(path)


def test_columns_are_stored_in_the_narrowest_type() -> None:
    """Narrowing keeps every value and picks the smallest type at each border."""
    for limit, dtype in ((127, "int8"), (128, "int16"), (1 << 31, "int64"), (-(1 << 31), "int32")):
        column = np.array([0, limit], np.int64)
        assert narrow(column).dtype == np.dtype(dtype)
        np.testing.assert_array_equal(narrow(column), column)
    assert narrow(np.array([-128], np.int8)).dtype == np.int8
    assert narrow(np.empty(0, np.int32)).dtype == np.int32


def test_the_scenario_digest_ignores_the_order_of_keys() -> None:
    """Two spellings of one scenario have one digest, two scenarios have two."""
    assert scenario_digest({"a": 1, "b": [2]}) == scenario_digest({"b": [2], "a": 1})
    assert scenario_digest({"a": 1}) != scenario_digest({"a": 2})
