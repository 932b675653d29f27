"""docs/run_record.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from table_builders import Ask, play

from engine.core.events import TABLES
from workbench.metrics.run_metrics import summarize
from workbench.record.doc import _MEANINGS, _comments, meaning, unit, updated
from workbench.record.header import RunHeader, SloFacts

DOCUMENT = (Path(__file__).parents[1] / "docs" / "run_record.md").read_text(encoding="utf-8")


def test_the_tables_in_the_document_are_those_of_the_code() -> None:
    """After any change to tables or enums, `python -m workbench.record.doc` must be run."""
    assert updated(DOCUMENT) == DOCUMENT


def test_every_column_is_described_once() -> None:
    """Each column has a meaning, from its comment or from the list, and no entry is idle."""
    notes = _comments()
    columns = [(table, column) for table in TABLES for column in TABLES[table]]
    assert all(meaning(table, column, notes) for table, column in columns)
    silent = [(t, c) for t, c in columns if re.match("-1|$", notes[f"{t}.{c}"])]
    used = {f"{t}.{c}" if f"{t}.{c}" in _MEANINGS else c for t, c in silent}
    assert used == set(_MEANINGS)


def test_durations_and_sizes_have_units() -> None:
    """A column whose name ends in a unit shows it; identities and enums have none."""
    assert unit("end_ns") == "ns"
    assert unit("recomputed_tokens") == "tokens"
    assert unit("evicted_pages") == "pages"
    assert unit("decode_max_context") == "tokens"
    assert unit("request_id") == unit("finish_reason") == ""


def test_every_header_field_is_in_the_document() -> None:
    """No fact of the header goes unexplained."""
    for field in msgspec.structs.fields(RunHeader):
        assert f"`{field.name}`" in DOCUMENT


def test_every_summary_key_is_in_the_document() -> None:
    """No metric goes unexplained; families of keys stand for their members."""
    played = play([Ask(0)])
    documented = set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT))
    family = re.compile(r"(mean|median|std|p[0-9.]+)_((ttft|tpot|itl|e2el)_ms)")
    for key in summarize(played.tables, played.header(slo=SloFacts(ttft_ms=1))):
        if match := family.fullmatch(key):
            assert match[2] in documented
        elif not re.fullmatch(r"wait_(?!total|client)\w+_(request_s|percent)", key):
            assert key in documented


def test_a_document_without_markers_is_refused() -> None:
    """Nothing is appended in the wrong place."""
    with pytest.raises(ValueError, match="lacks the markers"):
        updated("# Something else")
