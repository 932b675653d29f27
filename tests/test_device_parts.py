"""The small parts between host and device: uploads, padding, the clock of steps, devices' names."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_device import DEVICE, ON_GPU

from engine.core.config import MAX_PLANS_IN_FLIGHT
from engine.core.model_spec import load_model_spec
from engine.core.request import Request
from engine.kernels.registry import select_kernels
from engine.runtime.build import _check_gpu, _check_kernels_take, find_device
from engine.runtime.decode_graphs import DecodeGraphs
from engine.runtime.device_state import NOTHING_SPECIAL, DeviceState
from engine.runtime.executor import EngineError
from engine.runtime.step_clock import StepClock, StepEvents
from engine.runtime.transfers_to_device import Upload, pieces
from engine.sampling_params import SamplingParams

CPU = torch.device("cpu")
MS = 1_000_000


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_pieces_are_aligned_and_apart() -> None:
    """Every piece starts at a multiple of 64 bytes, behind the end of the one before."""
    rng = Random(1)
    for _ in range(50):
        lengths = [rng.choice([0, 1, 15, 16, 17, 300]) for _ in range(rng.randint(1, 8))]
        starts, size = pieces(lengths)
        assert len(starts) == len(lengths)
        for start, length, following in zip(starts, lengths, [*starts[1:], size], strict=True):
            assert start % 16 == 0
            assert start + length <= following


def test_an_upload_brings_all_arrays() -> None:
    """Arrays arrive as they are, empty ones too, and in a given buffer if there is one."""
    upload = Upload(CPU, 8)
    for length in (3, 40, 1000):  # the second and third are more than was foreseen
        arrays = [np.arange(length, dtype=np.int32), int32(), int32(-7)]
        for got, sent in zip(upload.send(arrays), arrays, strict=True):
            assert got.dtype == torch.int32
            assert got.tolist() == sent.tolist()
    into = torch.full((64,), -1, dtype=torch.int32)
    views = upload.send([int32(1, 2), int32(3)], into=into)
    assert [view.tolist() for view in views] == [[1, 2], [3]]
    assert views[0].data_ptr() == into.data_ptr()


def test_an_upload_leaves_those_in_flight_alone() -> None:
    """What is sent for the next steps overwrites no buffer that steps in flight may still read."""
    upload = Upload(CPU, 64)
    sources: list[tuple[int, list[int]]] = []
    for step in range(20):
        upload.send([int32(step, step + 1)])
        source = upload._ring[upload._turn].buffer
        sources.append((source.data_ptr(), source[:2].tolist()))
        flying = sources[-MAX_PLANS_IN_FLIGHT:]
        assert len({pointer for pointer, _ in flying}) == len(flying)
        for back, (pointer, values) in enumerate(reversed(flying)):
            assert values == [step - back, step - back + 1]
            buffers = (slot.buffer for slot in upload._ring)
            buffer = next(b for b in buffers if b.data_ptr() == pointer)
            assert buffer[:2].tolist() == values


@pytest.mark.skipif(not ON_GPU, reason="a CPU has read a buffer when `send` returns")
def test_a_buffer_is_not_written_again_before_the_device_has_read_it() -> None:
    """However many steps are queued behind work that takes long, as a dry run of a model does."""
    upload = Upload(DEVICE, 64)
    torch.cuda._sleep(50_000_000)
    sent = [upload.send([np.full(40, number, np.int32)])[0] for number in range(40)]
    for number, found in enumerate(sent):
        assert found.tolist() == [number] * 40


def test_padding_does_nothing() -> None:
    """Padded rows read a token that exists, write the dummy page, and bring no page."""
    no_space: Any = None  # only captures need it
    state = DeviceState(6, 3, dummy_page=9, counters=1, device=CPU)
    graphs = DecodeGraphs(lambda *_: pytest.fail("not captured"), state.dummy_row, CPU, no_space)
    columns = [int32(-3, -1), int32(5, 0), int32(2, 0), int32(7), int32(4)]
    ids, positions, rows, at, pages = graphs.padded(columns, 4)
    kernels = select_kernels(CPU)
    embedded = kernels.embed_tokens(
        torch.from_numpy(ids), state.last_tokens, torch.arange(20.0)[:, None]
    )
    assert embedded[2:].tolist() == [[0.0], [0.0]]
    assert (positions.tolist(), rows.tolist()) == ([5, 0, 0, 0], [2, 0, 6, 6])
    assert state.page_table[torch.from_numpy(rows[2:])].unique().tolist() == [9]
    before = state.page_table.clone()
    kernels.write_pages(state.page_table, torch.from_numpy(at), torch.from_numpy(pages))
    changed = (state.page_table != before).nonzero().tolist()
    assert changed == [[7 // 3, 7 % 3]]
    assert state.page_table[7 // 3, 7 % 3] == 4
    full = [int32(1, 2)] * 5
    assert all(a is b for a, b in zip(graphs.padded(full, 2), full, strict=True))


class Event:
    """A CUDA event at a known time of a device whose clock is another one's."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms = at_ms

    def elapsed_time(self, later: Event) -> float:
        return later.at_ms - self.at_ms


