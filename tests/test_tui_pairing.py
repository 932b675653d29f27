"""Two runs side by side: locks, differences, and where decisions part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import forked, record, recorded, simulation_of

from workbench.analysis.divergence import first_divergence
from workbench.record.run_record import RunReader
from workbench.tui.store import RunStore
from workbench.tui.store.pairing import DELTAS, LOCKS, NONE, Pairing

FORK_STEP = 40


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunReader, RunReader]:
    """A run, and the same from a step on with a smaller batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fork"))
        parent = record(simulation_of("synthetic", "one"))
        child = forked(parent, FORK_STEP, "deployment.pools.0.max_running_requests=4")
        return RunReader(parent.path.resolve()), RunReader(child.path.resolve())


@pytest.fixture(scope="module")
def stores(fork) -> tuple[RunStore, RunStore]:
    """Both in memory."""
    return RunStore.open(fork[0].path), RunStore.open(fork[1].path)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_run_beside_itself_differs_nowhere(lock, stores) -> None:
    """Every step is its own counterpart, all differences are zero, no decision differs."""
    pairing = Pairing(stores[0], stores[0], 0, lock)
    steps = stores[0].replicas[0].steps
    assert pairing.match.tolist() == list(range(steps.first, steps.end))
    every = np.arange(steps.first, steps.end)
    deltas = pairing.columns(every, every + 1)
    for name in DELTAS:
        assert not deltas.mean[name].any()
    assert not deltas.decisions.any()
    assert not deltas.durations.any()
    assert pairing.next_difference(-1) is None
    assert pairing.drift_ns(steps.end - 1) == 0


@pytest.mark.parametrize("lock", LOCKS)
def test_counterparts_never_go_back(lock, stores) -> None:
    """As A goes on, B goes on or stays, until it has ended; then it has no counterpart."""
    match = Pairing(*stores, 0, lock).match
    known = match[match != NONE]
    assert (np.diff(known) >= 0).all()
    assert (match[: len(known)] != NONE).all() or lock != "step"
    assert known.min() >= 0
    assert known.max() < stores[1].replicas[0].steps.end


def test_the_time_lock_pairs_what_had_ended_at_the_same_time(stores) -> None:
    """The counterpart of a step is the last step of B that had ended when it ended."""
    pairing = Pairing(*stores, 0, "time")
    ends_a, ends_b = (store.replicas[0].steps.column("end_ns") for store in stores)
    for at in np.flatnonzero(pairing.match != NONE).tolist():
        other = int(pairing.match[at])
        assert ends_b[other] <= ends_a[at]
        assert other + 1 == len(ends_b) or ends_b[other + 1] > ends_a[at]


def test_the_arrival_lock_is_the_time_lock_where_arrivals_are_the_same(stores) -> None:
    """An open load arrives at the same times in both runs, so that nothing is stretched."""
    by_time = Pairing(*stores, 0, "time").match
    by_arrival = Pairing(*stores, 0, "arrival").match
    np.testing.assert_array_equal(by_time, by_arrival)


def test_the_first_difference_is_the_first_divergence(fork, stores) -> None:
    """Locked by step, the first step that differs is the one that the comparison names."""
    divergence = first_divergence(*fork)
    assert divergence.where == "batch"
    assert divergence.step >= FORK_STEP
    pairing = Pairing(*stores, 0, "step")
    assert pairing.next_difference(-1) == divergence.step
    deltas = pairing.columns(
        np.array([0, divergence.step]), np.array([divergence.step, divergence.step + 1])
    )
    assert deltas.decisions.tolist() == [False, True]


def test_other_durations_of_equal_batches_are_told_from_other_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batches on a slower GPU differ in durations alone, until decisions part."""
    monkeypatch.chdir(tmp_path)
    load = ("workload.num_requests=20", "load={kind: all_at_once}")
    a, b = recorded(*load), recorded(*load, "hardware.gpu=a100")
    pairing = Pairing(RunStore.open(a.path), RunStore.open(b.path), 0, "step")
    equal = first_divergence(a, b)
    assert equal.where == "equal"
    every = np.arange(len(pairing.match))
    deltas = pairing.columns(every, every + 1)
    assert deltas.durations.all()
    assert not deltas.decisions.any()


@given(st.data())
def test_columns_add_up_whatever_they_hold(data) -> None:
    """The difference over a column of many steps is that of its steps, one by one."""
    a, b = _PAIR
    pairing = Pairing(a, b, 0, data.draw(st.sampled_from(LOCKS)))
    count = len(pairing.match)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    each = np.arange(first, last)
    single = pairing.columns(each, each + 1)
    whole = pairing.columns(np.array([first]), np.array([last]))
    for name in DELTAS:
        known = single.mean[name][~np.isnan(single.mean[name])]
        expected = known.mean() if len(known) else np.nan
        np.testing.assert_allclose(whole.mean[name][0], expected, rtol=1e-9, atol=1e-9)
    assert whole.decisions[0] == single.decisions.any()
    begin, end = pairing.columns_of_b(np.array([first]), np.array([last]))
    if begin[0] != NONE:
        assert begin[0] < end[0] <= b.replicas[0].steps.end


def _pair() -> tuple[RunStore, RunStore]:
    stores = []
    for workload in ("synthetic", "early ends"):
        simulation = simulation_of(workload, "one", "steps")
        store = RunStore(simulation.header)
        simulation.run([store.append])
        stores.append(store)
    return stores[0], stores[1]


_PAIR = _pair()
