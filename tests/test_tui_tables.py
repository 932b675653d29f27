"""Growing tables, last rows and aggregates, against plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.last_rows import NEVER, LastRows
from workbench.tui.store.mips import MipSeries

VALUES = st.lists(st.integers(0, 1000), max_size=40)


@given(st.lists(st.tuples(VALUES, st.integers(0, 60)), max_size=30))
def test_a_row_keeps_its_number_and_its_values(portions) -> None:
    """Whatever is appended and dropped, what is held is the end of all rows, by number."""
    table, model = GrowingTable({"x": "int32", "y": "int64"}), []
    for values, dropped in portions:
        table.append({"x": np.array(values, np.int64), "y": np.array(values, np.int64) * 7})
        model += values
        table.drop_before(dropped)
        assert table.end == len(model)
        assert table["x"].tolist() == model[table.first :]
        assert table["y"].tolist() == [7 * value for value in model[table.first :]]
        if len(table):
            assert table.row(table.end - 1) == {"x": model[-1], "y": 7 * model[-1]}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=400),
    st.integers(1, 40),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_the_last_rows_at_any_point_are_those_of_folding_all_deltas(deltas, spacing, seeks) -> None:
    """`after(n)` is what writing the deltas of rows below n one by one leaves."""
    keys = np.array([key for key, _ in deltas], np.int32)
    rows = np.cumsum([step for _, step in deltas]).astype(np.int32)
    index = LastRows(4, spacing)
    for start in range(0, len(keys), 17):
        index.append(keys[start : start + 17], rows[start : start + 17])
    for seek in seeks:
        pairs = zip(keys.tolist(), rows.tolist(), strict=True)
        model = {key: row for key, row in pairs if row < seek}
        expected = [model.get(key, NEVER) for key in range(index.num_keys)]
        assert index.after(seek).tolist() == expected


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=200),
    st.integers(1, 40),
    st.integers(0, 8),
    st.integers(0, 150),
)
def test_blocks_of_any_level_are_those_of_the_values(values, portion, level, dropped) -> None:
    """Sum, maximum, first step with the maximum, and count, however the values came and went."""
    series = MipSeries()
    for start in range(0, len(values), portion):
        series.append(np.array(values[start : start + portion], np.int64))
    dropped = min(dropped, len(values) - 1)
    series.drop_before(dropped)
    size = 1 << level
    blocks = series.blocks(level, 0, len(values) // size + 2)
    held = {step: values[step] for step in range(dropped, len(values))}
    numbers = sorted({step // size for step in held})
    assert blocks.first == numbers[0]
    assert len(blocks) == len(numbers)
    for at, number in enumerate(numbers):
        steps = [step for step in held if step // size == number]
        most = max(held[step] for step in steps)
        assert blocks.sum[at] == sum(held[step] for step in steps)
        assert blocks.max[at] == most
        assert blocks.argmax[at] == next(step for step in steps if held[step] == most)
        assert blocks.count[at] == len(steps)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=100), st.integers(0, 6), st.data())
def test_a_part_of_the_blocks_is_that_part_of_all(values, level, data) -> None:
    """Asking for a few blocks gives the same as asking for all and taking those."""
    series = MipSeries()
    series.append(np.array(values, np.int64))
    everything = series.blocks(level, 0, len(values))
    first = data.draw(st.integers(0, len(everything) - 1))
    last = data.draw(st.integers(first, len(everything)))
    part = series.blocks(level, first, last)
    for name in ("sum", "max", "argmax", "count"):
        expected = getattr(everything, name)[first:last].tolist()
        assert getattr(part, name).tolist() == expected