def events(begin_ms: float, end_ms: float) -> StepEvents:
    found: Any = (Event(begin_ms), Event(end_ms), Event(end_ms))
    return StepEvents(*found)


def test_steps_lie_where_the_device_ran_them() -> None:
    """Steps behind each other keep the gaps that the device measured, on the host's clock."""
    now = 0
    clock = StepClock(lambda: now)
    offset = 777.0  # of the device's clock
    now = 40 * MS
    assert clock.place(events(offset + 10, offset + 30), 10 * MS) == (10 * MS, 20 * MS)
    now = 60 * MS  # launched at 15, while the first ran; the device began it at 30.2
    assert clock.place(events(offset + 30.2, offset + 50), 15 * MS) == (30_200_000, 19_800_000)
    now = 200 * MS  # after an idle time the launch counts
    assert clock.place(events(offset + 150, offset + 151), 149 * MS) == (149 * MS, 1 * MS)


def test_a_step_is_over_when_its_result_is_there() -> None:
    """No step ends after it has been seen to be done, and none begins before it was launched."""
    rng = Random(2)
    now = 0
    clock = StepClock(lambda: now)
    device_ms, last_end = 0.0, 0
    for _ in range(200):
        launched = now + rng.randint(0, 3 * MS)
        begin = max(device_ms, launched / MS) + rng.random() * 0.05
        device_ms = begin + rng.random() * 4
        now = round(device_ms * MS) + rng.randint(0, MS // 10)
        start, gpu = clock.place(events(begin + 5, device_ms + 5), launched)
        assert launched <= start + 1
        assert start + gpu <= now
        assert gpu == round((device_ms - begin) * 1e6)
        assert start >= last_end - 100_000  # steps do not overlap, but for the launch's latency
        last_end = start + gpu


@pytest.mark.parametrize("name", ["cpuu", "mps", "meta", "cuda:x", "cuda:-1", ""])
def test_no_such_device(name: str) -> None:
    """A device that the engine cannot use is told by its name."""
    with pytest.raises(EngineError, match=f"device '{name}'"):
        find_device(name)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU if there is one; an index that does not exist is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(None) == find_device("cpu") == CPU
    with pytest.raises(EngineError, match="sees no GPU here"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert find_device(None) == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(EngineError, match="there are 2 GPUs"):
        find_device("cuda:2")


def requests_of(*ids: int) -> list[tuple[Request, int]]:
    return [(Request(i, 1, 1), 0) for i in ids]


def test_a_step_asks_for_what_its_rows_want() -> None:
    """Flags are those of the requests that sample, and of nobody else."""
    state = DeviceState(4, 1, 0, 1, CPU)
    assert state.asks(requests_of(0, 1)) == NOTHING_SPECIAL
    state.register(1, SamplingParams(temperature=0.7, top_k=5, seed=1))
    state.register(2, SamplingParams(temperature=0.0, logprobs=4))
    assert state.asks(requests_of(0, 3)) == NOTHING_SPECIAL
    asks = state.asks(requests_of(0, 1))
    assert (asks.all_greedy, asks.any_top_k, asks.any_top_p) == (False, True, False)
    both = state.asks(requests_of(1, 2))
    assert (both.all_greedy, both.needs_logprobs, both.max_top_logprobs) == (False, True, 4)
    state.forget(1)
    state.forget(1)
    assert state.asks(requests_of(1)) == NOTHING_SPECIAL


def test_a_row_has_its_owners_parameters() -> None:
    """Whatever a row's last owner wanted, the batch has what its present one wants."""
    state = DeviceState(3, 1, 0, 1, CPU)
    first = SamplingParams(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, seed=-3)
    state.register(5, first)
    state.register(6, SamplingParams(temperature=2.0, seed=8))
    state.assign(0, 5)
    state.assign(1, 9)
    rows, positions = torch.tensor([1, 0], dtype=torch.int32), torch.tensor([4, 6])
    asks = state.asks(requests_of(9, 5))
    batch = state.sampling_batch(rows, positions, asks)
    assert batch.temperature.tolist() == [0.0, 0.5]
    assert batch.top_k.tolist()[1] == 7
    assert batch.top_p.tolist()[1] == pytest.approx(0.9)
    assert batch.min_p.tolist()[1] == pytest.approx(0.1)
    assert batch.seeds.tolist()[1] == -3 & ((1 << 63) - 1)
    state.assign(0, 9)
    state.assign(1, 6)
    batch = state.sampling_batch(rows, positions, state.asks(requests_of(6, 9)))
    assert batch.temperature.tolist() == [2.0, 0.0]
    assert (batch.top_k[0], batch.top_p[0], batch.min_p[0]) == (0, 1, 0)
    state.assign(0, 6)
    batch = state.sampling_batch(rows, positions, state.asks(requests_of(6, 6)))
    assert (batch.top_k[1], batch.top_p[1], batch.min_p[1]) == (0, 1, 0)


def test_nvtx_ranges_are_free_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, every range is the same object, which does nothing."""
    from engine import nvtx_ranges

    if nvtx_ranges.ENABLED:
        pytest.skip("WORKBENCH_NVTX is set")
    assert nvtx_ranges.annotate("a") is nvtx_ranges.annotate("b")
    with nvtx_ranges.annotate("a"), nvtx_ranges.annotate("a"):
        pass


def test_nvtx_ranges_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """On, a range opens and closes in its domain, within itself too."""
    import importlib

    nvtx = pytest.importorskip("nvtx")
    from engine import nvtx_ranges

    told: list[str] = []
    domain = SimpleNamespace(
        get_event_attributes=lambda message: message,
        push_range=told.append,
        pop_range=lambda: told.append("end"),
    )
    monkeypatch.setattr(nvtx, "get_domain", lambda name: domain)
    monkeypatch.setenv("WORKBENCH_NVTX", "1")
    try:
        importlib.reload(nvtx_ranges)
        with nvtx_ranges.annotate("plan"), nvtx_ranges.annotate("plan"):
            assert nvtx_ranges.annotate("plan") is nvtx_ranges.annotate("plan")
    finally:
        monkeypatch.undo()
        importlib.reload(nvtx_ranges)
    assert told == ["plan", "plan", "end", "end"]


@pytest.mark.parametrize(("dim", "fits"), [(64, True), (128, True), (96, False), (8, False)])
def test_heads_that_the_kernels_cannot_take_are_refused(dim: int, fits: bool) -> None:
    """Before anything is loaded, in a sentence that names the size."""
    spec = replace(load_model_spec("Qwen3-0.6B"), head_dim=dim)
    if fits:
        _check_kernels_take(spec)
        return
    with pytest.raises(EngineError, match=rf"power of two.*not {dim}"):
        _check_kernels_take(spec)


def test_a_gpu_that_the_kernels_cannot_use_is_refused() -> None:
    """Its name, what it has and what is needed are told."""
    _check_gpu("H100", (9, 0))
    _check_gpu("B200", (10, 0))
    with pytest.raises(EngineError, match=r"A100 has compute capability 8\.0.* need 9\.0"):
        _check_gpu("A100", (8, 0))
